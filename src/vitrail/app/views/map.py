"""The views of one map: the signed map with a clicked patch, its growth over the blocks, and each head's share."""

from html import escape

import numpy as np

from ...explanation import Explanation
from ...plotting.canvas import number
from ...plotting.figure import draw, method_words
from ...plotting.overlay import LUMA, strength
from ...shares import HeadShares, head_shares
from ..exports import ViewResult, files_of
from ..fragments import (
    bar,
    css,
    curves,
    film,
    glass,
    grid,
    notes,
    opacity,
    panel,
    picture,
    player,
    question,
    scores_of,
    section,
)
from ..question import ViewContext

__all__ = ["draw_heads", "draw_layers", "draw_map", "how", "patch_grid", "token"]

INVITE = (
    '<span class="vt-invite" aria-hidden="true"><span class="vt-mouse">Click</span><span class="vt-touch">Tap</span> '
    "any patch</span>"
)


def draw_map(context: ViewContext) -> ViewResult:
    """Draws the map of the question next to the image.

    Raises:
        VitrailError: whatever `vitrail.explain` raises.
    """
    ex = context.map()
    shown = context.seen.shown
    rows, cols = patch_grid(ex)
    patch = tuple(side // count for side, count in zip(context.seen.tensor.shape[-2:], (rows, cols), strict=True))
    pointed = f"{grid(scores_of(ex), rows, cols)}{_chosen(context)} tabindex='0' role='application' " + (
        'aria-label="Signed map. Arrow keys move over the patches, Enter asks what one attends to, Escape drops it."'
    )
    panels = [
        picture(context.photo, shown.shape[:2], "what the model saw", escape(context.picture.name), alt="the picture"),
        panel(
            context.photo,
            shown,
            ex,
            below=how(ex) + opacity(),
            attributes=pointed,
            inside="" if _chosen(context) else INVITE,
        ),
    ]
    explanations = [ex]
    if context.question.row is not None and context.question.col is not None:
        read = token(context, ex)
        explanations.append(read)
        panels.append(_token_panel(context, ex, read))
    html = section(*panels, kind="vt-large") + notes(ex)
    facts = {"gradient": ex.gradient_mode() or "full", "patch": patch}
    return ViewResult(html, files_of(ex, lambda: draw(explanations)), "map", facts)


def patch_grid(ex: Explanation) -> tuple[int, int]:
    """Returns rows and columns of the model's patches, also for methods that score pixels."""
    return ex.provenance.grid or ex.grid


def token(context: ViewContext, ex: Explanation) -> Explanation:
    """Explains the token of the clicked patch: the same relevance, read from that token's row.

    Raises:
        LayoutError: for a patch outside the grid.
    """
    row, col = context.question.row, context.question.col
    return context.explain("complete", readout=(row, col), gradient=ex.gradient_mode() or "full")


def _token_panel(context: ViewContext, ex: Explanation, read: Explanation) -> str:
    row, col = context.question.row, context.question.col
    assert row is not None
    assert col is not None
    rows, cols = patch_grid(ex)
    scores = scores_of(ex)
    tall, wide = scores.shape[0] // rows, scores.shape[1] // cols
    value = float(scores[row * tall : (row + 1) * tall, col * wide : (col + 1) * wide].mean())
    side = "for" if value > 0 else "against" if value < 0 else "neither for nor against"
    title = f"what row {row + 1}, column {col + 1} attends to"
    drop = '<button type="button" class="vt-button vt-drop-patch" data-drop>Drop the patch (Esc)</button>'
    below = f"This patch itself scores <b class='vt-{side}'>{number(value, sign=True)}</b>, {side} the class. {drop}"
    return panel(
        context.photo, context.seen.shown, read, title=title, below=below, attributes=_mark(row, col, rows, cols)
    )


def _chosen(context: ViewContext) -> str:
    row, col = context.question.row, context.question.col
    return "" if row is None or col is None else f' data-row="{row}" data-col="{col}"'


def _mark(row: int, col: int, rows: int, cols: int) -> str:
    return f' data-rows="{rows}" data-cols="{cols}" data-row="{row}" data-col="{col}" data-still="1"'


def how(ex: Explanation) -> str:
    """Returns the method and its settings, and on a second line what was subtracted."""
    return escape(method_words(ex)) + (f"<br>{escape(ex.competition_words())}" if ex.competes else "")


GROWTH = (
    "Relevance flows backward: it starts at the token that the head reads and each block adds its share. Move the "
    "slider to the left and see the map of the last blocks alone. One colour scale for all."
)


def draw_layers(context: ViewContext) -> ViewResult:
    """Draws the map of the complete method from every `start_layer` as a film, and its strength at each."""
    found = head_shares(
        context.model, context.seen.tensor, context.target, against=context.against, gradient=context.mode
    )
    ex = context.named(found.explanation)
    growth = found.growth().numpy(force=True).astype(np.float64)
    growth[0] = ex.map().numpy(force=True)  # the very map, where the sum of its parts is rounded
    layers = len(growth)
    order = list(range(layers - 1, -1, -1))
    limit = max(map(strength, growth)) or None
    words = [_words(layer, layers) for layer in order]
    pane = film(
        context.photo, context.seen.shown, [growth[layer] for layer in order], title=question(ex),
        alt="the map's growth", limit=limit, words=[f"{escape(word)} · {how(ex)}" for word in words],
    )  # fmt: skip
    added = [float(np.abs(found.scores[layer].sum(dim=0).numpy(force=True)).sum()) for layer in order]
    line = curves([("what the block adds, Σ|score|", "var(--vt-gold)", added)], marks=range(layers), low=0.0,
                  label="The share of each block, last to first", ends=("last block", "first"))  # fmt: skip
    slider = player(words, label="Blocks that take part", first=layers - 1)
    html = (
        f'<p class="vt-lead">{GROWTH}</p>{section(pane, line, slider, opacity(), kind="vt-large vt-film")}{notes(ex)}'
    )
    return ViewResult(html, files_of(ex), "layers")


def _words(layer: int, layers: int) -> str:
    if layer == layers - 1:
        return f"block {layers} alone"
    return f"blocks {layer + 1} to {layers}" if layer else f"all {layers} blocks"


WEIGHTS = (
    "How much of a block's gradient each head carries (GMAR's weights, in per cent of the block). Choose one to see "
    "what it alone adds to the map; all heads of all blocks together add up to the whole map."
)
PALE, DEEP = np.array([0.98, 0.97, 0.94]), np.array([0.52, 0.37, 0.05])


def draw_heads(context: ViewContext) -> ViewResult:
    """Draws the table of weights, layers by heads, and the share of the chosen head, at first the strongest."""
    found = head_shares(
        context.model, context.seen.tensor, context.target, against=context.against, gradient=context.mode
    )
    layers, heads = found.weights.shape
    strongest = int(found.scores.abs().sum(dim=(2, 3)).argmax())
    layer, head = divmod(strongest, heads)
    if context.question.layer is not None and context.question.head is not None:
        layer, head = min(context.question.layer, layers - 1), min(context.question.head, heads - 1)
    ex = context.named(found.explanation)
    whole = panel(
        context.photo, context.seen.shown, ex, title=question(ex), below="the whole map · " + how(ex) + opacity()
    )
    scores = found.scores[layer, head].numpy(force=True).astype(np.float64)
    total = float(found.scores.abs().sum())
    share = float(np.abs(scores).sum()) / total if total else 0.0
    one = (
        f'<figure class="vt-panel"><figcaption>block {layer + 1}, head {head + 1} alone</figcaption>'
        f"{glass(context.photo, scores, context.seen.shown, alt=f'what head {head + 1} of block {layer + 1} adds')}"
        f'{bar(scores, signed=True)}<p class="vt-below">{100 * share:.1f} % of all that the heads add, counted without '
        f"sign; sums to {escape(number(float(scores.sum()), sign=True))}</p></figure>"
    )
    table, both = _table(found, layer, head), section(whole, one, kind="vt-large")
    html = f'<p class="vt-lead">{WEIGHTS}</p><div class="vt-beside">{table}{both}</div>'
    return ViewResult(html, files_of(ex), "heads", {"layer": layer, "head": head})


def _luminance(tint: np.ndarray) -> float:
    """Returns the relative luminance of an sRGB colour, from which contrast is computed."""
    linear = np.where(tint <= 0.04045, tint / 12.92, ((tint + 0.055) / 1.055) ** 2.4)
    return float(linear @ LUMA)


def _table(found: HeadShares, layer: int, head: int) -> str:
    layers, heads = found.weights.shape
    least, most = float(found.weights.min()), float(found.weights.max())
    top = "".join(f'<th scope="col">{h + 1}</th>' for h in range(heads))
    rows = []
    for each in range(layers):
        cells = []
        for other in range(heads):
            weight = float(found.weights[each, other])
            tint = PALE + (DEEP - PALE) * (weight - least) / max(most - least, 1e-9)  # tells the heads apart
            ink = "#fff" if _luminance(tint) < 0.22 else "#000"  # 4.5 : 1 at least
            pressed = "true" if (each, other) == (layer, head) else "false"
            cells.append(
                f'<td><button type="button" data-pick="{each} {other}" aria-pressed="{pressed}" '
                f'style="background:{css(tint.tolist())};color:{ink}" '
                f'aria-label="block {each + 1}, head {other + 1}: {100 * weight:.0f} per cent">'
                f"{100 * weight:.0f}</button></td>"
            )
        rows.append(f'<tr><th scope="row">block {each + 1}</th>{"".join(cells)}</tr>')
    return (
        '<div class="vt-scroll"><table class="vt-heat"><caption class="vt-skip">Weights of the heads</caption>'
        f'<thead><tr><th scope="col">head</th>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
