"""Class rewriting: the pixels change unseen until the model names another class."""

from typing import Any

from ...counterfactual.rewrite import rewrite
from ...plotting.rewriting import draw_rewrite
from .registry import Question, needs, register_experiment

__all__ = ["rewriting"]

UNTIL = 0.938  # the probability that the paper reports


@register_experiment(
    "rewriting",
    wants="images; --target: the class to reach, --against: the one to leave; --until (0.938)",
    takes=("until",),
)
def rewriting(question: Question) -> list[dict[str, Any]]:
    """Before, after, the difference amplified, both probabilities by step, and the signed maps of both pictures."""
    target = question.target
    if target is None or len(question.targets) > 1:
        needs(False, "rewriting needs the one class that shall be reached: name it with targets=")
        return []
    results = []
    for path in question.images:
        found = rewrite(
            question.model,
            path,
            target=target,
            source=question.against[0] if question.against else None,
            until=UNTIL if question.until is None else question.until,
            progress=lambda now, path=path: question.report(f"{path.name}, {now.target:.3f}", now.step, now.steps),
            **question.options,
        )
        file = question.save(draw_rewrite(found), f"rewriting.{path.stem}")
        written = found.save(question.output / f"rewriting.{path.stem}.rewritten.png")
        results.append({"file": str(file), "image": str(path), "rewritten": str(written), **found.record()})
    return results
