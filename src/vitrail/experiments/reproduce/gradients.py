"""Positive, complete and absolute gradient (Eq. 4, 5, 6) side by side, one row per class of the image."""

from itertools import combinations
from typing import Any

import torch

from ...explain import explain
from ...explanation import Explanation
from .registry import Question, needs, register_experiment

__all__ = ["gradients"]

EQUATIONS = {"gae": "positive", "complete": "complete", "absolute": "absolute"}


@register_experiment("gradients", wants="images; --target twice or more, or the two best classes")
def gradients(question: Question) -> list[dict[str, Any]]:
    """The positive, complete and absolute gradient of each class: the sign separates the classes, |∇A| does not."""
    needs(len(question.targets) != 1, "gradients compares classes: name two or more, or none for the two best")
    named = set(question.targets)
    needs(len(named) == len(question.targets), "gradients compares classes, but one is named twice: name each once")
    results = []
    for path in question.images:
        targets = list(question.targets) or _best(question, path)
        columns = [
            explain(question.model, [path] * len(targets), targets, method=method, **question.options)
            for method in EQUATIONS
        ]
        alike = {ex.method: correlations(ex) for ex in columns}
        words = ", ".join(f"{EQUATIONS[name]} {sum(found) / len(found):+.2f}" for name, found in alike.items())
        note = f"Mean correlation between the maps of different classes: {words}.".replace("-", "−")
        file = question.draw(columns, f"gradients.{path.stem}", [note])
        results.append({"file": str(file), "image": str(path), "targets": targets, "correlation": alike})
    return results


def correlations(ex: Explanation) -> list[float]:
    """Pearson's correlation between the maps of every two rows of an explanation."""
    return [
        float(torch.corrcoef(torch.stack([ex.map(i).flatten(), ex.map(j).flatten()]).double())[0, 1])
        for i, j in combinations(range(len(ex)), 2)
    ]


def _best(question: Question, path: Any) -> list[int]:
    return explain(question.model, path, method="raw").logits[0].topk(2).indices.tolist()
