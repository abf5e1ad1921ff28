"""The picture of a transfer of attention: classes by steps, as in the paper, and the logits' curves below.

A class has one colour, in its curve and in its name over its maps; red and blue are kept for what the maps say.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError
from ..outputs import percent
from .canvas import FRAME, INK, PALE, Box, axes_at, blank, fitted, number, pixels, printable, show, signed_map, write
from .overlay import resize, strength

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..counterfactual.transfer_result import Transfer

__all__ = ["COLOURS", "course", "draw_frame", "draw_transfer", "standing"]

MARGIN, GAP, SIDE = 0.22, 0.14, 1.75  # inches: around the picture, between panels, the height of a panel
TOP, HEAD, FOOT = 0.26, 0.42, 0.42  # the line over all, the two over each panel, the bar and the range below it
CURVES, AXIS, NAMES, BELOW = 1.75, 0.42, 1.75, 0.66  # the curves' height; left, right and below, for what is written
LINE = 0.16  # the second of the two lines at the foot
WIDEST = 2.6  # a wider image gets a lower panel instead
USUAL, MOST = (0, 5, 10, 20, 50), 8  # the steps that are drawn, and how many, unless others are asked for

# Neither red nor blue, and as far apart in lightness as in hue.
COLOURS = ("#222222", "#c77700", "#2a8f6d", "#8456a8", "#8a8a8a")


def draw_transfer(
    result: "Transfer",
    *,
    steps: Sequence[int] | None = None,
    opacity: float | int = 1.0,
    smooth: bool = True,
    shared_scale: bool = False,
) -> "Figure":
    """Draws a row of maps for each class, a column for each step, and the logits over all steps below.

    `steps` are some of those at which maps were drawn; default: 0, 5, 10, 20, 50 and the last, where these are there.
    Each map is scaled by its own largest absolute score, unless `shared_scale` asks for one scale per class.

    Raises `OptionError` for steps without maps.
    """
    columns = _columns(result) if steps is None else list(dict.fromkeys(steps))
    if not columns:
        raise OptionError("a picture of no steps: name one or more of those at which maps were drawn")
    for step in columns:
        result.after(step)  # which refuses steps without maps
    wide, high = _panel(result)
    photograph = result.image is not None
    width = max(2 * MARGIN + (len(columns) + photograph) * (wide + GAP) - GAP, 5.5)
    row = HEAD + high + FOOT
    height = MARGIN + TOP + len(result.classes) * row + CURVES + BELOW + MARGIN
    figure = blank(width, height)
    top = height - MARGIN / 2 - TOP
    x = MARGIN
    if photograph:
        _photograph(figure, result, (x, top - HEAD - high, wide, high))
        x += wide + GAP
    for step in columns:
        write(figure, x, top + 0.07, f"step {step}", width=wide, size=11.0, color=INK)
        for place in range(len(result.classes)):
            box = (x, top - place * row - HEAD - high, wide, high)
            _map(figure, result, step, place, box, opacity=opacity, smooth=smooth, shared_scale=shared_scale)
        x += wide + GAP
    _curves(figure, result, (MARGIN + AXIS, MARGIN / 2 + BELOW, width - 2 * MARGIN - AXIS - NAMES, CURVES), columns)
    _foot(figure, result, width)
    return figure


def draw_frame(
    result: "Transfer", step: int, *, opacity: float | int = 1.0, smooth: bool = True, shared_scale: bool = False
) -> "Figure":
    """Draws one step as a frame of a film: the photograph, each class's map, and the curves as far as they have come.

    Raises `OptionError` for a step without maps.
    """
    result.after(step)
    wide, high = _panel(result)
    photograph = result.image is not None
    count = len(result.classes) + photograph
    width = max(2 * MARGIN + count * (wide + GAP) - GAP, 5.5)
    height = MARGIN + TOP + HEAD + high + FOOT + CURVES + BELOW + MARGIN
    figure = blank(width, height)
    top = height - MARGIN / 2 - TOP
    write(figure, MARGIN, top + 0.07, f"after {step} of {result.steps} steps", width=4.0, size=11.0, color=INK)
    x = MARGIN
    if photograph:
        _photograph(figure, result, (x, top - HEAD - high, wide, high))
        x += wide + GAP
    for place in range(len(result.classes)):
        box = (x, top - HEAD - high, wide, high)
        _map(figure, result, step, place, box, opacity=opacity, smooth=smooth, shared_scale=shared_scale)
        x += wide + GAP
    box = (MARGIN + AXIS, MARGIN / 2 + BELOW, width - 2 * MARGIN - AXIS - NAMES, CURVES)
    _curves(figure, result, box, [step], until=step)
    _foot(figure, result, width)
    return figure


def _columns(result: "Transfer") -> list[int]:
    usual = [step for step in result.snapshots if step in (*USUAL, result.steps)]
    if len(result.snapshots) <= MOST or len(usual) < 3:
        places = np.linspace(0, len(result.snapshots) - 1, min(len(result.snapshots), MOST - 2)).round().astype(int)
        usual = list(result.snapshots) if len(result.snapshots) <= MOST else [result.snapshots[i] for i in places]
    return usual


def _panel(result: "Transfer") -> tuple[float, float]:
    return fitted(result.maps.shape[-2:] if result.image is None else result.image.shape[:2], SIDE, 1.2, WIDEST)


def _photograph(figure: "Figure", result: "Transfer", box: Box) -> None:
    x, y, wide, high = box
    assert result.image is not None
    show(axes_at(figure, box), resize(result.image.numpy(force=True), pixels(box)))
    sources = result.metadata.get("sources") or [None]
    write(figure, x, y + high + 0.07, str(sources[0] or ""), width=wide, size=8.0, color=PALE)
    write(figure, x, y - 0.17, "what the model saw", width=wide, size=8.0, color=PALE)
    write(figure, x, y - 0.33, str(result.metadata.get("model") or ""), width=wide, size=8.0, smallest=5.0, color=PALE)


def _map(
    figure: "Figure",
    result: "Transfer",
    step: int,
    place: int,
    box: Box,
    *,
    opacity: float | int,
    smooth: bool,
    shared_scale: bool,
) -> None:
    x, y, wide, high = box
    scores = result.maps[result.snapshots.index(step), place].numpy(force=True).astype(np.float64)
    limit = max(map(strength, result.maps[:, place].numpy(force=True))) if shared_scale else None
    image = None if result.image is None else result.image.numpy(force=True)
    signed_map(figure, scores, image, box, opacity=opacity, smooth=smooth, limit=limit or None)
    index = result.classes[place]
    said = standing(result, index, step)
    style: dict[str, Any] = {"weight": "bold", "color": _colour(place)}
    write(figure, x, y + high + 0.22, result.class_name(index), width=wide, size=9.5, **style)
    write(figure, x, y + high + 0.07, said, width=wide, size=8.0, color=PALE)


def _curves(figure: "Figure", result: "Transfer", box: Box, marked: Sequence[int], until: int | None = None) -> None:
    """The logits of all classes over the steps, with a line at each step that is shown; named at their ends."""
    axes = axes_at(figure, box)
    last = result.steps if until is None else until
    curves = [result.curve(index).double().numpy(force=True) for index in result.classes]
    low, high = min(curve.min() for curve in curves), max(curve.max() for curve in curves)
    room = 0.08 * max(high - low, 1e-6)
    axes.set(xlim=(-0.02 * result.steps, 1.02 * result.steps), ylim=(low - room, high + room))
    axes.axhline(0, color=FRAME, linewidth=0.8)
    for step in marked:
        axes.axvline(step, color=FRAME, linewidth=0.8, linestyle=(0, (2, 2)))
    for place, curve in reversed(list(enumerate(curves))):
        axes.plot(range(last + 1), curve[: last + 1], color=_colour(place), linewidth=1.6, solid_capstyle="round")
        axes.plot(marked, curve[list(marked)], "o", color=_colour(place), markersize=3.5)
    axes.set_xticks(_whole_ticks(result.steps))
    axes.set_yticks(_nice_ticks(low, high))
    axes.tick_params(labelsize=7.5, colors=PALE, length=2.5, width=0.6)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    x, y, wide, tall = box
    write(
        figure, x - AXIS, y + tall + 0.05, "logit" if result.output.link else "score", width=1.0, size=8.0, color=PALE
    )
    write(figure, x + wide, y - 0.33, "steps", width=1.0, size=8.0, color=PALE, ha="right")
    _name_ends(figure, result, [curve[last] for curve in curves], box, axes.get_ylim())


def _name_ends(
    figure: "Figure", result: "Transfer", ends: Sequence[float], box: Box, limits: tuple[float, float]
) -> None:
    """The name and the logit of each curve next to its end, moved apart where two would overlap."""
    x, y, wide, tall = box
    line = 0.15
    places = sorted(range(len(ends)), key=lambda place: ends[place])
    heights: list[float] = []
    for place in places:
        wanted = y + tall * (ends[place] - limits[0]) / (limits[1] - limits[0]) - 0.04
        heights.append(max(wanted, heights[-1] + line) if heights else wanted)
    over = max(0.0, heights[-1] - (y + tall - 0.04))
    for place, height in zip(places, heights, strict=True):
        name, end = result.class_name(result.classes[place]), f" {number(float(ends[place]))}"
        style: dict[str, Any] = {"weight": "bold", "color": _colour(place)}
        write(figure, x + wide + 0.1, height - over, name, ending=end, width=NAMES - 0.1, size=8.5, **style)


def standing(result: "Transfer", index: int, step: int) -> str:
    """Returns a class's score after a step: "logit 3.41 · 82.1 %", or "score 3.41"."""
    share, value = result.probability(index, step), number(result.logits[step, index].item())
    return f"score {value}" if share is None else f"logit {value} · {percent(share)}"


