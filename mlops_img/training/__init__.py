"""The hand-written training loop and what it is made of."""
