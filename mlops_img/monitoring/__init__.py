"""Monitoring: whether production data still resemble the training data."""
