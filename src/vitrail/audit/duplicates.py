"""Near duplicates: pictures whose perceptual hashes differ in a few of their 64 bits, in groups."""

from importlib import import_module
from types import ModuleType

import numpy as np
from jaxtyping import Int, UInt64
from PIL import Image

from ..errors import OptionError, how_to_install

__all__ = ["NEAR", "check_imagehash", "duplicate_groups", "perceptual_hash"]

NEAR = 4  # bits of 64 that two pictures of the same scene may differ in
ROWS = 2048  # pictures that are compared with all others at a time


def perceptual_hash(picture: Image.Image) -> int:
    """Returns the 64-bit perceptual hash of a picture (the signs of its lowest cosine frequencies).

    Raises:
        OptionError: where imagehash is not installed.

    Example:
        >>> ramp = Image.linear_gradient("L")
        >>> (perceptual_hash(ramp) ^ perceptual_hash(ramp.resize((99, 99)))).bit_count() <= NEAR
        True
    """
    return int(str(check_imagehash().phash(picture)), 16)


def check_imagehash() -> ModuleType:
    """Returns the library of perceptual hashes.

    Raises:
        OptionError: where imagehash is not installed.
    """
    try:
        return import_module("imagehash")
    except ImportError as error:
        raise OptionError(f"an audit needs imagehash: {how_to_install('audit')}") from error


def duplicate_groups(hashes: UInt64[np.ndarray, " images"], near: int = NEAR) -> Int[np.ndarray, " images"]:
    """Returns the number of each picture's group, counted from 0 in the order of the pictures; −1 for a picture alone.

    Pictures belong together where their hashes differ in `near` bits or fewer, or where others link them.

    Example:
        >>> duplicate_groups(np.array([7, 2**40, 6, 2**63, 2**40], dtype=np.uint64), near=1).tolist()
        [0, 1, 0, -1, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    bits = np.unpackbits(hashes.astype("<u8").view(np.uint8).reshape(len(hashes), 8), axis=1).astype(np.float32)
    signs = 2 * bits - 1
    one: list[np.ndarray] = []
    other: list[np.ndarray] = []
    for start in range(0, len(signs), ROWS):
        close = signs[start : start + ROWS] @ signs.T >= 64 - 2 * near  # each bit that differs takes away two
        rows, cols = np.nonzero(close)
        one.append(rows + start)
        other.append(cols)
    edges = (np.concatenate(one), np.concatenate(other)) if one else (np.zeros(0, int), np.zeros(0, int))
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(len(hashes),) * 2)
    _, component = connected_components(graph, directed=False)
    sizes = np.bincount(component, minlength=1) if len(component) else np.zeros(1, int)
    numbers: dict[int, int] = {}
    for one_component in component.tolist():
        if sizes[one_component] > 1:
            numbers.setdefault(one_component, len(numbers))
    return np.array([numbers.get(which, -1) for which in component.tolist()], dtype=np.int64)
