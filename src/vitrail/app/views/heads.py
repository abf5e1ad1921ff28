"""Every head of every block: GMAR's weight as a heat table, and the map that one head adds."""

from html import escape

import numpy as np

from ...plotting.canvas import number
from ...plotting.overlay import LUMA
from ...shares import HeadShares, head_shares
from ..exports import Answer, files_of
from ..fragments import bar, css, glass, opacity, panel, question, section
from .asking import Asked
from .map import how

__all__ = ["draw_heads"]

LEAD = (
    "How much of a block's gradient each head carries (GMAR's weights, in per cent of the block). Choose one to see "
    "what it alone adds to the map; all heads of all blocks together add up to the whole map."
)
PALE, DEEP = np.array([0.98, 0.97, 0.94]), np.array([0.52, 0.37, 0.05])


def draw_heads(asked: Asked) -> Answer:
    """The table of weights, layers by heads, and the share of the head that is chosen; the strongest to begin with."""
    found = head_shares(asked.model, asked.seen.tensor, asked.target, against=asked.against, gradient=asked.mode)
    layers, heads = found.weights.shape
    strongest = int(found.scores.abs().sum(dim=(2, 3)).argmax())
    layer, head = divmod(strongest, heads)
    if asked.question.layer is not None and asked.question.head is not None:
        layer, head = min(asked.question.layer, layers - 1), min(asked.question.head, heads - 1)
    ex = asked.named(found.explanation)
    whole = panel(asked.photo, asked.seen.shown, ex, title=question(ex), below="the whole map · " + how(ex) + opacity())
    scores = found.scores[layer, head].numpy(force=True).astype(np.float64)
    total = float(found.scores.abs().sum())
    share = float(np.abs(scores).sum()) / total if total else 0.0
    one = (
        f'<figure class="vt-panel"><figcaption>block {layer + 1}, head {head + 1} alone</figcaption>'
        f"{glass(asked.photo, scores, asked.seen.shown, alt=f'what head {head + 1} of block {layer + 1} adds')}"
        f'{bar(scores, signed=True)}<p class="vt-below">{100 * share:.1f} % of all that the heads add, counted without '
        f"sign; sums to {escape(number(float(scores.sum()), sign=True))}</p></figure>"
    )
    table, both = _table(found, layer, head), section(whole, one, kind="vt-large")
    html = f'<p class="vt-lead">{LEAD}</p>{table}{both}'
    return Answer(html, files_of(ex), "heads", {"layer": layer, "head": head})


def _luminance(tint: np.ndarray) -> float:
    """The relative luminance of an sRGB colour, as contrast is reckoned with."""
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
