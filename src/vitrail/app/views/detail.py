"""Class against class in detail: both questions, under each loss."""

from html import escape

from ...guidance.detail import detail
from ...objectives import OBJECTIVES
from ...plotting.canvas import number
from ...plotting.class_pair import draw_pair
from ..exports import Answer, files_of_figure
from ..fragments import opacity, panel, section
from .asking import Asked

__all__ = ["draw_detail"]

NAMES = {
    "logit": ("logit, Eq.\u00a07", "l₁"),
    "normalized_difference": ("normalised difference, Eq.\u00a08", "(l₁ − l₂) / l₁"),
    "difference": ("difference", "l₁ − l₂"),
    "ratio": ("ratio", "l₁ / l₂"),
}


def draw_detail(asked: Asked) -> Answer:
    """The class against its rival and the reverse, under each loss; red argues for the first class of a row."""
    one, other = asked.target, asked.rival
    found = detail(asked.model, asked.seen.tensor, one, other, gradient=asked.mode)
    parts = []
    for first, second in ((one, other), (other, one)):
        panels = []
        for loss in found.losses:
            ex = asked.named(found.view(loss, first, second))
            name, formula = NAMES[loss]
            instead = OBJECTIVES[loss].compares and ex.metadata["difference_instead"][0][0]
            below = f"{formula} = {escape(number(found.value(loss, first, second), sign=True))}"
            title = f"{escape(name)}{': the difference instead' if instead else ''}"
            panels.append(panel(asked.photo, asked.seen.shown, ex, title=title, below=below))
        names = escape(asked.class_name(first)), escape(asked.class_name(second))
        parts.append(
            f'<h3 class="vt-step"><span class="vt-for">{names[0]}</span> <span class="vt-against">against {names[1]}'
            f"</span></h3>{section(*panels, kind='vt-four')}"
        )
    lead = (
        "Which details make it the one and not the other? Red argues for a row's first class, blue for the second. "
        f"Method complete, {found.maps[found.losses[0]].gradient_words()}."
    )
    html = f'<p class="vt-lead">{lead}</p>{"".join(parts)}{opacity()}'
    return Answer(html, files_of_figure(lambda: draw_pair(found, one, other)), "detail")
