"""An image whose places go one after the other, made only when the model is about to see it.

The places of a map are ranked once; each pixel then knows at which turn it goes, and the image at any step is a
comparison and a choice, whatever the step: nothing is ranked again and no image waits in memory.

    turn    = pixel_ranks(scores, (224, 224), highest=True)     0 for the pixels of the first place, then 1, …
    removal = Removal(image, ground, turn, (0, 10, 20))        after 0, 10 and 20 places
    removal.images(range(1, 3))                                the last two of these
    logits  = yield perturbation_batch(removal, …)               one question for many curves
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import OptionError
from .perturbation import ranking
from .questions import LogitQuery

__all__ = ["Removal", "perturbation_batch", "pixel_ranks"]


def pixel_ranks(
    scores: Float[Tensor, "rows cols"],
    size: tuple[int, int],
    *,
    highest: bool = True,
    allowed: Bool[Tensor, "rows cols"] | None = None,
) -> Int[Tensor, "height width"]:
    """At which turn each pixel of an image goes: the highest scores first, or the lowest; ties by position.

    All pixels of a place go together. Places that are not `allowed` have the number of those that are: they never go.

    Raises:
        OptionError: when the map does not divide the image.

    Example:
        >>> pixel_ranks(torch.tensor([[0.1, 0.9]]), (2, 2)).tolist()
        [[1, 0], [1, 0]]
    """
    (height, width), (rows, cols) = size, scores.shape
    if height % rows or width % cols:
        raise OptionError(f"a map of {rows}×{cols} places does not divide an image of {height}×{width} pixels")
    may = None if allowed is None else allowed.flatten().to(scores.device)
    order = ranking(scores.flatten(), highest=highest, allowed=may)
    turn = torch.full((rows * cols,), len(order), dtype=torch.int32, device=scores.device)
    turn[order] = torch.arange(len(order), dtype=torch.int32, device=scores.device)
    return turn.view(rows, cols).repeat_interleave(height // rows, 0).repeat_interleave(width // cols, 1)


@dataclass(frozen=True, eq=False)
class Removal:
    """An image, what it shows where a place has gone, the turn of each pixel, and how many turns each step has seen.

    `since`: at each step only the turns from there on are gone (default: from the first), for groups of places that go
    by themselves.

    Example:
        >>> turn = torch.tensor([[1, 0, 2]])
        >>> Removal(torch.ones(1, 1, 3), torch.zeros(1, 1, 3), turn, (0, 1, 3)).images(range(1, 3))[:, 0, 0].tolist()
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """

    image: Float[Tensor, "channels height width"]
    ground: Float[Tensor, "channels height width"]
    turns: Int[Tensor, "height width"]
    until: Sequence[int]
    since: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.until)

    def images(self, steps: range) -> Float[Tensor, "steps channels height width"]:
        """The images of a range of steps."""
        turn = self.turns.to(self.image.device)
        gone = turn < self._column(self.until, steps)
        if self.since is not None:
            gone &= turn >= self._column(self.since, steps)
        return torch.where(gone[:, None], self.ground, self.image)

    def _column(self, places: Sequence[int], steps: range) -> Int[Tensor, "steps 1 1"]:
        some = places[steps.start : steps.stop]
        return torch.tensor(some, dtype=torch.int32, device=self.image.device)[:, None, None]


def perturbation_batch(*removals: Removal) -> LogitQuery:
    """One question for the images of all of them, one removal after the other."""
    starts = [0]
    for removal in removals:
        starts.append(starts[-1] + len(removal))

    def make(rows: range) -> Float[Tensor, "rows channels height width"]:
        parts = []
        for removal, start in zip(removals, starts, strict=False):
            steps = range(max(rows.start - start, 0), min(rows.stop - start, len(removal)))
            if steps:
                parts.append(removal.images(steps))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return LogitQuery(starts[-1], make)
