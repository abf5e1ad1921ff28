"""The paper's perturbation curves on stitched photographs, with the controls that tell what they show (Fig. 12).

The figure has one panel for each direction and region: accuracy over the share of patches removed.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..datasets.open import evenly
from ..errors import ExperimentError, ImageError, TargetError
from ..explain import explain
from ..images import read_image
from ..metrics.aggregation import Interval, bootstrap
from ..metrics.faithfulness.perturbation import SHARES
from ..models.vision_model import VisionModel
from ..plotting.canvas import FRAME, INK, PALE, Box, axes_at, blank, lines, pixels, show, signed_map, write, write_notes
from ..plotting.overlay import resize
from .registry import Question, needs, register_experiment
from .stitched_perturbation import (
    CONTROL,
    MAPS,
    RANDOM,
    REGIONS,
    WAYS,
    Curve,
    areas,
    curves_of,
    stitch_pictures,
    stitched_maps,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Block", "CurveSet", "Drawn", "draw_perturbation", "perturbation"]

MARGIN, GAP = 0.24, 0.3  # inches
SIDE, STEP = 1.55, 0.62  # the example's pictures, and the room below each
WIDE, HIGH, LEGEND = 2.9, 1.75, 2.0  # a panel, and the words next to it
AXIS, BELOW = 0.5, 0.52  # left of a panel and below it, for numbers
TITLE, HEAD = 0.34, 0.3
NOTE, NOTE_SIZE = 0.14, 7.0
RESAMPLES = 500

# Neither red nor blue, which are the maps'; apart in lightness as in hue.
COLOURS = {"complete": "#c77700", "gae": "#222222", CONTROL: "#2a8f6d", RANDOM: "#9a9a9a"}
TITLES = {
    "positive": "highest first, should fall soon",
    "negative": "lowest first, should hold",
}
PLACES = {
    REGIONS[0]: "any patch may go",
    REGIONS[1]: "control: the guide stays",
    REGIONS[2]: "control: the guide is all black",
}

PAPER_WAYS = tuple(reversed(WAYS))  # negative first
KEY = (
    "Each photograph is squashed to the left half beside the guide; patches go to black before normalisation; top-1 is "
    "the photograph's class. Area: trapezoid over 0, 10 … 90 and 100 %, where it is taken as 0. Bands and brackets: "
    "95 % bootstrap intervals over photographs."
)

# Column names of a table of labels, the first that is there counts.
FILES = ("file", "filename", "image", "path")
CLASSES = ("class_index", "index", "label", "class", "class_name", "name", "target")


@register_experiment(
    "perturbation",
    figures=(12,),
    wants="a folder of images; --guide PICTURE; --labels TABLE (else by folder or file name); --limit",
    takes=("guide", "labels", "limit", "models"),
)
def perturbation(question: Question) -> list[dict[str, Any]]:
    """Positive and negative perturbation of photographs stitched to a guide: complete against GAE, and controls."""
    guide = question.guide
    if guide is None or guide == "auto":
        raise ExperimentError("perturbation stitches photographs to a guide picture: give a file with guide=")
    guide_class = question.against[0] if question.against else _predicted(question, guide)
    labelled, how = _labelled(question)
    chosen = [(path, label) for path, label in labelled if label != guide_class]
    order = evenly([label for _, label in chosen])[: question.limit]
    name = question.model.class_name(guide_class)
    needs(bool(order), f"no image is left of a class other than the guide's, {name}")
    rows = [chosen[place] for place in order]
    blocks, results = [], []
    for model in question.models:
        block, numbers = _measure(question, model, rows, guide_class, read_image(guide))
        words = f"{model.name}: {numbers['photographs']} photographs, labels {how}; guide: {name}"
        blocks.append(replace(block, words=words))
        results.append({"model": model.name, "labels": how, "guide": name, **numbers})
    file = question.save(draw_perturbation(blocks), "perturbation")
    return [{"file": str(file), **one} for one in results]


def _measure(
    question: Question, model: VisionModel, rows: Sequence[tuple[Path, int]], guide_class: int, beside: Any
) -> tuple["Block", dict[str, Any]]:
    """Measures one model: what is drawn of it, and its numbers."""
    far = question.index_in(model, guide_class)
    generator = torch.Generator().manual_seed(0)
    curves: dict[Curve, list[torch.Tensor]] = defaultdict(list)
    signs: dict[str, list[float]] = defaultdict(list)
    used: list[str] = []
    unread: dict[str, str] = {}
    example: Drawn | None = None
    stage = "photographs" if not question.others else f"photographs for {model.name}"
    for number, (path, label) in enumerate(rows):
        question.report(stage, number, len(rows))
        try:
            stitched = stitch_pictures(model, read_image(path), beside)
        except ImageError as error:
            unread[str(path)] = str(error)
            continue
        own = question.index_in(model, label)
        maps = stitched_maps(model, stitched, own, far, question.options)
        for one, curve in curves_of(model, stitched, own, maps, generator=generator).items():
            curves[one].append(curve)
        for name, scores in maps.items():
            signs[f"{name}: own half above zero"].append(float((scores[stitched.own] > 0).double().mean()))
            signs[f"{name}: guide half below zero"].append(float((scores[stitched.far] < 0).double().mean()))
        used.append(str(path))
        names = (model.class_name(own), model.class_name(far))
        example = example or Drawn(stitched.pixels, maps, names, model.name)
    question.report(stage, len(rows), len(rows))
    if example is None:
        raise ExperimentError(f"none of the {len(rows)} images can be read")
    found = {one: areas(values) for one, values in curves.items()}
    drawn = [CurveSet(one, torch.stack(values), bootstrap(found[one])) for one, values in curves.items()]
    differences = _differences(found)
    return Block(drawn, example, differences, ""), {
        "photographs": len(used),
        "convention": "bi",
        "shares": [0.0, *SHARES],
        "areas": {_key(one): _told(values) for one, values in found.items()},
        "differences": {name: interval._asdict() for name, interval in differences.items()},
        "curves": {_key(one): torch.stack(values).mean(dim=0).tolist() for one, values in curves.items()},
        "signs": {name: sum(values) / len(values) for name, values in signs.items()},
        "images": used,
        "unread": unread,
    }


def _predicted(question: Question, picture: Any) -> int:
    return int(explain(question.model, picture, method="raw").logits[0].argmax())


def _labelled(question: Question) -> tuple[list[tuple[Any, int]], str]:
    """Returns every image with its class, and in words how that is known."""
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


def labels_in_table(model: VisionModel, table: Path) -> dict[str, int]:
    """Returns file names and class indices of a CSV table, whose header names a file column and a class column.

    Classes are indices or names; of several rows of one file the first counts.

    Raises:
        ExperimentError: when the table cannot be read or has no such columns.
        TargetError: for a class that is not the model's.
    """
    try:
        with table.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExperimentError(f"labels={table} cannot be read: {error}") from error
    header = list(rows[0]) if rows else []
    file = next((name for name in FILES if name in header), None)
    kind = next((name for name in CLASSES if name in header), None)
    if file is None or kind is None:
        raise ExperimentError(
            f"labels={table} needs a column for the file ({', '.join(FILES)}) and one for the class "
            f"({', '.join(CLASSES)}); it has {', '.join(map(str, header)) or 'no row'}"
        )
    found: dict[str, int] = {}
    for row in rows:
        word = (row[kind] or "").strip()
        found.setdefault(Path(row[file] or "").name, model.class_index(int(word) if word.isdecimal() else word))
    return found


def labels_by_name(model: VisionModel, paths: Sequence[Path]) -> dict[Path, int]:
    """Returns the class of each file whose folder, or whose own name, is that of one of the model's classes.

    A leading WordNet number is ignored, as in n02391049_zebra.JPEG.

    Example:
        >>> import torch, vitrail
        >>> model = vitrail.wrap(torch.nn.Identity(), class_names=("horse", "bald eagle"))
        >>> labels_by_name(model, [Path("horse/1.png"), Path("x/n01614925_bald_eagle.JPEG"), Path("x/y.png")])
        {PosixPath('horse/1.png'): 0, PosixPath('x/n01614925_bald_eagle.JPEG'): 1}
    """
    found = {}
    for path in paths:
        for name in (path.parent.name, path.stem):
            word = re.sub(r"^n\d{8}[_-]?", "", name).replace("_", " ")
            try:
                if word and not word.isdecimal():
                    found[path] = model.class_index(word)
                    break
            except TargetError:
                continue
    return found


def _differences(found: dict[Curve, list[float]]) -> dict[str, Any]:
    """Returns complete minus each of the others, paired by photograph, with intervals."""
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


@dataclass(frozen=True, eq=False)
class CurveSet:
    """The curves of all photographs under one ranking, and the mean area under them with its interval."""

    what: Curve
    hits: Float[Tensor, "photographs steps"]
    area: Interval


@dataclass(frozen=True, eq=False)
class Drawn:
    """An example next to the curves: pixels from 0 to 1, maps by name, the two classes, and the model."""

    pixels: Float[Tensor, "3 height width"]
    maps: Mapping[str, Float[Tensor, "rows cols"]]
    names: tuple[str, str]
    model: str


@dataclass(frozen=True, eq=False)
class Block:
    """What is drawn of one model; `differences` are paired, and stand in words below with `words`."""

    curves: Sequence[CurveSet]
    example: Drawn
    differences: Mapping[str, Interval]
    words: str


def draw_perturbation(blocks: Sequence[Block]) -> "Figure":
    """Draws a block for each model: an example on the left, a panel for each way and region next to it.

    The panels in which any patch may go are those of the paper, and lettered as there. Bands are 95 % bootstrap
    intervals of the mean over photographs.
    """
    panel = AXIS + WIDE + LEGEND
    width = 2 * MARGIN + SIDE + GAP + 2 * panel
    notes = [[line for note in _notes(one) for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)] for one in blocks]
    key = lines(KEY, width - 2 * MARGIN, NOTE_SIZE)
    row = HEAD + HIGH + BELOW
    tall = [TITLE + len(REGIONS) * row + NOTE * len(said) + MARGIN for said in notes]
    height = MARGIN / 2 + sum(tall) + NOTE * len(key) + MARGIN / 2
    figure = blank(width, height)
    limit = max(_top(one.curves) for one in blocks)
    bottom = height - MARGIN / 2
    for number, (block, said) in enumerate(zip(blocks, notes, strict=True)):
        top = bottom - TITLE
        bottom -= tall[number]
        for column, way in enumerate(PAPER_WAYS):
            x = MARGIN + SIDE + GAP + column * panel
            title = f"({'abcdefghijklmnopqrstuvwxyz'[(2 * number + column) % 26]}) {way} perturbation ({TITLES[way]})"
            write(figure, x + AXIS, top + 0.1, title, width=panel - AXIS - 0.1, size=11.0, weight="bold", color=INK)
            for place, region in enumerate(REGIONS):
                box = (x + AXIS, top - place * row - HEAD - HIGH, WIDE, HIGH)
                some = [one for one in block.curves if one.what.region == region and one.what.way in (way, RANDOM)]
                _panel(figure, some, box, PLACES[region], top=limit)
        _example(figure, block.example, top)
        for place, line in enumerate(reversed(said)):
            at = bottom + MARGIN + NOTE * place
            write(figure, MARGIN, at, line, width=width - 2 * MARGIN, size=NOTE_SIZE, smallest=5.0, color=PALE)
    write_notes(figure, key, margin=MARGIN, step=NOTE, size=NOTE_SIZE, smallest=5.0)
    return figure


def _top(curves: Sequence[CurveSet]) -> float:
    """Returns the end of the axis of all panels: one scale, so that they can be compared."""
    return min(1.0, max(0.1, *(_band(one.hits.double().numpy(force=True))[1].max() for one in curves)) * 1.05)


def _panel(figure: "Figure", curves: Sequence[CurveSet], box: Box, title: str, top: float) -> None:
    x, y, wide, high = box
    axes = axes_at(figure, box)
    shares = np.arange(curves[0].hits.shape[1]) / 10
    for one in curves:
        rows = one.hits.double().numpy(force=True)
        colour = COLOURS[one.what.map]
        style: dict[str, Any] = {"linestyle": (0, (1, 1.2))} if one.what.map == RANDOM else {}
        low, high_ = _band(rows)
        if one.what.map != RANDOM:
            axes.fill_between(shares, low, high_, color=colour, alpha=0.13, linewidth=0)
        axes.plot(shares, rows.mean(axis=0), color=colour, linewidth=1.7, **style)
    axes.set(xlim=(0, 0.9), ylim=(0, top))
    axes.set_xticks(np.arange(0, 10, 2) / 10, [f"{10 * tick} %" for tick in range(0, 10, 2)])
    step = 0.2 if top > 0.5 else 0.1 if top > 0.25 else 0.05
    ticks = np.arange(0, top + 1e-9, step)
    axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axes.tick_params(labelsize=7.5, colors=PALE, length=2.5, width=0.6)
    axes.grid(axis="y", color=FRAME, linewidth=0.4)
    axes.set_axisbelow(True)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    write(figure, x, y + high + 0.07, title, width=wide, size=8.5, color=INK)
    write(figure, x - 0.06, y + high + 0.07, "top-1", width=AXIS, size=7.5, ha="right", color=PALE)
    write(figure, x + wide / 2, y - 0.36, "patches removed", width=wide, size=7.5, ha="center", color=PALE)
    place = y + high - 0.14
    write(figure, x + wide + 0.12, place, "area under the curve", width=LEGEND - 0.2, size=7.5, color=PALE)
    for one in sorted(curves, key=lambda each: -each.area.mean):
        place -= 0.33
        style = {"width": LEGEND - 0.2, "color": COLOURS[one.what.map]}
        write(figure, x + wide + 0.12, place, one.what.map, size=8.5, weight="bold", **style)
        write(figure, x + wide + 0.12, place - 0.145, _words(one.area), size=8.0, **style)


def _example(figure: "Figure", example: Drawn, top: float) -> None:
    image = np.rint(255 * example.pixels.permute(1, 2, 0).numpy(force=True).clip(0, 1)).astype(np.uint8)
    high = SIDE * image.shape[0] / image.shape[1]
    y = top - HEAD - high
    box = (MARGIN, y, SIDE, high)
    show(axes_at(figure, box), resize(image, pixels(box)))
    write(figure, MARGIN, top + 0.1, example.model, width=SIDE, size=11.0, weight="bold", color=INK)
    write(figure, MARGIN, y + high + 0.07, f"{example.names[0]} beside {example.names[1]}", width=SIDE, size=8.5)
    for name in ("complete", "gae"):
        y -= high + STEP - 0.02 if name == "gae" else high + 0.3
        scores = example.maps[name].double().numpy(force=True)
        signed_map(figure, scores, image, (MARGIN, y, SIDE, high), signed=name == "complete")
        style = {"width": SIDE, "size": 8.5, "weight": "bold", "color": COLOURS[name]}
        write(figure, MARGIN, y + high + 0.07, name, **style)


def _band(rows: Float[np.ndarray, "photographs steps"]) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    low, high = np.quantile(rows[chosen].mean(axis=1), (0.025, 0.975), axis=0)
    return low, high


def _words(interval: Interval, *, sign: bool = False) -> str:
    form = "{:+.3f}" if sign else "{:.3f}"
    low, high = form.format(interval.low), form.format(interval.high)
    return f"{form.format(interval.mean)} [{low}, {high}]".replace("-", "−")


def _notes(block: Block) -> list[str]:
    said = "; ".join(f"{name} {_words(interval, sign=True)}" for name, interval in block.differences.items())
    return [f"{block.words}.", f"Paired differences of areas: {said}."]
