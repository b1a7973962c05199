"""Where labeled images come from: one module for each kind of source.

A source of your own (`data._target_`) returns a `Table` of `ImageSet`s, both of which can be imported from here.
"""

from mlops_img.data.sources.base import ImageSet, Table

__all__ = ["ImageSet", "Table"]
