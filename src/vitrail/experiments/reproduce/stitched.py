"""Photographs beside a guide picture: the whole stitched input under the positive, complete and absolute gradient."""

from typing import Any

from ...explain import explain
from ...explanation import Explanation
from ...guidance.guide import Guide
from ...guidance.stitching import Box
from .gradients import EQUATIONS
from .registry import Question, register_experiment

__all__ = ["stitched"]


@register_experiment(
    "stitched", wants="images; --target once, or once per image; --guide PICTURE, or auto", takes=("guide",)
)
def stitched(question: Question) -> list[dict[str, Any]]:
    """Each photograph stitched to a guide of another class, and where the signed map puts for and against."""
    guide = Guide(question.guide or "auto")
    targets: Any = question.one_per_image()
    columns: list[Explanation] = []
    shares: dict[str, list[dict[str, float]]] = {}
    for method, name in EQUATIONS.items():
        ex = explain(question.model, list(question.images), targets, method=method, guide=guide, **question.options)
        (whole, *_) = ex.guided
        columns.append(whole)
        shares[name] = [_signs(whole, number) for number in range(len(whole))]
    own, far = (_mean(shares["complete"], key) for key in ("own half above zero", "guide half below zero"))
    note = (
        f"Complete gradient: {own:.0%} of the patches of the photographs' own half are above zero, "
        f"{far:.0%} of the guide's half below."
    )
    file = question.draw(columns, "stitched", [note.replace("%", " %")])
    return [
        {
            "file": str(file),
            "images": [str(path) for path in question.images],
            "targets": columns[0].target.tolist(),
            "guides": [facts["class_name"] for facts in columns[0].metadata["guides"]],
            "shares": shares,
        }
    ]


def _signs(whole: Explanation, number: int) -> dict[str, float]:
    """Shares of patches by sign in the two halves of a stitched map."""
    stitch, scores = whole.metadata["stitch"], whole.map(number)
    own, far = scores[Box(**stitch["shown"]).slices()], scores[Box(**stitch["guide"]).slices()]
    return {
        "own half above zero": float((own > 0).float().mean()),
        "guide half below zero": float((far < 0).float().mean()),
    }


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)
