"""Convert the bytes of an image to the uint8 square that a model takes.

Training, evaluation, export and the service use the same code.
"""
