"""Batch prediction: a folder or a list of images becomes a folder of parts with a row for each image."""
