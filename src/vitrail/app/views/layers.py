"""The row's growth: the map as it stands after the last block, the last two, … down to the first."""

from html import escape

import numpy as np

from ...plotting.overlay import strength
from ...shares import head_shares
from ..exports import Answer, files_of
from ..fragments import curves, film, notes, opacity, player, question, section
from .asking import Asked
from .map import how

__all__ = ["draw_layers"]

LEAD = (
    "Relevance flows backward: it starts at the token that the head reads and each block adds its share. Move the "
    "slider to the left and see the map of the last blocks alone. One colour scale for all."
)


def draw_layers(asked: Asked) -> Answer:
    """The complete gradient's map from every `start_layer`, as a film, and how strong it is at each."""
    found = head_shares(asked.model, asked.seen.tensor, asked.target, against=asked.against, gradient=asked.mode)
    ex = asked.named(found.explanation)
    growth = found.growth().numpy(force=True).astype(np.float64)
    growth[0] = ex.map().numpy(force=True)  # the very map, where the sum of its parts is rounded
    layers = len(growth)
    order = list(range(layers - 1, -1, -1))
    limit = max(map(strength, growth)) or None
    words = [_words(layer, layers) for layer in order]
    pane = film(
        asked.photo, asked.seen.shown, [growth[layer] for layer in order], title=question(ex),
        alt="the map's growth", limit=limit, words=[f"{escape(word)} · {how(ex)}" for word in words],
    )  # fmt: skip
    added = [float(np.abs(found.scores[layer].sum(dim=0).numpy(force=True)).sum()) for layer in order]
    line = curves([("what the block adds, Σ|score|", "var(--vt-gold)", added)], marks=range(layers), low=0.0,
                  label="The share of each block, last to first", ends=("last block", "first"))  # fmt: skip
    slider = player(words, label="Blocks that take part", first=layers - 1)
    html = f'<p class="vt-lead">{LEAD}</p>{section(pane, line, slider, opacity(), kind="vt-large vt-film")}{notes(ex)}'
    return Answer(html, files_of(ex), "layers")


def _words(layer: int, layers: int) -> str:
    if layer == layers - 1:
        return f"block {layers} alone"
    return f"blocks {layer + 1} to {layers}" if layer else f"all {layers} blocks"