def course(result: "Transfer", index: int) -> str:
    """Returns what became of a class's logit, in words: "tavel falls from 6.01 to 0.28"."""
    curve = result.curve(index).double()
    first, last = number(float(curve[0])), number(float(curve[-1]))
    if first == last:
        return f"{result.class_name(index)} stays at {first}"
    return f"{result.class_name(index)} {'rises' if curve[-1] > curve[0] else 'falls'} from {first} to {last}"


def _foot(figure: "Figure", result: "Transfer", width: float) -> None:
    """What happened to the logits, and how it was done, in two lines."""
    what = "Logits" if result.output.link else "Scores"
    told = f"{what}: {'; '.join(course(result, index) for index in result.classes)}."
    style: dict[str, Any] = {"width": width - 2 * MARGIN, "size": 7.5, "smallest": 5.0}
    write(figure, MARGIN, MARGIN / 2 + LINE, told, color=INK, **style)
    write(figure, MARGIN, MARGIN / 2, _how(result), color=PALE, **style)


def _how(result: "Transfer") -> str:
    """What was done, in a line."""
    optimiser = {"sgd": "plain SGD", "adam": "Adam"}.get(result.optimiser, result.optimiser)
    kept = {"none": "unconstrained", "clamp": "kept from below zero", "softmax": "kept distributions by a softmax"}
    held = kept.get(result.constraint, result.constraint)
    what = "logit" if result.output.link else "score"
    return printable(
        f"All attention maps as the only parameters, {held}; {result.steps} steps of {optimiser}, step size "
        f"{result.lr:g}, down the {what} of {result.class_name(result.target)}. Maps: complete gradient (Eq. 5)."
    )


def _colour(place: int) -> str:
    return COLOURS[min(place, len(COLOURS) - 1)]


def _whole_ticks(steps: int) -> list[int]:
    from matplotlib.ticker import MaxNLocator

    return [int(tick) for tick in MaxNLocator(10, integer=True).tick_values(0, steps) if 0 <= tick <= steps]


def _nice_ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
