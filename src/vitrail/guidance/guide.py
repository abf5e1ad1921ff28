"""What a user says of a guide: which pictures, how they are laid beside the original, and over what is averaged."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import NotAnImageError, OptionError
from ..inputs import ImageLike, ImagesLike
from .stitching import LAYOUTS, check_words

__all__ = ["Guide", "as_guide", "guide_files"]


@dataclass(frozen=True, eq=False)
class Guide:
    """Pictures of another class to lay beside the original, so that they take the evidence against it.

    The map is the mean over everything that is named more than once: pictures, layouts, sides.

    Args:
        pictures: "auto" (the model draws one itself), a path, a folder, a PIL image, a uint8 array, a normalised float
            tensor (channels, height, width), or a list of these.
        layout: "side" or "stack" (each picture squeezed into half of the model's input), "wide" or "tall" (each as
            large as the model's own input, which the model must take: Vitrail's extension), or several of them.
        side: where the original lies: "left" or "right", "top" or "bottom", or "both"; None for left or top.
        fit: "squash", "crop" or "pad", for side and stack.
        most: the largest number of pictures of a folder, evenly spread over it.
        guide_class: the class that "auto" draws; None for one that is far from the target.
        seed: of the drawing's first noise.

    Raises:
        OptionError: for a word or a number that makes no sense.

    Example:
        >>> Guide("auto", layout="wide", side="both").stitches()
        [('wide', 'left'), ('wide', 'right')]
    """

    pictures: ImagesLike = "auto"
    layout: str | Sequence[str] = "side"
    side: str | None = None
    fit: str = "squash"
    most: int = 8
    guide_class: str | int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pictures", _kept(self.pictures))
        stitches = self.stitches()
        if not stitches:
            raise OptionError(f"layout=() of a guide names none of {', '.join(LAYOUTS)}")
        for layout, side in stitches:
            check_words(layout, side, self.fit)
        ways = {LAYOUTS[layout] for layout, _ in stitches}
        large = {layout in ("wide", "tall") for layout, _ in stitches}
        if self.fit == "crop" and len(ways) + len(large) > 2:
            raise OptionError(
                'fit="crop" shows another part of the photograph in each layout, so their maps have no mean: '
                'name one layout, or fit="squash"'
            )
        if self.most < 1:
            raise OptionError(f"most={self.most} pictures of a folder is fewer than 1")
        if self.guide_class is not None and not self.drawn:
            raise OptionError(
                f"guide_class={self.guide_class!r} says what to draw, but pictures are given; leave one of them out"
            )

    @property
    def layouts(self) -> tuple[str, ...]:
        """Returns the layouts, in the order given, each once."""
        return tuple(dict.fromkeys((self.layout,) if isinstance(self.layout, str) else self.layout))

    @property
    def drawn(self) -> bool:
        """Returns whether the model draws its guide itself."""
        return isinstance(self.pictures, str) and self.pictures == "auto"

    def stitches(self) -> list[tuple[str, str]]:
        """Returns every layout with every side that is asked for. Raises `OptionError` for an unknown layout."""
        pairs = []
        for layout in self.layouts:
            if layout not in LAYOUTS:
                check_words(layout, "", self.fit)
            sides = LAYOUTS[layout] if self.side == "both" else (self.side or LAYOUTS[layout][0],)
            pairs += [(layout, side) for side in sides]
        return pairs

    def items(self) -> list[ImageLike]:
        """Returns the pictures one by one, folders opened.

        Raises:
            NotAnImageError: for a folder without images.
            OptionError: for an empty list.
        """
        found: list[ImageLike] = []
        for item in _each(self.pictures):
            path = Path(item) if isinstance(item, str | os.PathLike) else None
            found += guide_files(path, self.most) if path is not None and path.is_dir() else [item]
        if not found:
            raise OptionError('guide=[] holds no picture; give one, or guide="auto"')
        return found


def as_guide(guide: Any) -> Guide:
    """Returns the value of `guide=` as a `Guide`: one already, or the images of one.

    Raises:
        OptionError: for anything else.
    """
    if isinstance(guide, Guide):
        return guide
    pictures = _kept(guide)
    for item in _each(pictures):
        kinds = str | os.PathLike | Image.Image | np.ndarray | Tensor | bytes | bytearray | memoryview
        if not isinstance(item, kinds) and not hasattr(item, "read"):
            kind = type(item).__name__
            raise OptionError(
                f'guide= holds a {kind}; give a path, a folder, a picture, a list of them, "auto" or a vitrail.Guide'
            )
    return Guide(pictures)


def _kept(pictures: Any) -> Any:
    """A generator's pictures as a list, for they are gone through more than once; everything else as it is."""
    return list(pictures) if isinstance(pictures, Iterator) and not hasattr(pictures, "read") else pictures


def _each(pictures: Any) -> Sequence[Any]:
    many = isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes | bytearray | memoryview)
    return pictures if many else [pictures]  # type: ignore[return-value, list-item]


def guide_files(folder: Path, most: int) -> list[Path]:
    """Returns at most `most` pictures of a folder and of those inside it, evenly spread over their sorted names.

    Raises:
        NotAnImageError: when there is none.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise NotAnImageError(f"the folder {folder} holds no image that could be a guide")
    step = max(1.0, len(found) / most)
    return [found[int(number * step)] for number in range(min(most, len(found)))]
