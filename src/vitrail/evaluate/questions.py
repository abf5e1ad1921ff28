"""What a protocol asks while it measures one map.

A protocol is a generator: it yields questions and is sent the answers, so that whoever runs it may put the questions of
many images, methods and protocols into the same passes of the model.

    logits = yield LogitQuery(9, lambda rows: perturbed(rows))   # "rows classes"
    logits = yield TokenSubsetQuery(case.image, kept)           # "rows classes"
    scores = yield AttributionQuery(images, targets=[3])         # "images rows cols"
    return [Measured("hit", 0.1, 1.0), …]
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["AttributionQuery", "Evaluation", "LogitQuery", "Measured", "Query", "TokenSubsetQuery"]


@dataclass(frozen=True, eq=False)
class LogitQuery:
    """What does the model say to `count` images? `make(rows)` makes those of a range of rows when their turn comes."""

    count: int
    make: Callable[[range], Float[Tensor, "rows channels height width"]]


@dataclass(frozen=True, eq=False)
class TokenSubsetQuery:
    """What does it say to an image of which only some tokens go through its blocks? One row for each selection.

    `patches` holds the patches that stay, ascending, counted from the first patch: as many in each row.
    """

    image: Float[Tensor, "channels height width"]
    patches: Int[Tensor, "rows kept"]


@dataclass(frozen=True, eq=False)
class AttributionQuery:
    """What map does the method that is being measured give for other images, or for other classes? One class each.

    `randomised` is the number of the model's last layers whose parameters are drawn anew first (0: none).
    """

    images: Float[Tensor, "images channels height width"]
    targets: Sequence[int]
    randomised: int = 0


class Measured(NamedTuple):
    """One number: what was measured, at which step of a curve (None: a single number), and the value."""

    measure: str
    step: float | None
    value: float


Query: TypeAlias = LogitQuery | TokenSubsetQuery | AttributionQuery
Evaluation: TypeAlias = Generator[Query, Tensor, list[Measured]]
