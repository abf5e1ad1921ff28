"""A misread or mislabelled photograph: the two classes against each other beside typical pictures of the other one."""

from typing import Any

from ...guidance.detail import detail
from ...guidance.typical import typical_pictures
from ...plotting.class_pair import draw_pair
from .registry import Question, needs, register_experiment

__all__ = ["typical"]

EQ_8 = "normalized_difference"


@register_experiment("typical", figure=9, wants="one image; --target, --against, --typical FOLDER", takes=("typical",))
def typical(question: Question) -> list[dict[str, Any]]:
    """Two classes against each other under Eq. 8, and what the pictures of the opposing class look like (Fig. 9)."""
    folder = question.typical
    needs(bool(question.against), "typical compares two classes: name the opposing one with against=")
    if folder is None:
        needs(False, "typical shows pictures of the opposing class: give their folder with typical=")
        return []
    results = []
    for path in question.images:
        target = question.targets[0] if question.targets else None
        found = detail(question.model, path, target, list(question.against), losses=[EQ_8], **question.options)
        for pair in found.pairs:
            beside = typical_pictures(question.model, folder, pair)
            names = [question.model.class_name(index) for index in pair]
            name = f"typical.{path.stem}.{names[0]}-and-{names[1]}".replace(" ", "-")
            file = question.save(draw_pair(found, *pair, typical=beside), name)
            counts = {
                question.model.class_name(index): {
                    "pictures": len(pictures.pictures),
                    **{f"predicted {names[k]}": pictures.predicted_as(pair[k]) for k in (0, 1)},
                }
                for index, pictures in beside.items()
            }
            results.append({"file": str(file), "image": str(path), "pair": list(pair), "typical": counts})
    return results
