"""What people read: the report, its figures, the ranking of a multirun."""
