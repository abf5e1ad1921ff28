"""Every method's answer to the same question, side by side, with the time that each took."""

import logging
import time
from collections.abc import Callable
from html import escape
from importlib.metadata import version

import torch

from ...compare import passes_taken
from ...comparison import Compared, Comparison
from ...errors import VitrailError
from ...methods.registry import METHODS, choose_methods
from ...plotting.comparison import draw_comparison, two_ended
from ..exports import Answer, files_of_figure
from ..fragments import on_page, opacity, panel, picture, problem, question, section
from ..jobs import Stopped
from ..pictures import Picture
from .asking import Asked

log = logging.getLogger("vitrail.app")

__all__ = ["GROUPS", "draw_gallery"]

# The groups that the page offers, and what it calls them.
GROUPS = {"fast": "quick ones", "signed": "signed ones", "class": "class-specific ones", "all": "all (minutes)"}


def draw_gallery(asked: Asked, guide: Picture | None, tick: Callable[[str, int, int], None]) -> Answer:
    """One panel a method; one that fails on this model keeps its place, with the reason.

    Raises:
        UnknownMethodError: for an unknown group.
    """
    del guide
    chosen = choose_methods(asked.question.methods)
    answers = []
    for number, one in enumerate(chosen):
        tick(one.info.name, number, len(chosen))

        def inside(doing: str, done: int, total: int, name: str = one.info.name, number: int = number) -> None:
            tick(f"{name}, {doing} {100 * done // max(total, 1)} %", number, len(chosen))

        answers.append(_answer(asked, one.info.name, inside))
    found = Comparison(
        answers=tuple(answers),
        logits=asked.logits,
        target=torch.tensor([asked.target]),
        against=None if asked.against is None else torch.tensor([asked.against]),
        objective="logit" if asked.against is None else "difference",
        class_names=asked.model.class_names,
        image=torch.from_numpy(asked.seen.shown),
        metadata={
            "model": asked.model.name,
            "sources": [asked.picture.name],
            "device": str(asked.model.device),
            "versions": {"vitrail": version("vitrail")},
        },
    )
    first = picture(asked.photo, asked.seen.shown.shape[:2], "what the model saw", escape(asked.picture.name))
    panels = [first, *(_panel(asked, one) for one in answers)]
    scales = f"Each map has its own scale; unsigned methods use the red half{two_ended([found])}."
    lead = f'<p class="vt-lead">{_asked(answers)} {escape(scales)}</p>'
    html = lead + section(*panels, kind="vt-small") + opacity()
    return Answer(html, files_of_figure(lambda: draw_comparison(found)), "methods")


def _answer(asked: Asked, name: str, tick: Callable[[str, int, int], None]) -> Compared:
    info = METHODS[name]
    explanation, error = None, None
    began = time.perf_counter()
    try:
        explanation = asked.explain(name, progress=tick)
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


def _panel(asked: Asked, one: Compared) -> str:
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
    return panel(asked.photo, asked.seen.shown, one.explanation, title=escape(one.label), below=below)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _asked(answers: list[Compared]) -> str:
    told = next((one.explanation for one in answers if one.explanation is not None and one.class_specific), None)
    return (
        "The question: " + question(told) + "." if told is not None else problem("No method gave a map of the class.")
    )
