"""The views that compare: methods, two classes against each other, and the map with and without a guide."""

import logging
import time
from collections.abc import Callable
from html import escape
from importlib.metadata import version
from typing import Any

import torch

from ...compare import passes_taken
from ...comparison import Compared, Comparison
from ...errors import VitrailError
from ...explain import explain
from ...guidance import Guide
from ...guidance.detail import detail
from ...methods.registry import METHODS, choose_methods
from ...objectives import OBJECTIVES
from ...outputs import percent
from ...plotting.canvas import number
from ...plotting.class_pair import draw_pair
from ...plotting.comparison import draw_comparison, two_ended
from ...plotting.figure import draw_guided
from ...provenance import Provenance
from ..exports import ViewResult, files_of, files_of_figure
from ..fragments import data_address, notes, on_page, opacity, panel, picture, problem, question, section
from ..jobs import Stopped
from ..pictures import Picture
from ..question import ViewContext
from .map import how

__all__ = ["GROUPS", "LAYOUTS", "draw_detail", "draw_gallery", "draw_guide_view"]

log = logging.getLogger("vitrail.app")

# The groups that the page offers, and what it calls them.
GROUPS = {"fast": "quick ones", "signed": "signed ones", "class": "class-specific ones", "all": "all (minutes)"}


def draw_gallery(context: ViewContext, guide: Picture | None, tick: Callable[[str, int, int], None]) -> ViewResult:
    """Draws one panel for each method; one that fails on this model shows the reason.

    Raises:
        UnknownMethodError: for an unknown group.
    """
    del guide
    chosen = choose_methods(context.question.methods)
    answers = []
    for place, one in enumerate(chosen):
        tick(one.info.name, place, len(chosen))

        def inside(doing: str, done: int, total: int, name: str = one.info.name, place: int = place) -> None:
            tick(f"{name}, {doing} {100 * done // max(total, 1)} %", place, len(chosen))

        answers.append(_answer(context, one.info.name, inside))
    found = Comparison(
        answers=tuple(answers),
        logits=context.logits,
        target=torch.tensor([context.target]),
        against=None if context.against is None else torch.tensor([context.against]),
        objective="logit" if context.against is None else "difference",
        class_names=context.model.class_names,
        image=torch.from_numpy(context.seen.shown),
        provenance=Provenance(
            model=context.model.name,
            sources=(context.picture.name,),
            device=str(context.model.device),
            versions={"vitrail": version("vitrail")},
        ),
    )
    first = picture(context.photo, context.seen.shown.shape[:2], "what the model saw", escape(context.picture.name))
    panels = [first, *(_panel(context, one) for one in answers)]
    scales = f"Each map has its own scale; unsigned methods use the red half{two_ended([found])}."
    lead = f'<p class="vt-lead">{_context(answers)} {escape(scales)}</p>'
    html = lead + section(*panels, kind="vt-small") + opacity()
    return ViewResult(html, files_of_figure(lambda: draw_comparison(found)), "methods")


def _answer(context: ViewContext, name: str, tick: Callable[[str, int, int], None]) -> Compared:
    info = METHODS[name]
    explanation, error = None, None
    began = time.perf_counter()
    try:
        explanation = context.explain(name, progress=tick)
    except Stopped:
        raise
    except Exception as failure:  # whatever a method may raise on this model: the others go on
        error = failure
        if not isinstance(failure, VitrailError):
            log.error("method %s failed", name, exc_info=failure)
    return Compared(
        label=name,
        method=name,
        signed=info.signed,
        class_specific=info.class_specific,
        level=info.level,
        passes=passes_taken(info, explanation),
        seconds=time.perf_counter() - began,
        explanation=explanation,
        error=error,
    )


def _panel(context: ViewContext, one: Compared) -> str:
    if one.explanation is None:
        known = isinstance(one.error, VitrailError)  # of others not even the operator's paths should be read here
        reason = escape(on_page(str(one.error))[:300] if known else type(one.error).__name__)
        return (
            f'<figure class="vt-panel"><figcaption>{escape(one.label)}</figcaption>'
            f'<div class="vt-missing"><b>no map</b><br>{reason}</div></figure>'
        )
    traits = [] if one.signed else ["unsigned"]
    traits += [] if one.class_specific else ["any class"]
    mode = one.explanation.gradient_mode()
    traits += [f"{mode} gradient"] if mode not in (None, "full") else []
    traits += ["class competition"] if one.explanation.competes else []
    below = escape(" · ".join([f"{_time(one.seconds)}", one.passes, *traits]))
    return panel(context.photo, context.seen.shown, one.explanation, title=escape(one.label), below=below)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _context(answers: list[Compared]) -> str:
    told = next((one.explanation for one in answers if one.explanation is not None and one.class_specific), None)
    return (
        "The question: " + question(told) + "." if told is not None else problem("No method gave a map of the class.")
    )


