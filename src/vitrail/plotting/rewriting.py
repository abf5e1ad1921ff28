"""The picture of a rewriting: photograph, rewritten, their difference, both probabilities, and the maps of both."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from ..explanation import Explanation
from ..outputs import percent
from .canvas import FRAME, INK, PALE, axes_at, blank, pixels, show, write
from .figure import FOOT, GAP, MARGIN, SIDE, WIDEST, explained
from .overlay import AGAINST, FOR, resize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..counterfactual.rewrite_result import Rewrite

__all__ = ["amplified", "draw_rewrite"]

HEAD, LINE = 0.36, 0.3  # above each panel; of the headline
FACTORS = (100, 50, 20, 10, 5, 2, 1)
CLIPPED = 0.002  # the share of levels that the amplified difference may clip, so that one pixel does not decide it


def draw_rewrite(result: "Rewrite") -> "Figure":
    """Draws a rewriting: above the two pictures, their difference and the curves, below the signed maps.

    The maps of source and target before come first, then those after; without maps the lower row is left out.
    """
    high, wide = result.original.shape[:2]
    column = min(max(SIDE * wide / high, 2.4), WIDEST)
    photo = column * high / wide if SIDE * wide / high >= 2.4 else SIDE
    maps = [ex for ex in (result.before, result.after) if ex is not None]
    lower = _lower(maps, column)
    width = 2 * MARGIN + 4 * column + 3 * GAP
    height = MARGIN + LINE + HEAD + photo + 0.5 + (HEAD + lower[1] + FOOT if maps else 0) + MARGIN / 2
    figure = blank(width, height)
    y = height - MARGIN / 2 - LINE
    write(figure, MARGIN, y + 0.06, result.summary(), width=width - 2 * MARGIN, size=12.5, weight="bold", color=INK)
    y -= HEAD + photo
    across = [MARGIN + i * (column + GAP) for i in range(4)]
    panel = min(column, photo * wide / high)
    difference, factor = amplified(result.original, result.picture)
    _picture(figure, result.original, (across[0], y, panel, photo), _verdict(result, 0), "the photograph")
    rewritten = f"rewritten · {wide} × {high} pixels, 8 bits, read back"
    _picture(figure, result.picture, (across[1], y, panel, photo), _verdict(result, result.step), rewritten)
    much = f"L∞ {round(255 * result.similarity.linf)}/255 · L2 {result.similarity.l2:.2f}"
    alike = f"{much} · PSNR {result.similarity.psnr:.1f} dB · SSIM {result.similarity.ssim:.4f}"
    _picture(figure, difference, (across[2], y, panel, photo), f"difference × {factor}, grey: unchanged", alike)
    _curves(figure, result, (across[3] + 0.42, y + 0.02, column - 0.46, photo - 0.02))
    if maps:
        y -= 0.5 + HEAD + lower[1]
        for i, (ex, when) in enumerate(zip(maps, ("before", "after"), strict=True)):
            for target in range(ex.targets):
                x = across[2 * i + target]
                explained(figure, ex, 0, target, (x, y, *lower), opacity=1.0, smooth=True, limit=None)
                write(figure, x + lower[0], y + lower[1] + 0.09, when, width=0.8, size=8.0, ha="right", color=PALE)
    return figure


def amplified(
    one: UInt8[np.ndarray, "height width 3"], other: UInt8[np.ndarray, "height width 3"]
) -> tuple[UInt8[np.ndarray, "height width 3"], int]:
    """Returns the difference of two pictures, times a round factor, around middle grey; and that factor.

    Example:
        >>> grey = np.full((2, 2, 3), 100, dtype=np.uint8)
        >>> picture, factor = amplified(grey, grey + np.uint8(3))
        >>> factor, picture[0, 0].tolist()
        (20, [188, 188, 188])
    """
    change = other.astype(np.float64) - one
    most = float(np.quantile(np.abs(change), 1 - CLIPPED))
    factor = next((factor for factor in FACTORS if factor * most <= 127), 1)
    return np.rint(np.clip(127.5 + factor * change, 0, 255)).astype(np.uint8), factor


def _lower(maps: list[Explanation], column: float) -> tuple[float, float]:
    if not maps:
        return column, 0.0
    rows, cols = maps[0].grid if maps[0].images is None else maps[0].images.shape[1:3]
    high = min(column * rows / cols, SIDE)
    return high * cols / rows, high


def _picture(
    figure: "Figure",
    picture: UInt8[np.ndarray, "height width 3"],
    box: tuple[float, float, float, float],
    title: str,
    below: str,
) -> None:
    x, y, wide, high = box
    show(axes_at(figure, box), resize(picture, pixels(box)))
    write(figure, x, y + high + 0.09, title, width=wide, size=10.0, weight="bold", color=INK)
    write(figure, x, y - 0.185, below, width=wide, size=8.0, color=PALE)


def _verdict(result: "Rewrite", step: int) -> str:
    side = int(result.curves[step].argmax())
    return f"{result.names[side]} {percent(float(result.curves[step, side]))}"


def _curves(figure: "Figure", result: "Rewrite", box: tuple[float, float, float, float]) -> None:
    x, y, wide, high = box
    axes = axes_at(figure, box)
    steps = np.arange(len(result.curves))
    axes.axhline(result.until, color=PALE, linewidth=0.8, linestyle=(0, (4, 3)))
    for side, colour in ((0, AGAINST), (1, FOR)):
        axes.plot(steps, result.curves[:, side], color=colour, linewidth=1.8, solid_capstyle="round", clip_on=False)
    axes.plot([result.step], [result.probability], "o", color=FOR, markersize=5, clip_on=False)
    last = max(len(steps) - 1, 1)
    axes.set_xlim(0, last)
    axes.set_ylim(0, 1)
    axes.set_xticks([0, last], ["0", str(last)], fontsize=8, color=PALE)
    axes.set_yticks(
        [0, result.until, 1], ["0", percent(result.until).replace(".0 %", " %"), "1"], fontsize=8, color=PALE
    )
    axes.tick_params(length=2, color=FRAME)
    axes.spines[["top", "right"]].set_visible(False)
    write(figure, x + wide / 2, y - 0.185, "steps", width=wide, size=8.0, ha="center", color=PALE)
    half = wide / 2 - 0.05
    write(figure, x, y + high + 0.09, result.names[0], width=half, size=10.0, weight="bold", color=AGAINST)
    write(
        figure, x + wide, y + high + 0.09, result.names[1], width=half, size=10.0, weight="bold", color=FOR, ha="right"
    )
