"""Finding what is wrong in a data set: unreadable files, duplicates, leakage, missing classes."""
