"""What a run costs before it is begun: how many rows go through the model for one image, and how many maps are made."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from ..errors import NoSignalError
from ..metrics import find_protocol
from ..metrics.protocol import Case, LogitQuery, Parts, TokenSubsetQuery
from ..outputs import LOGITS, Output
from .plan import EvaluationPlan

__all__ = ["Cost", "cost_of", "passes"]


class Cost(NamedTuple):
    """`rows` of the model's forward pass (one with half of the tokens counts half), and `maps` of the method."""

    rows: float
    maps: int


def passes(
    plan: EvaluationPlan, size: tuple[int, int] = (224, 224), grid: tuple[int, int] = (14, 14)
) -> dict[str, Cost]:
    """Returns the cost of an image in each protocol of a plan, for each method, without the map that all share.

    The whole run makes, for every image, one row for its logits and, for each method, one map and these. `size` is the
    model's input (height, width), `grid` its rows and columns of patches.

    Example:
        >>> from vitrail.evaluate.plan import make_plan
        >>> passes(make_plan("fast", preset="bi"))
        {'perturbation': Cost(rows=18.0, maps=0)}
    """
    return {name: cost_of(name, options, size, grid) for name, options in plan.protocols.items()}


def cost_of(
    protocol: str,
    options: Mapping[str, Any] | None = None,
    size: tuple[int, int] = (224, 224),
    grid: tuple[int, int] = (14, 14),
    output: Output = LOGITS,
    classes: int = 2,
) -> Cost:
    """Returns the cost of a map in a protocol, by counting its queries on an image of two classes.

    Raises:
        UnknownProtocolError, OptionError: as `find_protocol`, and as the protocol itself.
        OutputKindError: for a protocol that means nothing to the kind of output.

    Example:
        >>> cost_of("insertion"), cost_of("perturbation", {"unit": "token"})
        (Cost(rows=225.0, maps=0), Cost(rows=9.04, maps=0))
    """
    rows, maps = 0.0, 0
    given = dict(options or {})
    evaluation = find_protocol(protocol, given).function(
        _any_case(size, grid, output, classes), _any_map(grid), **given
    )
    answer: Any = None
    while True:
        try:
            question = evaluation.throw(answer) if isinstance(answer, Exception) else evaluation.send(answer)
        except StopIteration:
            return Cost(round(rows, 2), maps)
        if isinstance(question, LogitQuery):
            rows += question.count
            answer = torch.rand(question.count, classes)
        elif isinstance(question, TokenSubsetQuery):
            rows += question.patches.numel() / (grid[0] * grid[1])
            answer = torch.rand(len(question.patches), classes)
        else:
            maps += len(question.targets)
            answer = _any_map(grid).expand(len(question.targets), -1, -1)
            if question.randomised:  # as if nothing moved the class any more, which spares comparing maps
                answer = NoSignalError("no map")


def _any_map(grid: tuple[int, int]) -> torch.Tensor:
    return torch.linspace(-1, 1, grid[0] * grid[1]).view(grid)


def _any_parts(size: tuple[int, int]) -> Parts[torch.Tensor, torch.Tensor]:
    """Returns six parts side by side, as most creatures have, and six things, one on each."""
    strips = {str(number): torch.arange(size[1]).expand(size) * 6 // size[1] == number for number in range(6)}
    return Parts(
        masks=strips,
        things={f"on {name}": strip for name, strip in strips.items()},
        draw=lambda names: torch.full((3, *size), float(len(names))),
        shared={0: frozenset("0"), 1: frozenset("1")},
        sufficient=(frozenset("01"),),
    )


def _any_case(size: tuple[int, int], grid: tuple[int, int], output: Output, classes: int) -> Case:
    """Returns an image of which everything is known."""
    left = torch.zeros(size, dtype=torch.bool)
    left[:, : size[1] // 2] = True
    return Case(
        index=0,
        source="any",
        image=torch.zeros(3, *size),
        logits=torch.arange(classes).flip(0).float(),
        target=0,
        grid=grid,
        prefix=1,
        black=(-1.0, -1.0, -1.0),
        white=(1.0, 1.0, 1.0),
        label=0,
        boxes=left,
        mask=left,
        regions={0: left, 1: ~left},
        parts=partial(_any_parts, size),
        output=output,
    )
