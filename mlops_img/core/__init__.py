"""Modules that all parts of the package may import: files, devices, precision, seeds, memory."""
