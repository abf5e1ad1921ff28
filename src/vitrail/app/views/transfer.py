"""Attention moved away from the class, step by step, as a film: where do the reasons go?"""

from collections.abc import Callable
from dataclasses import replace
from html import escape

import numpy as np
import torch

from ...counterfactual import transfer
from ...counterfactual.transfer_result import Transfer
from ...plotting.film import save_film
from ...plotting.transfer import course, standing
from ..exports import Answer, file_of, files_of_figure
from ..fragments import curves, film, opacity, player, section
from ..pictures import Picture
from ..recipes import frames, limits
from .asking import Asked

__all__ = ["draw_film"]

LEAD = (
    "The attention maps of all blocks become the only parameters, and gradient descent lowers the logit of the first "
    "class. Red argues for the class above a map, blue against it."
)


def draw_film(asked: Asked, guide: Picture | None, tick: Callable[[str, int, int], None]) -> Answer:
    """The maps of the class and of its rival over the steps, and their logits.

    Raises:
        VitrailError: whatever `vitrail.counterfactual.transfer` raises.
    """
    del guide
    steps, _ = limits(asked.question)
    found = transfer(
        asked.model,
        asked.seen.tensor,
        asked.target,
        asked.rival,
        steps=steps,
        snapshots=frames(steps),
        progress=lambda done, total: tick("moving attention", done, total),
    )
    found = replace(
        found,
        image=torch.from_numpy(asked.seen.shown),
        metadata={**found.metadata, "sources": [asked.picture.name]},
    )
    panels = [_pane(asked, found, place) for place in range(2)]
    lines = [
        (course(found, i), f"var(--vt-curve-{place})", found.curve(i).tolist()) for place, i in enumerate(found.classes)
    ]
    panels.append(curves(lines, label="logits over the steps", marks=found.snapshots))
    slider = player([f"after {step} of {steps} steps" for step in found.snapshots], label="Step")
    told = escape("; ".join(course(found, index) for index in found.classes))
    lead = f'<p class="vt-lead">{LEAD} <b>Logits: {told}.</b></p>'
    html = f"{lead}{section(*panels, slider, opacity(), kind='vt-large vt-film')}"
    files = files_of_figure(found.plot) | {
        "webp": lambda: file_of(lambda path: save_film(found, path, fps=3), "webp"),
        "safetensors": lambda: file_of(found.save, "safetensors"),
    }
    return Answer(html, files, "transfer")


def _pane(asked: Asked, found: Transfer, place: int) -> str:
    index = found.classes[place]
    maps = found.maps[:, place].numpy(force=True).astype(np.float64)
    words = [standing(found, index, step) for step in found.snapshots]
    title = f'<b class="vt-curve-{place}">{escape(found.class_name(index))}</b>'
    return film(
        asked.photo, asked.seen.shown, list(maps), title=title, alt=found.class_name(index), limit=None, words=words
    )
