"""The picture beside another one, its guide: drawn by the model itself, or the visitor's own."""

from collections.abc import Callable
from html import escape
from typing import Any

from ...explain import explain
from ...explanation import percent
from ...guidance import Guide
from ...plotting.figure import draw_guided
from ..exports import Answer, files_of
from ..fragments import data_address, notes, opacity, panel, picture, question, section
from ..pictures import Picture
from .asking import Asked
from .map import how

__all__ = ["LAYOUTS", "draw_guide_view"]

LAYOUTS = {"side": "side by side", "stack": "one above the other"}
LEAD = (
    "Where one class fills a picture, nothing in it argues for another, and blue has to fall on the object itself. "
    "A guide beside it takes the blue."
)


def draw_guide_view(asked: Asked, guide: Picture | None, tick: Callable[[str, int, int], None]) -> Answer:
    """The map with a guide beside the one without, and the stitched input that the model saw.

    Raises:
        GuideError: when the model sees the explained class in the guide.
        VitrailError: whatever `vitrail.explain` raises.
    """
    layout = asked.question.layout if asked.question.layout in LAYOUTS else "side"
    words: dict[str, Any] = asked.words(asked.method)
    if asked.method.uses_gradient:
        words.setdefault("gradient", "full")  # as beside a guide, so that both maps are made alike
    tick("drawing a guide" if guide is None else "laying the guide beside it", 0, 0)
    ask = Guide("auto" if guide is None else guide.open(), layout=layout)
    guided = explain(asked.model, asked.seen.tensor, asked.target, guide=ask, progress=tick, **words)
    tick("comparing with no guide", 0, 0)
    alone = explain(asked.model, asked.seen.tensor, asked.target, **words)
    named, plain = asked.named(guided), asked.named(alone)
    panels = [
        picture(
            asked.photo, asked.seen.shown.shape[:2], "what the model saw", escape(asked.picture.name), alt="the picture"
        ),
        panel(asked.photo, asked.seen.shown, named, title=question(named), below=f"with the guide · {how(named)}"),
        panel(asked.photo, asked.seen.shown, plain, title=question(plain), below=f"without a guide · {how(plain)}"),
    ]
    for part in guided.guided:
        facts = part.metadata["guides"][0]
        whose = "a guide that the model drew itself" if facts["drawn"] else "your guide"
        seen = f"{whose}, which it sees as {facts['class_name']} ({percent(facts['probability'])})"
        if part.images is not None:
            stitched = part.images[0].numpy(force=True)
            address = data_address(stitched, lossless=True)
            panels.append(
                picture(address, stitched.shape[:2], "stitched together", escape(seen), alt="the picture and its guide")
            )
            panels.append(panel(address, stitched, part, below="the map of both"))
    html = f'<p class="vt-lead">{LEAD}</p>{section(*panels)}{opacity()}{notes(guided)}'
    facts = {} if guide is None else {"guide": guide.file or guide.name}
    return Answer(html, files_of(named, lambda: draw_guided(guided, alone)), "guide", facts)
