"""From predictions to measures."""
