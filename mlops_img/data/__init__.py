"""From files to batches: sources -> decode -> augment -> loader."""
