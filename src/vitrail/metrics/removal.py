"""An image whose places go one after the other: their order, what the image shows where they were, and its versions.

The places of a map are ranked once; each pixel then has the rank at which it goes, and the image at any step is a
comparison and a choice, whatever the step: nothing is ranked again and no image waits in memory.

    ground  = filling(case, "black")                            what is left where a place has gone
    ranks   = pixel_ranks(scores, (224, 224), highest=True)     0 for the pixels of the first place, then 1, …
    removal = Removal(case.image, ground, ranks, (0, 10, 20))   after 0, 10 and 20 places
    removal.images(range(1, 3))                                 the last two of these
    logits  = yield perturbation_batch(removal, …)              one query for many curves
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from ..errors import OptionError
from .maps import enlarged
from .protocol import Case, LogitQuery, Query, TokenSubsetQuery, check_map, check_one_of, check_shares

__all__ = [
    "FILLS",
    "UNITS",
    "Removal",
    "blurred",
    "filling",
    "folded_gaussian",
    "kept_tokens",
    "morf_lerf",
    "perturbation_batch",
    "pixel_ranks",
    "places_of",
    "ranking",
    "taken_out",
]

FILLS = ("black", "mean", "zero", "blur", "noise", "lowest", "highest")
UNITS = ("pixel", "patch", "token")

# -- what is left ------------------------------------------------------------------------------------------------------


def filling(case: Case, fill: str) -> Float[Tensor, "channels height width"]:
    """Returns the ground of that name, as large as the image and normalised as it is.

    black: 0 before normalisation. zero: 0 after it, the grey of the training data's mean. mean: the image's own mean
    colour. blur: the image under the Gaussian of RISE (`blurred`). noise: standard normal, from the image's seed.
    lowest, highest: the image's own extreme value over all channels, which Quantus calls black and white.

    Raises:
        OptionError: for another name.
    """
    check_one_of("fill", fill, FILLS)
    image = case.image
    if fill == "black":
        return torch.tensor(case.black, dtype=image.dtype, device=image.device)[:, None, None].expand_as(image)
    if fill == "zero":
        return torch.zeros_like(image)
    if fill == "mean":
        return image.mean(dim=(1, 2), keepdim=True).expand_as(image)
    if fill == "noise":
        return torch.randn(image.shape, generator=case.generator(), dtype=torch.float32).to(image)
    if fill == "blur":
        return blurred(image)
    return (image.amin() if fill == "lowest" else image.amax()).expand_as(image)


def folded_gaussian(length: int = 11, sigma: float = 5.0) -> Float[Tensor, " length"]:
    """Returns a Gaussian in a window too narrow for it, with what lies beyond mirrored back in at the edges, in
    float64.

    This is what `scipy.ndimage.gaussian_filter` makes of a single one amid zeros, out to four σ: for 11 and 5 the
    window of RISE (Petsiuk, Das, Saenko 2018), which is much flatter than a Gaussian cut off.

    Example:
        >>> [round(value, 4) for value in folded_gaussian(3, 1.0).tolist()]
        [0.2961, 0.4078, 0.2961]
    """
    reach = int(4 * sigma + 0.5)
    heights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-reach, reach + 1)]
    weights = torch.tensor(heights, dtype=torch.float64)
    window = torch.zeros(length, dtype=torch.float64)
    for step, weight in zip(range(-reach, reach + 1), weights / weights.sum(), strict=True):
        place = (length // 2 + step) % (2 * length)
        window[min(place, 2 * length - 1 - place)] += weight
    return window


def blurred(image: Float[Tensor, "channels height width"]) -> Float[Tensor, "channels height width"]:
    """Returns the image under RISE's window of 11 × 11 pixels, zero beyond its edges."""
    wide = image if image.dtype == torch.float64 else image.float()
    window = folded_gaussian().to(wide)
    half = len(window) // 2
    rows = conv2d(wide[:, None], window.view(1, 1, -1, 1), padding=(half, 0))
    return conv2d(rows, window.view(1, 1, 1, -1), padding=(0, half))[:, 0].to(image.dtype)


# -- the order ---------------------------------------------------------------------------------------------------------


def places_of(case: Case, scores: Float[Tensor, "rows cols"], unit: str) -> Float[Tensor, "high wide"]:
    """Returns the map on what is removed: on "pixel", bilinearly enlarged and from 0 to 1; else on the
    model's patches.
    """
    if unit == "pixel":
        return enlarged(scores, case.size)
    if tuple(scores.shape) == case.grid:
        return scores
    return adaptive_avg_pool2d(scores[None], case.grid)[0]


def ranking(
    scores: Float[Tensor, "*batch places"],
    *,
    highest: bool = True,
    allowed: Bool[Tensor, " places"] | None = None,
) -> Int[Tensor, "*batch ranked"]:
    """Returns the places in the order in which they go: the highest score first, or the lowest; ties by position.

    `allowed` says which places may go at all (default: every one); the others are not in the order.

    Example:
        >>> ranking(torch.tensor([0.5, 2.0, 0.5, -1.0])).tolist()
        [1, 0, 2, 3]
        >>> ranking(torch.tensor([0.5, 2.0, 0.5, -1.0]), highest=False, allowed=torch.tensor([1, 1, 1, 0]) > 0).tolist()
        [0, 2, 1]
    """
    if allowed is None:
        return scores.argsort(dim=-1, descending=highest, stable=True)
    places = allowed.nonzero()[:, 0]
    return places[scores[..., places].argsort(dim=-1, descending=highest, stable=True)]


