"""Which neighbour, if any, is near enough to answer."""

from collections.abc import Sequence

from backends.vector.base import Neighbor


def near_enough(neighbors: Sequence[Neighbor], *, threshold: float) -> list[Neighbor]:
    """Those at or above `threshold`, in the store's order (most similar first).

    Several, because the first may name an entry that has just expired.
    """
    return [neighbor for neighbor in neighbors if neighbor.similarity >= threshold]


def nearest_rejected(neighbors: Sequence[Neighbor], *, threshold: float) -> float | None:
    """The similarity of the best neighbour below `threshold`."""
    return max((n.similarity for n in neighbors if n.similarity < threshold), default=None)
