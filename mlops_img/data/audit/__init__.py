"""Find problems in a data set: unreadable files, duplicates, leakage, missing classes."""
