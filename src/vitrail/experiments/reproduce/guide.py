"""External guidance on one picture: the map beside a guide, the map without one, and what was stitched."""

from typing import Any

from ...explain import explain
from ...guidance.guide import Guide
from ...plotting.guided import draw_guided
from .registry import Question, register_experiment

__all__ = ["guide"]


@register_experiment("guide", wants="images; --target; --guide PICTURE, or auto", takes=("guide",))
def guide(question: Question) -> list[dict[str, Any]]:
    """A photograph of one object, explained beside a guide and without one: blue leaves the object."""
    results = []
    given = Guide(question.guide or "auto")
    for path, target in zip(question.images, question.one_per_image() or [None] * len(question.images), strict=True):
        guided, alone = (
            explain(question.model, path, target, guide=steered, **question.options) for steered in (given, None)
        )
        file = question.save(draw_guided(guided, alone), f"guide.{path.stem}")
        positive = {name: float((ex.map() > 0).float().mean()) for name, ex in (("guided", guided), ("alone", alone))}
        results.append(
            {
                "file": str(file),
                "image": str(path),
                "target": int(guided.target[0]),
                "guides": guided.metadata["guides"][0],
                "share above zero": positive,
            }
        )
    return results
