"""The counterfactual views: attention transfer over the steps of a film, and the rewritten photograph."""

from collections.abc import Callable
from dataclasses import replace
from html import escape

import numpy as np
import torch

from ...counterfactual import rewrite, transfer
from ...counterfactual.rewrite import Progress
from ...counterfactual.rewrite_result import Rewrite, encode
from ...counterfactual.transfer_result import Transfer
from ...explanation import Explanation
from ...outputs import percent
from ...plotting.film import save_film
from ...plotting.overlay import resize
from ...plotting.rewriting import amplified
from ...plotting.saving import save_figure
from ...plotting.transfer import course, standing
from ..exports import REWRITE_STEPS, ViewResult, file_of, files_of_figure, frames, limits
from ..fragments import curves, data_address, film, opacity, panel, picture, player, problem, section
from ..pictures import Picture
from ..question import ViewContext

__all__ = ["draw_film", "draw_rewriting"]

LEAD = (
    "The attention maps of all blocks become the only parameters, and gradient descent lowers the logit of the first "
    "class. Red argues for the class above a map, blue against it."
)


def draw_film(context: ViewContext, guide: Picture | None, tick: Callable[[str, int, int], None]) -> ViewResult:
    """Draws the maps of the class and of its rival over the steps, and their logits.

    Raises:
        VitrailError: whatever `vitrail.counterfactual.transfer` raises.
    """
    del guide
    steps, _ = limits(context.question)
    found = transfer(
        context.model,
        context.seen.tensor,
        context.target,
        context.rival,
        steps=steps,
        snapshots=frames(steps),
        progress=lambda done, total: tick("moving attention", done, total),
    )
    found = replace(
        found,
        image=torch.from_numpy(context.seen.shown),
        metadata={**found.metadata, "sources": [context.picture.name]},
    )
    panels = [_pane(context, found, place) for place in range(2)]
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
    return ViewResult(html, files, "transfer")


def _pane(context: ViewContext, found: Transfer, place: int) -> str:
    index = found.classes[place]
    maps = found.maps[:, place].numpy(force=True).astype(np.float64)
    words = [standing(found, index, step) for step in found.snapshots]
    title = f'<b class="vt-curve-{place}">{escape(found.class_name(index))}</b>'
    return film(
        context.photo, context.seen.shown, list(maps), title=title, alt=found.class_name(index), limit=None, words=words
    )


SHOWN = 480  # pixels of the longer side at which pictures are shown; the file has all of its own


def draw_rewriting(context: ViewContext, guide: Picture | None, tick: Callable[[str, int, int], None]) -> ViewResult:
    """Rewrites the photograph into its rival class, at its own resolution.

    Raises:
        VitrailError: whatever `vitrail.counterfactual.rewrite` raises.
    """
    del guide
    _, until = limits(context.question)

    def report(at: Progress) -> None:
        tick(f"rewriting, {context.class_name(context.rival)} at {percent(at.target)}", at.step, at.steps)

    found = rewrite(
        context.model,
        context.picture.open(),
        source=context.target,
        target=context.rival,
        until=until,
        budget=context.question.budget or None,
        steps=REWRITE_STEPS,
        progress=report,
    )
    html = ("" if found.reached else problem(found.summary())) + _html(found)
    files = {
        "png": lambda: encode(found.picture),
        "svg": lambda: file_of(lambda path: save_figure(found.plot(), path), "svg"),
    }
    return ViewResult(html, files, f"rewritten-{found.names[1].replace(' ', '-')}")


def _html(found: Rewrite) -> str:
    difference, factor = amplified(found.original, found.picture)
    like = found.similarity
    much = f"largest change {round(255 * like.linf)} of 255 levels · PSNR {like.psnr:.1f} dB · SSIM {like.ssim:.4f}"
    size = found.original.shape[:2]
    panels = [
        _picture(found.original, _verdict(found, 0), "before: the photograph"),
        _picture(found.picture, _verdict(found, found.step), f"after: {size[1]} × {size[0]} pixels, 8 bits, read back"),
        _picture(difference, f"their difference × {factor}", much),
    ]
    lines = [
        (name, f"var(--vt-{side})", found.curves[:, place].tolist())
        for place, (name, side) in enumerate(zip(found.names, ("against", "for"), strict=True))
    ]
    panels.append(curves(lines, label="probabilities over the steps", level=float(found.until), low=0.0, high=1.0))
    maps = []
    for ex, when in ((found.before, "before"), (found.after, "after")):
        if ex is not None and ex.images is not None:
            maps += [_map(ex, target, when) for target in range(ex.targets)]
    words = "Save the rewritten picture (PNG, every level kept)"
    save = f'<p><button type="button" class="vt-button" data-save="png">{words}</button></p>'
    lead = f'<p class="vt-lead">{escape(found.summary())}</p>'
    return lead + section(*panels, kind="vt-four") + save + section(*maps, kind="vt-four") + opacity()


def _picture(pixels: np.ndarray, title: str, below: str) -> str:
    height, width = pixels.shape[:2]
    scale = SHOWN / max(height, width)
    shown = resize(pixels, (max(1, round(height * scale)), max(1, round(width * scale)))) if scale < 1 else pixels
    return picture(data_address(shown, lossless=True), (height, width), title, escape(below), alt=below)


def _map(ex: Explanation, target: int, when: str) -> str:
    assert ex.images is not None
    shown = ex.images[0].numpy(force=True)
    times = max(1, SHOWN // max(shown.shape[:2]))
    large = np.ascontiguousarray(resize(shown, (shown.shape[0] * times, shown.shape[1] * times)))
    bigger = replace(ex, images=torch.from_numpy(large.copy())[None])
    return panel(data_address(large), large, bigger, target=target, below=when)


def _verdict(found: Rewrite, step: int) -> str:
    side = int(found.curves[step].argmax())
    tint = ("vt-against", "vt-for")[side]
    return f'<b class="{tint}">{escape(found.names[side])} <em>{percent(float(found.curves[step, side]))}</em></b>'
