"""The first view: the picture, the signed map over it, and, where a patch was clicked on, what its token attends to."""

from html import escape

from ...explanation import Explanation
from ...plotting.canvas import number
from ...plotting.figure import draw, method_words
from ..exports import Answer, files_of
from ..fragments import grid, notes, opacity, panel, picture, scores_of, section
from .asking import Asked

__all__ = ["draw_map", "how", "patch_grid", "token"]


INVITE = (
    '<span class="vt-invite" aria-hidden="true"><span class="vt-mouse">Click</span><span class="vt-touch">Tap</span> '
    "any patch</span>"
)


def draw_map(asked: Asked) -> Answer:
    """The map of the question beside the picture.

    Raises:
        VitrailError: whatever `vitrail.explain` raises.
    """
    ex = asked.explain()
    shown = asked.seen.shown
    rows, cols = patch_grid(ex)
    pointed = f"{grid(scores_of(ex), rows, cols)}{_chosen(asked)} tabindex='0' role='application' " + (
        'aria-label="Signed map. Arrow keys move over the patches, Enter asks what one attends to, Escape drops it."'
    )
    panels = [
        picture(asked.photo, shown.shape[:2], "what the model saw", escape(asked.picture.name), alt="the picture"),
        panel(
            asked.photo,
            shown,
            ex,
            below=how(ex) + opacity(),
            attributes=pointed,
            inside="" if _chosen(asked) else INVITE,
        ),
    ]
    explanations = [ex]
    if asked.question.row is not None and asked.question.col is not None:
        read = token(asked, ex)
        explanations.append(read)
        panels.append(_token_panel(asked, ex, read))
    html = section(*panels, kind="vt-large") + notes(ex)
    return Answer(html, files_of(ex, lambda: draw(explanations)), "map", {"gradient": ex.gradient_mode() or "full"})


def patch_grid(ex: Explanation) -> tuple[int, int]:
    """Rows and columns of the model's patches, also for methods that score pixels."""
    rows, cols = ex.metadata.get("grid") or ex.grid
    return int(rows), int(cols)


def token(asked: Asked, ex: Explanation) -> Explanation:
    """What the token of the clicked patch attends to: the same relevance, read from that token's row.

    Raises:
        LayoutError: for a patch outside the grid.
    """
    row, col = asked.question.row, asked.question.col
    return asked.explain("complete", readout=(row, col), gradient=ex.gradient_mode() or "full")


def _token_panel(asked: Asked, ex: Explanation, read: Explanation) -> str:
    row, col = asked.question.row, asked.question.col
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
    return panel(asked.photo, asked.seen.shown, read, title=title, below=below, attributes=_mark(row, col, rows, cols))


def _chosen(asked: Asked) -> str:
    row, col = asked.question.row, asked.question.col
    return "" if row is None or col is None else f' data-row="{row}" data-col="{col}"'


def _mark(row: int, col: int, rows: int, cols: int) -> str:
    return f' data-rows="{rows}" data-cols="{cols}" data-row="{row}" data-col="{col}" data-still="1"'


def how(ex: Explanation) -> str:
    """The method and its settings, in a line, and what was subtracted, in another."""
    return escape(method_words(ex)) + (f"<br>{escape(ex.competition_words())}" if ex.competes else "")
