"""Cases made of tensors, and a plain runner for protocols: one case at a time, one pass per question."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.metrics import find_protocol
from vitrail.metrics.aggregation import Curves, Statistic
from vitrail.metrics.protocol import AttributionQuery, Case, Measured


def case(image: Tensor | None = None, **known: Any) -> Case:
    """A case of a model with two classes and 4 × 4 patches; what is known is given by name."""
    facts: dict[str, Any] = {
        "index": 0,
        "source": "one",
        "image": torch.zeros(3, 16, 16) if image is None else image,
        "logits": torch.tensor([0.0, 1.0]),
        "target": 1,
        "grid": (4, 4),
        "prefix": 1,
        "black": (-1.0, -1.0, -1.0),
    }
    return Case(**(facts | known))


def ask(
    protocol: str,
    one: Case,
    scores: Tensor,
    explain: Callable[[AttributionQuery], Tensor | Exception] | None = None,
    **options: Any,
) -> list[Measured]:
    """What the protocol measures; `explain` answers its questions for maps, and an error is thrown into it."""
    evaluation = find_protocol(protocol, options).function(one, scores, **options)
    answer: Tensor | Exception | None = None
    while True:
        try:
            question = evaluation.throw(answer) if isinstance(answer, Exception) else evaluation.send(answer)
        except StopIteration as end:
            return end.value
        assert isinstance(question, AttributionQuery), "this runner answers with maps alone"
        assert len(question.images) == len(question.targets)
        assert explain is not None, f"{protocol} asked for maps"
        answer = explain(question)


def summary(protocol: str, found: Iterable[list[Measured]], **options: Any) -> Mapping[str, Statistic]:
    """The protocol's summary of what was measured of several images."""
    rows = [{(one.measure, one.step): one.value for one in measured} for measured in found]
    keys = list(rows[0])
    steps = {measure: tuple(step for name, step in keys if name == measure) for measure, _ in keys}
    values = {measure: np.array([[row[measure, step] for step in steps[measure]] for row in rows]) for measure in steps}
    return find_protocol(protocol, options).summarise(Curves(np.arange(len(rows)), steps, values), **options)
