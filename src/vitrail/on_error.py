"""What becomes of a batch in which some images cannot be explained: all is refused, or the others are returned."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from .errors import (
    GuideError,
    ImageError,
    NonFiniteError,
    NoSignalError,
    OptionError,
    SameClassError,
    TextError,
    VitrailError,
)

__all__ = ["OnError", "check_on_error", "failure_notes", "failure_records", "only", "skipping"]

OnError = Literal["raise", "skip"]
Result = TypeVar("Result")

# One image or text can be at fault in these ways; every other error is the question's and would meet all of them.
OF_ONE_IMAGE = (GuideError, ImageError, NonFiniteError, NoSignalError, SameClassError, TextError)


def check_on_error(value: str) -> None:
    """Raises `OptionError` for anything but "raise" and "skip"."""
    if value not in get_args(OnError):
        raise OptionError(
            f'on_error={value!r} is unknown: give "raise" (one failed image refuses all) or "skip" (the others are '
            "returned, the failed ones listed in `failures`)"
        )


def skipping(
    ask: Callable[..., Result], items: Sequence[Any], failed: dict[int, VitrailError], target: Any, against: Any
) -> tuple[Result, list[int]]:
    """Asks about all items, and again without those at fault, which go to `failed` by position with their errors.

    `ask(items, target, against=…)` explains items together; `target` and `against` may hold one entry for each item.
    What is in `failed` already is left out. Returns the result and the positions that it is of.

    Raises:
        VitrailError: the first failed image's error where none is left, and any error that is not one image's.

    Example:
        >>> def ask(images, target, against):
        ...     if "blank" in images:
        ...         raise NoSignalError("nothing moves the objective")
        ...     return target
        >>> failed = {}
        >>> skipping(ask, ["zebra", "blank", "kite"], failed, [340, 340, 21], None), list(failed)
        (([340, 21], [0, 2]), [1])
    """

    def explained(some: list[int]) -> Result:
        wanted, other = (only(asked, some, len(items)) for asked in (target, against))
        return ask([items[position] for position in some], wanted, against=other)

    kept = [position for position in range(len(items)) if position not in failed]
    while kept:
        try:
            return explained(kept), kept
        except OF_ONE_IMAGE as error:
            if len(kept) == 1:
                guilty = {kept[0]: error}
            elif error.images:
                guilty = {kept[i]: error for i in error.images}
            else:
                guilty = _each_alone(explained, kept)
                if not guilty:  # they fail only together
                    raise
            failed |= guilty
            kept = [position for position in kept if position not in failed]
    raise next(iter(failed.values()))


def _each_alone(ask: Callable[[list[int]], object], kept: list[int]) -> dict[int, VitrailError]:
    found: dict[int, VitrailError] = {}
    for position in kept:
        try:
            ask([position])
        except OF_ONE_IMAGE as error:
            found[position] = error
    return found


def only(wanted: Any, kept: Sequence[int], count: int) -> Any:
    """What was given for each of `count` images, for the kept ones alone; what holds for all images stays as it is.

    Example:
        >>> only(["cat", "dog", "owl"], [0, 2], 3), only("cat", [0, 2], 3)
        (['cat', 'owl'], 'cat')
    """
    if isinstance(wanted, str | dict) or not hasattr(wanted, "__len__") or getattr(wanted, "ndim", 1) == 0:
        return wanted
    if len(wanted) != count:  # for `explain` to refuse, or a single row for a single image
        return wanted
    if isinstance(wanted, torch.Tensor | np.ndarray):
        return wanted[list(kept)]
    wanted = list(wanted)  # also of a Series, whose own brackets go by its labels
    return [wanted[position] for position in kept]


def failure_records(failed: Mapping[int, VitrailError], sources: Sequence[str | None]) -> list[dict[str, Any]]:
    """What failed, in order and as plain JSON values: position, source, type of the error and its message."""
    return [
        {
            "image": position,
            "source": sources[position],
            "error": type(error).__name__,
            "message": error.cause or str(error),
        }
        for position, error in sorted(failed.items())
    ]


def failure_notes(failures: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """One sentence per cause, naming the images that have no map."""
    causes: dict[str, list[str]] = {}
    for one in failures:
        causes.setdefault(one["message"], []).append(one["source"] or f"number {one['image']}")
    return [
        f"{len(names)} of {count} could not be explained and {'is' if len(names) == 1 else 'are'} left out "
        f"({', '.join(names[:5])}{', …' if len(names) > 5 else ''}): {message}"
        for message, names in causes.items()
    ]
