"""The qualitative comparison: every method that depends on the class, side by side."""

from typing import Any

from ...explain import explain
from ...methods import list_methods
from .registry import Question, register_experiment

__all__ = ["methods"]


@register_experiment("methods", figure=13, wants="images; --target once, or once per image")
def methods(question: Question) -> list[dict[str, Any]]:
    """All class-aware methods side by side, one row per image (Fig. 13); rollout, which knows no class, is left out."""
    targets: Any = list(question.targets) or None
    if targets and len(targets) == 1:
        targets *= len(question.images)
    names = [info.name for info in list_methods() if info.class_specific and info.level == "patch"]
    columns = [explain(question.model, list(question.images), targets, method=name) for name in names]
    file = question.draw(columns, "methods")
    return [{"file": str(file), "images": [str(path) for path in question.images], "methods": names}]
