"""Where labeled images come from: one module for each kind of source."""
