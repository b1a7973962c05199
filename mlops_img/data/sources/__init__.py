"""Sources of labeled images, one module for each kind.

A user's source (`data._target_`) returns a `Table` of `ImageSet` objects; both can be imported from here.
"""

from mlops_img.data.sources.base import ImageSet, Table

__all__ = ["ImageSet", "Table"]
