"""Which neighbour, if any, is near enough to answer."""

from collections.abc import Sequence

from backends.vector.base import Neighbor


def near_enough(neighbors: Sequence[Neighbor], *, threshold: float) -> list[Neighbor]:
    """Those at or above `threshold`, in the store's order (most similar first).

    Several, because the first may name an entry that has just expired.
    """
    return [neighbor for neighbor in neighbors if neighbor.similarity >= threshold]


def nearest_rejected(neighbors: Sequence[Neighbor], allowed: Sequence[Neighbor]) -> float | None:
    """The similarity of the best neighbour that is not among the allowed."""
    return max((neighbor.similarity for neighbor in neighbors if neighbor not in allowed), default=None)
