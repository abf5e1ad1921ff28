"""Audits without a model: as many suspects as a test of the review page needs, written as an audit writes them."""

from pathlib import Path

import numpy as np
import torch
from app.conftest import encoded
from PIL import Image
from safetensors.torch import save_file

from vitrail.audit import Audit, ClassPair, LabelledImage, read_audit
from vitrail.audit.result import write_audit
from vitrail.bestiary import CLASS_NAMES, render, sample_scene

SPITEFUL = '<img src=x onerror="document.title=1">'  # a file name, and a class name
CLASSES = (*CLASS_NAMES, SPITEFUL)
SCENES = 6


def an_audit(folder: Path, suspects: int = 12, *, typical: int = 3, side: int = 96, multilabel: bool = False) -> Audit:
    """Suspects 0, 1, … are labelled with one class and suggested another; after them come the typical images.

    The first two are near duplicates of each other. With `multilabel` the label of suspect 0 may be missing, and that
    of suspect 1 one too many.
    """
    random = np.random.default_rng(0)
    count = len(CLASSES)
    scenes = [render(sample_scene("single", seed=number), side).image for number in range(SCENES)]
    photos = [encoded(np.roll(scene, 3 * shift, axis=1), "jpeg") for scene in scenes for shift in range(8)]
    thumbs, views = ([_smaller(scene, most) for scene in scenes] for most in (144, 224))
    ranked, tensors = [], {}

    def keep(name: str, content: bytes) -> None:
        tensors[name] = torch.frombuffer(bytearray(content), dtype=torch.uint8)

    for number in range(suspects):
        given, suggested = number % count, (number + 1 + number // count) % count
        labels = (given,)
        if multilabel and number < 2:
            given, suggested = (None, suggested) if number == 0 else (given, None)
        name = SPITEFUL if number == 2 else f"{number:04}.png"
        ranked.append(_labelled(number, name, labels, given, suggested, -1 + number / suspects, number < 2))
        keep(f"photo/{number}", photos[number % len(photos)])
        keep(f"view/{number}", views[number % SCENES])
        keep(f"thumb/{number}", thumbs[number % SCENES])
        classes = [index for index in (given, suggested) if index is not None]
        names = [f"single/{number}/{index}" for index in classes]
        names += [f"contrast/{number}/{classes[0]}/{classes[1]}"] if len(classes) == 2 else []
        tensors |= {one: torch.from_numpy(random.normal(size=(14, 14)).astype(np.float32)) for one in names}
    shown = {}
    for index in range(count):
        images = range(suspects + index * typical, suspects + (index + 1) * typical)
        shown[index] = tuple(images)
        for image in images:
            ranked.append(_labelled(image, f"typical-{image}.png", (index,), index, 0, 0.9, False))
            keep(f"thumb/{image}", thumbs[image % SCENES])
    tested, pairs = {}, []
    for other in (1, 2):
        tested[0, other] = shown[0]
        for image in shown[0]:
            for name in (f"typical/{image}/0", f"contrast/{image}/0/{other}"):
                tensors[name] = torch.from_numpy(random.normal(size=(14, 14)).astype(np.float32))
        numbers = {"share": 0.75, "low": 0.4, "high": 0.9, "p": 0.1, "adjusted": 0.2, "balance": -0.2, "margin": 1.5}
        pairs.append(ClassPair(0, other, len(shown[0]), **numbers, joint=0.01))
    about = {"model": "none", "class_names": list(CLASSES), "classes": count, "data": "nothing", "method": "complete"}
    about |= {"images": len(ranked), "folds": None, "suspects": suspects, "maps": "maps/test"}
    about |= {"output": "multilabel" if multilabel else "logits"}
    (folder / "maps/test/maps").mkdir(parents=True)
    save_file(tensors, folder / "maps/test/maps/block-000000.safetensors")
    write_audit(folder, ranked, pairs, tested, shown, about, ["one note"])
    return read_audit(folder)


def _smaller(scene: np.ndarray, most: int) -> bytes:
    size = min(most, len(scene))
    return encoded(np.asarray(Image.fromarray(scene).resize((size, size))), "jpeg")


def _labelled(
    image: int, name: str, labels: tuple[int, ...], given: int | None, suggested: int | None, margin: float, twin: bool
) -> LabelledImage:
    return LabelledImage(
        image=image,
        source=name,
        labels=labels,
        given=given,
        suggested=suggested,
        margin=margin,
        self_confidence=0.1,
        p_given=0.03,
        p_suggested=0.91,
        issue=image % 2 == 0,
        group=0 if twin else None,
    )
