"""The qualitative comparisons: methods side by side on several images."""

from typing import Any

from ...compare import compare
from ...plotting.comparison import draw_comparison
from .registry import Question, register_experiment

__all__ = ["comparison", "methods"]

WANTS = "images; --target once, or once per image; --methods"


@register_experiment("comparison", figure=10, wants=f"{WANTS} (default: fast)", takes=("methods",))
def comparison(question: Question) -> list[dict[str, Any]]:
    """Methods side by side on several images, one row each (Fig. 10), with the time and the passes that each took."""
    return _sheet(question, "comparison", question.methods or ("fast",))


@register_experiment("methods", figure=13, wants=f"{WANTS} (default: class)", takes=("methods",))
def methods(question: Question) -> list[dict[str, Any]]:
    """All class-aware methods side by side, one row per image (Fig. 13); rollout, which knows no class, is left out."""
    return _sheet(question, "methods", question.methods or ("class",))


def _sheet(question: Question, name: str, chosen: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    targets = question.one_per_image() or [None] * len(question.images)
    for path, target in zip(question.images, targets, strict=True):
        rows.append(
            compare(
                question.model,
                path,
                target,
                methods=chosen,
                progress=lambda label, done, total, path=path: question.report(f"{path.name}, {label}", done, total),
                **question.options,
            )
        )
    file = question.save(draw_comparison(rows), name)
    return [
        {
            "file": str(file),
            "images": [str(path) for path in question.images],
            "methods": [one.label for one in rows[0].answers],
            "failures": {label: str(error) for row in rows for label, error in row.failures.items()},
            "rows": [row.record() for row in rows],
        }
    ]
