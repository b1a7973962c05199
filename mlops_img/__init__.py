"""From a folder of labelled images to an evaluated classifier, with one configuration."""

__version__ = "0.1.0"
