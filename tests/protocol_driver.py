"""Runs one protocol on one image: every question is put to a model at once, in batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitrail.metrics import find_protocol
from vitrail.metrics.protocol import AttributionQuery, Case, LogitQuery, Measured, TokenSubsetQuery


def case_of(image: Tensor, logits: Tensor, **known: Any) -> Case:
    """A case of patches of 4 pixels, unless something else is known, of the class that is predicted."""
    usual = {"target": int(logits.argmax()), "grid": (image.shape[-2] // 4, image.shape[-1] // 4), "prefix": 1}
    channels = (-1.0,) * image.shape[0]
    return Case(**({"index": 0, "source": "one", "image": image, "logits": logits, "black": channels} | usual | known))


def drive(
    name: str,
    case: Case,
    scores: Tensor,
    model: Callable[[Tensor], Tensor] | None = None,
    *,
    tokens: Callable[[Tensor, Tensor], Tensor] | None = None,
    maps: Callable[[Tensor, list[int]], Tensor] | None = None,
    batch: int = 16,
    **options: Any,
) -> list[Measured]:
    """What the protocol measures; `model` answers images, `tokens` (image, patches), `maps` (images, a target each)."""
    evaluation = find_protocol(name, options).function(case, scores, **options)
    try:
        question = next(evaluation)
        while True:
            if isinstance(question, LogitQuery):
                rows = [range(k, min(k + batch, question.count)) for k in range(0, question.count, batch)]
                assert model is not None
                with torch.no_grad():
                    answer = torch.cat([model(question.make(some)) for some in rows])
            elif isinstance(question, TokenSubsetQuery):
                assert tokens is not None
                answer = tokens(question.image, question.patches)
            else:
                assert isinstance(question, AttributionQuery)
                assert maps is not None
                answer = maps(question.images, list(question.targets))
            question = evaluation.send(answer)
    except StopIteration as finished:
        return finished.value


def by_measure(measured: list[Measured]) -> dict[str, list[float]]:
    """The values of each measure in the order of its steps."""
    found: dict[str, list[float]] = {}
    for measure, _, value in measured:
        found.setdefault(measure, []).append(value)
    return found
