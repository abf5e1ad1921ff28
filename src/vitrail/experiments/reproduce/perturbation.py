"""The paper's perturbation curves on stitched photographs, with the controls that tell what they show (Fig. 12)."""

from collections import defaultdict
from typing import Any

import torch

from ...errors import ImageError
from ...evaluate.perturbation import SHARES
from ...explain import explain
from ...images import read_image
from ...metrics.aggregation import bootstrap
from ...plotting.perturbation import CurveSet, Drawn, draw_perturbation
from ..labels import evenly, labels_by_name, labels_in_table
from ..stitched_perturbation import CONTROL, MAPS, RANDOM, REGIONS, WAYS, Curve, areas, curves_of, stitch_pictures
from ..stitched_perturbation import stitched_maps as maps_of
from .registry import Question, needs, register_experiment

__all__ = ["perturbation"]


@register_experiment(
    "perturbation",
    figure=12,
    wants="a folder of images; --guide PICTURE; --labels TABLE (else by folder or file name); --limit",
    takes=("guide", "labels", "limit"),
)
def perturbation(question: Question) -> list[dict[str, Any]]:
    """Positive and negative perturbation of photographs stitched to a guide: complete against GAE, and controls."""
    guide = question.guide
    if guide is None or guide == "auto":
        needs(False, "perturbation stitches photographs to a guide picture: give a file with guide=")
        return []
    model, beside = question.model, read_image(guide)
    guide_class = question.against[0] if question.against else _predicted(question, guide)
    labelled, how = _labelled(question)
    chosen = [(path, label) for path, label in labelled if label != guide_class]
    order = evenly([label for _, label in chosen])[: question.limit]
    needs(bool(order), f"no image is left of a class other than the guide's, {model.class_name(guide_class)}")
    generator = torch.Generator().manual_seed(0)
    curves: dict[Curve, list[torch.Tensor]] = defaultdict(list)
    signs: dict[str, list[float]] = defaultdict(list)
    used: list[str] = []
    unread: dict[str, str] = {}
    example: Drawn | None = None
    for number, (path, label) in enumerate(chosen[place] for place in order):
        question.report("photographs", number, len(order))
        try:
            stitched = stitch_pictures(model, read_image(path), beside)
        except ImageError as error:
            unread[str(path)] = str(error)
            continue
        maps = maps_of(model, stitched, label, guide_class, question.options)
        for one, curve in curves_of(model, stitched, label, maps, generator=generator).items():
            curves[one].append(curve)
        for name, scores in maps.items():
            signs[f"{name}: own half above zero"].append(float((scores[stitched.own] > 0).double().mean()))
            signs[f"{name}: guide half below zero"].append(float((scores[stitched.far] < 0).double().mean()))
        used.append(str(path))
        example = example or Drawn(stitched.pixels, maps, (model.class_name(label), model.class_name(guide_class)))
    question.report("photographs", len(order), len(order))
    if example is None:
        needs(False, f"none of the {len(order)} images can be read")
        return []
    found = {one: areas(rows) for one, rows in curves.items()}
    drawn = [CurveSet(one, torch.stack(rows), bootstrap(found[one])) for one, rows in curves.items()]
    differences = _differences(found)
    words = f"{len(used)} photographs, labels {how}; guide: {model.class_name(guide_class)}"
    file = question.save(draw_perturbation(drawn, example, differences, words), "perturbation")
    return [
        {
            "file": str(file),
            "photographs": len(used),
            "labels": how,
            "guide": model.class_name(guide_class),
            "convention": "bi",
            "shares": [0.0, *SHARES],
            "areas": {_key(one): _told(values) for one, values in found.items()},
            "differences": {name: interval._asdict() for name, interval in differences.items()},
            "curves": {_key(one): torch.stack(rows).mean(dim=0).tolist() for one, rows in curves.items()},
            "signs": {name: sum(values) / len(values) for name, values in signs.items()},
            "images": used,
            "unread": unread,
        }
    ]


def _predicted(question: Question, picture: Any) -> int:
    return int(explain(question.model, picture, method="raw").logits[0].argmax())


def _labelled(question: Question) -> tuple[list[tuple[Any, int]], str]:
    """Every image with its class, and in words how that is known."""
    model, paths = question.model, question.images
    if question.labels is not None:
        table = labels_in_table(model, question.labels)
        found = [(path, table[path.name]) for path in paths if path.name in table]
        needs(bool(found), f"labels={question.labels} names none of the {len(paths)} images")
        return found, f"from {question.labels.name}"
    named = labels_by_name(model, paths)
    if named:
        return list(named.items()), "by folder or file name"
    return [(path, _predicted(question, path)) for path in paths], "as the model predicts them"


def _differences(found: dict[Curve, list[float]]) -> dict[str, Any]:
    """Complete less each of the others, photograph by photograph: what chance cannot have made."""
    best, *others = MAPS
    differences = {}
    for other in others:
        for region in REGIONS:
            for way in WAYS:
                pairs = zip(found[Curve(best, way, region)], found[Curve(other, way, region)], strict=True)
                name = f"{best} less {'the control ' if other == CONTROL else ''}{other}, {way}, {region}"
                differences[name] = bootstrap(one - two for one, two in pairs)
    return differences


def _key(one: Curve) -> str:
    return RANDOM if one.map == RANDOM else f"{one.map}, {one.way}, {one.region}"


def _told(values: list[float]) -> dict[str, float]:
    return dict(bootstrap(values)._asdict())
