"""The images on which a method did best and worst, with its maps: for the page, and as one figure."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ..evaluate.run_reader import EvaluationRun
from ..methods.registry import METHODS
from ..plotting.canvas import INK, PALE, axes_at, blank, number, pixels, show, signed_map, write
from ..plotting.overlay import colour, overlay, resize, sides, strength
from ..plotting.saving import picture_address
from .leaderboard import Board, Column, Entry
from .significance import per_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EncodedExample", "Extreme", "draw_gallery", "extremes", "picture_of"]

PAGE_SIDE = 208  # pixels on the page
SIDE, GAP, APART, NAMES, MARGIN = 1.15, 0.06, 0.22, 1.35, 0.18  # inches
HEAD, FOOT, TOP, NOTE = 0.2, 0.36, 0.34, 0.2
EACH = 2  # images on either side
MOST = 24  # methods; more would be a figure nobody prints


@dataclass(frozen=True, eq=False)
class Extreme:
    """An image of one entry: its value, and by how much that is better than the mean of the others on this image."""

    entry: Entry
    image: int
    value: float
    lead: float
    good: bool
    seen: UInt8[np.ndarray, "height width 3"]
    scores: Float[np.ndarray, "rows cols"]
    signed: bool
    title: str
    source: str


@dataclass(frozen=True)
class EncodedExample:
    """The same for a page: addresses that hold the pictures, the colours of the bar, and what to say."""

    seen: str
    map: str
    bar: str
    low: str
    high: str
    alt: str
    value: str
    lead: str
    title: str
    source: str


def extremes(
    runs: Sequence[EvaluationRun], board: Board, column: Column, count: int = 3
) -> Mapping[str, Mapping[str, list[Extreme]]]:
    """Returns for each entry the images, among those with stored maps, on which it is "best" and "worst".

    With several methods an image is good for one where it leads the mean of the others by most: that an image is easy,
    or the model wrong about it, is the same for all. A method alone is measured by its values.
    """
    values = {label: per_image(statistic) * (column.better or 1) for label, statistic in column.statistics.items()}
    rows = {image: row for row, image in enumerate(board.images)}
    found = {}
    for entry in board.entries:
        if entry.label not in values:
            continue
        run = runs[entry.run]
        leads = _lead(values, entry.label)
        kept = [(image, rows[source]) for image, source in run.sources().items() if image in run.pictures]
        known = [(image, leads[row], values[entry.label][row]) for image, row in kept if not math.isnan(leads[row])]
        order = sorted(known, key=lambda one: (-one[1], one[0]))
        half = min(count, len(order) // 2) if len(order) > 1 else len(order)
        sides = {"best": order[:half], "worst": order[len(order) - half :][::-1] if len(order) > 1 else []}
        found[entry.label] = {
            side: [
                extreme
                for image, lead, value in some
                if (extreme := _extreme(run, entry, image, value * (column.better or 1), lead, side == "best"))
            ]
            for side, some in sides.items()
        }
    return found


def _lead(values: Mapping[str, np.ndarray], label: str) -> np.ndarray:
    others = [own for name, own in values.items() if name != label]
    if not others:
        return values[label]
    table = np.stack([own for own in others if not np.isnan(own).all()] or [np.full(len(values[label]), np.nan)])
    known = ~np.isnan(table)
    # Where one of the others is missing the rest stand for it, each less its own level: a weak method that failed on
    # an image would else make the image look hard for all that are left.
    level = np.where(known, table, 0.0).sum(axis=1) / known.sum(axis=1).clip(min=1)
    count = known.sum(axis=0)
    apart = np.where(known, table - level[:, None], 0.0).sum(axis=0)
    return values[label] - np.divide(apart, count, out=np.full(len(count), np.nan), where=count > 0) - level.mean()


def _extreme(run: EvaluationRun, entry: Entry, image: int, value: float, lead: float, good: bool) -> Extreme | None:
    scores = run.map(image, entry.method)
    if scores is None:
        return None
    about = run.about[image]
    explained, true = _class(run, about.target), None if about.label is None else _class(run, about.label)
    known = METHODS.get(entry.method.partition(":")[0])
    signed = known.signed if known is not None else bool((scores < 0).any())
    return Extreme(
        entry=entry,
        image=image,
        value=value,
        lead=lead,
        good=good,
        seen=run.seen(image),
        scores=sides(scores.astype(np.float64), signed)[0],
        signed=signed,
        title=explained if true in (None, explained) else f"{explained} (truly {true})",
        source=about.source,
    )


def picture_of(extreme: Extreme, column: Column) -> EncodedExample:
    """Encodes an image and its map for a page; the bar has the colours that the map uses, and its true range."""
    scores, limit = extreme.scores, strength(extreme.scores)
    size = _size(extreme.seen)
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    stops = colour(np.linspace(low, high, 17) / limit) if limit else np.ones((2, 3))
    hexes = ["#" + "".join(f"{round(255 * part):02x}" for part in stop) for stop in stops.tolist()]
    kind = "signed map" if extreme.signed else "map"
    said = f"{kind} of {extreme.entry.label} for {extreme.title}, from {number(low)} to {number(high)}"
    return EncodedExample(
        seen=_jpeg(resize(extreme.seen, size)),
        map=_jpeg(overlay(scores, extreme.seen, size=size)),
        bar=", ".join(hexes),
        low=number(low, sign=extreme.signed) if limit else "no signal",
        high=number(high, sign=extreme.signed) if limit else "",
        alt=said,
        value=column.text(extreme.value),
        lead=column.text(extreme.lead, sign=True),
        title=extreme.title,
        source=extreme.source,
    )


def _size(seen: np.ndarray) -> tuple[int, int]:
    scale = PAGE_SIDE / max(seen.shape[:2])
    return max(round(seen.shape[0] * scale), 1), max(round(seen.shape[1] * scale), 1)


def _class(run: EvaluationRun, number_: int) -> str:
    names = run.class_names
    return names[number_] if 0 <= number_ < len(names) else f"class {number_}"


def _jpeg(rgb: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="jpeg", quality=90, subsampling=0)
    return picture_address(buffer.getvalue(), "jpeg")


def draw_gallery(found: Mapping[str, Mapping[str, list[Extreme]]], column: Column) -> "Figure":
    """Draws a row for each method: images where it is best on the left, worst on the right, each next to its map."""
    shown = [(label, both) for label, both in found.items() if any(both.values())]
    rows = shown[:MOST]
    pair = 2 * SIDE + GAP
    half = EACH * (pair + APART)
    width = 2 * MARGIN + NAMES + 2 * half
    row = HEAD + SIDE + FOOT
    figure = blank(width, 2 * MARGIN + TOP + row * len(rows) + NOTE)
    top = figure.get_size_inches()[1] - MARGIN - TOP
    for half_place, side in enumerate(("best", "worst")):
        x = MARGIN + NAMES + half_place * half
        write(figure, x, top + 0.1, side, width=half, size=11.0, weight="bold", color=INK)
    for place, (label, both) in enumerate(rows):
        y = top - (place + 1) * row + FOOT
        write(figure, MARGIN, y + SIDE / 2, label, width=NAMES - 0.1, size=10.0, weight="bold", color=INK)
        for half_place, side in enumerate(("best", "worst")):
            for k, one in enumerate(both[side][:EACH]):
                x = MARGIN + NAMES + half_place * half + k * (pair + APART)
                high = SIDE * min(one.seen.shape[0] / one.seen.shape[1], 1.0)
                box = (x, y, SIDE, high)
                show(axes_at(figure, box), resize(one.seen, pixels(box)))
                signed_map(figure, one.scores, one.seen, (x + SIDE + GAP, y, SIDE, high), signed=one.signed)
                write(figure, x, y + high + 0.06, one.title, width=pair, size=7.5, color=INK)
                write(figure, x, y - 0.16, column.text(one.value), width=SIDE, size=7.5, color=PALE)
    said = f"Below each picture: {column.title} of this image alone. Each map is scaled by its own largest |score|."
    if len(rows) < len(shown):
        said += f" The first {len(rows)} of {len(shown)} methods."
    write(figure, MARGIN, MARGIN, said, width=width - 2 * MARGIN, size=7.0, color=PALE)
    return figure
