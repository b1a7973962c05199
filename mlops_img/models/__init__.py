"""Create models by name and load their initial weights."""
