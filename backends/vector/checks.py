"""What a store is given is a vector of its own kind."""

import numpy as np

from backends.vector.base import Vector

_LENGTHS = (0.99, 1.01)  # of a unit vector, squared


def check_shape(vector: Vector, dimensions: int) -> None:
    """Raises `ValueError`."""
    if vector.shape != (dimensions,):
        raise ValueError(f"expected a vector of {dimensions} dimensions, got shape {vector.shape}")


def check_unit(vector: Vector, dimensions: int) -> None:
    """For servers, which take anything: one of NaN would be as near to every question, or to none, whatever it is.
    Raises `ValueError`."""
    check_shape(vector, dimensions)
    wide = vector.astype(np.float64)
    if not _LENGTHS[0] < float(wide @ wide) < _LENGTHS[1]:
        raise ValueError("expected a unit vector")