def taken_out(order: Int[Tensor, "*batch ranked"], share: float | int, places: int) -> Bool[Tensor, "*batch places"]:
    """Returns which of `places` are removed at a share of those in the order, int(share · ranked).

    Raises:
        OptionError: for a share that is not between 0 and 1.

    Example:
        >>> taken_out(torch.tensor([3, 1]), 0.5, places=4).tolist()
        [False, False, False, True]
    """
    if not 0 <= share <= 1:
        raise OptionError(f"share={share} of the image is not between 0 and 1")
    gone = torch.zeros(*order.shape[:-1], places, dtype=torch.bool, device=order.device)
    return gone.scatter(-1, order[..., : int(order.shape[-1] * share)], True)


def kept_tokens(
    order: Int[Tensor, "*batch ranked"], share: float | int, *, prefix: int, places: int | None = None
) -> Int[Tensor, "*batch kept"]:
    """Returns the tokens that stay, in their own order, when a share of the patches is dropped: the prefix, then
    patches.

    `places` is the number of patches, by default as many as are in the order.

    Example:
        >>> kept_tokens(torch.tensor([2, 0, 1, 3]), 0.5, prefix=1).tolist()
        [0, 2, 4]
    """
    count = order.shape[-1] if places is None else places
    gone = taken_out(order, share, count)
    kept = count - int(order.shape[-1] * share)
    # False sorts before True, and the sort is stable: what stays, in its own order.
    patches = gone.to(torch.uint8).argsort(dim=-1, stable=True)[..., :kept]
    first = torch.arange(prefix, device=order.device).expand(*order.shape[:-1], prefix)
    return torch.cat([first, patches + prefix], dim=-1)


def pixel_ranks(
    scores: Float[Tensor, "rows cols"],
    size: tuple[int, int],
    *,
    highest: bool = True,
    allowed: Bool[Tensor, "rows cols"] | None = None,
) -> Int[Tensor, "height width"]:
    """Returns the rank at which each pixel of an image goes: the highest scores first, or the lowest; ties by position.

    All pixels of a place go together. Places that are not `allowed` have the number of those that are: they never go.

    Raises:
        OptionError: when the map does not divide the image.

    Example:
        >>> pixel_ranks(torch.tensor([[0.1, 0.9]]), (2, 2)).tolist()
        [[1, 0], [1, 0]]
    """
    check_map(scores, size)
    (height, width), (rows, cols) = size, scores.shape
    may = None if allowed is None else allowed.flatten().to(scores.device)
    order = ranking(scores.flatten(), highest=highest, allowed=may)
    ranks = torch.full((rows * cols,), len(order), dtype=torch.int32, device=scores.device)
    ranks[order] = torch.arange(len(order), dtype=torch.int32, device=scores.device)
    return ranks.view(rows, cols).repeat_interleave(height // rows, 0).repeat_interleave(width // cols, 1)


# -- the images --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Removal:
    """An image, what it shows where a place has gone, the rank of each pixel, and up to which rank each step goes.

    `since`: at each step only the ranks from there on are gone (default: from the first), for groups of places that go
    by themselves.

    Example:
        >>> ranks = torch.tensor([[1, 0, 2]])
        >>> Removal(torch.ones(1, 1, 3), torch.zeros(1, 1, 3), ranks, (0, 1, 3)).images(range(1, 3))[:, 0, 0].tolist()
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """

    image: Float[Tensor, "channels height width"]
    ground: Float[Tensor, "channels height width"]
    ranks: Int[Tensor, "height width"]
    until: Sequence[int]
    since: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.until)

    def images(self, steps: range) -> Float[Tensor, "steps channels height width"]:
        """Returns the images of a range of steps."""
        ranks = self.ranks.to(self.image.device)
        gone = ranks < self._column(self.until, steps)
        if self.since is not None:
            gone &= ranks >= self._column(self.since, steps)
        return torch.where(gone[:, None], self.ground, self.image)

    def _column(self, places: Sequence[int], steps: range) -> Int[Tensor, "steps 1 1"]:
        some = places[steps.start : steps.stop]
        return torch.tensor(some, dtype=torch.int32, device=self.image.device)[:, None, None]


def perturbation_batch(*removals: Removal) -> LogitQuery:
    """Returns one query for the images of all of them, one removal after the other."""
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


def morf_lerf(
    case: Case, scores: Float[Tensor, "rows cols"], unit: str, fill: str, shares: Sequence[float]
) -> Generator[Query, Tensor, Tensor]:
    """Yields queries for each share and returns the logits, highest scores first and lowest first: "ways shares
    classes".

    Of the places int(share · places) go: pixels of the bilinearly enlarged map, or patches, show what `fill` says;
    tokens leave the sequence. The answer has the originals' dtype and device.

    Raises:
        OptionError: for a unit or fill that is not known, or shares that are not ascending between 0 and 1.
    """
    check_one_of("unit", unit, UNITS)
    check_one_of("fill", fill, FILLS)
    check_shares(shares)
    check_map(scores, case.size)
    places = places_of(case, scores, unit)
    if unit == "token":
        orders = [ranking(places.flatten(), highest=highest) for highest in (True, False)]
        answered = []
        for share in shares:  # the rows of one query are of one length, so each share is a query of its own
            kept = torch.stack([kept_tokens(order, share, prefix=0) for order in orders])
            answered.append((yield TokenSubsetQuery(case.image, kept)))
        return torch.stack(answered, dim=1).to(case.logits)
    ground, until = filling(case, fill), [int(places.numel() * share) for share in shares]
    ways = [pixel_ranks(places, case.size, highest=highest) for highest in (True, False)]
    logits = yield perturbation_batch(*(Removal(case.image, ground, ranks, until) for ranks in ways))
    return logits.unflatten(0, (2, len(shares))).to(case.logits)
