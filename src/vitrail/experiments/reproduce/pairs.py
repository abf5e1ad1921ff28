"""Detail interpretation: the top classes of one image against one another under Eq. 8."""

from typing import Any

from ...guidance.detail import detail
from .registry import Question, register_experiment

__all__ = ["pairs"]

EQ_8 = "normalized_difference"


@register_experiment("pairs", wants="images of one object; --target and --against, or the three best classes")
def pairs(question: Question) -> list[dict[str, Any]]:
    """Every pair of an image's best classes, both ways, under Eq. 8: the details that tell them apart."""
    results = []
    for path in question.images:
        target = question.targets[0] if question.targets else None
        others = list(question.targets[1:] + question.against) or None
        found = detail(question.model, path, target, others, losses=[EQ_8], **question.options)
        back = [found.reversal(EQ_8, *pair) for pair in found.pairs]
        note = "Correlation of each map with that of the reverse question: " + ", ".join(f"{r:+.2f}" for r in back)
        file = question.draw(found.maps[EQ_8], f"pairs.{path.stem}", [note.replace("-", "−") + "."])
        results.append({"file": str(file), "image": str(path), "pairs": list(found.pairs), "reversal": back})
    return results