NAMES = {
    "logit": ("logit, Eq.\u00a07", "l₁"),
    "normalized_difference": ("normalised difference, Eq.\u00a08", "(l₁ − l₂) / l₁"),
    "difference": ("difference", "l₁ − l₂"),
    "ratio": ("ratio", "l₁ / l₂"),
}


def draw_detail(context: ViewContext) -> ViewResult:
    """Draws the class against its rival and the reverse, under each loss; red argues for the first class of a row."""
    one, other = context.target, context.rival
    found = detail(context.model, context.seen.tensor, one, other, gradient=context.mode)
    parts = []
    for first, second in ((one, other), (other, one)):
        panels = []
        for loss in found.losses:
            ex = context.named(found.view(loss, first, second))
            name, formula = NAMES[loss]
            instead = OBJECTIVES[loss].compares and ex.provenance.difference_instead[0][0]
            below = f"{formula} = {escape(number(found.value(loss, first, second), sign=True))}"
            title = f"{escape(name)}{': the difference instead' if instead else ''}"
            panels.append(panel(context.photo, context.seen.shown, ex, title=title, below=below))
        names = escape(context.class_name(first)), escape(context.class_name(second))
        parts.append(
            f'<h3 class="vt-step"><span class="vt-for">{names[0]}</span> <span class="vt-against">against {names[1]}'
            f"</span></h3>{section(*panels, kind='vt-four')}"
        )
    lead = (
        "Which details make it the one and not the other? Red argues for a row's first class, blue for the second. "
        f"Method complete, {found.maps[found.losses[0]].gradient_words()}."
    )
    html = f'<p class="vt-lead">{lead}</p>{"".join(parts)}{opacity()}'
    return ViewResult(html, files_of_figure(lambda: draw_pair(found, one, other)), "detail")


LAYOUTS = {"side": "side by side", "stack": "one above the other"}
LEAD = (
    "Where one class fills a picture, nothing in it argues for another, and blue has to fall on the object itself. "
    "A guide next to it takes the blue."
)


def draw_guide_view(context: ViewContext, guide: Picture | None, tick: Callable[[str, int, int], None]) -> ViewResult:
    """Draws the map with a guide next to the one without, and the stitched input that the model saw.

    Raises:
        GuideError: when the model sees the explained class in the guide.
        VitrailError: whatever `vitrail.explain` raises.
    """
    layout = context.question.layout if context.question.layout in LAYOUTS else "side"
    words: dict[str, Any] = context.words(context.method)
    if context.method.uses_gradient:
        words.setdefault("gradient", "full")  # as with a guide, so that both maps are computed alike
    tick("drawing a guide" if guide is None else "placing the guide next to it", 0, 0)
    ask = Guide("auto" if guide is None else guide.open(), layout=layout)
    guided = explain(context.model, context.seen.tensor, context.target, guide=ask, progress=tick, **words)
    tick("comparing with no guide", 0, 0)
    alone = explain(context.model, context.seen.tensor, context.target, **words)
    named, plain = context.named(guided), context.named(alone)
    panels = [
        picture(
            context.photo,
            context.seen.shown.shape[:2],
            "what the model saw",
            escape(context.picture.name),
            alt="the picture",
        ),
        panel(context.photo, context.seen.shown, named, title=question(named), below=f"with the guide · {how(named)}"),
        panel(context.photo, context.seen.shown, plain, title=question(plain), below=f"without a guide · {how(plain)}"),
    ]
    for part in guided.guided:
        shown = part.provenance.beside[0]
        whose = "a guide that the model drew itself" if shown.drawn else "your guide"
        seen = f"{whose}, which it sees as {shown.class_name} ({percent(shown.probability)})"
        if part.images is not None:
            stitched = part.images[0].numpy(force=True)
            address = data_address(stitched, lossless=True)
            panels.append(
                picture(address, stitched.shape[:2], "stitched together", escape(seen), alt="the picture and its guide")
            )
            panels.append(panel(address, stitched, part, below="the map of both"))
    html = f'<p class="vt-lead">{LEAD}</p>{section(*panels)}{opacity()}{notes(guided)}'
    facts = {} if guide is None else {"guide": guide.file or guide.name}
    return ViewResult(html, files_of(named, lambda: draw_guided(guided, alone)), "guide", facts)
