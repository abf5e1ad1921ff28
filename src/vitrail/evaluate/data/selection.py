"""Some of a data set's pictures, evenly over the classes."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

__all__ = ["evenly", "select"]


def evenly(labels: Sequence[int | None]) -> list[int]:
    """Places in an order that takes one of each class, then a second of each, and so on.

    Example:
        >>> evenly([5, 5, 7, 5, 7])
        [0, 2, 1, 4, 3]
    """
    seen: dict[int | None, int] = defaultdict(int)
    turns = []
    for place, label in enumerate(labels):
        turns.append((seen[label], place))
        seen[label] += 1
    return [place for _, place in sorted(turns)]


def select(labels: Sequence[int | None], limit: int | None, seed: int) -> list[int]:
    """At most `limit` places, drawn evenly over the classes, in their own order.

    What a smaller limit takes a larger one takes too, with the same seed.

    Example:
        >>> places = select([5, 5, 5, 7, 7, 9], 3, seed=0)
        >>> len({[5, 5, 5, 7, 7, 9][place] for place in places})
        3
    """
    if limit is None or limit >= len(labels):
        return list(range(len(labels)))
    mixed = np.random.default_rng(seed).permutation(len(labels)).tolist()
    turns = evenly([labels[place] for place in mixed])
    return sorted(mixed[turn] for turn in turns[:limit])
