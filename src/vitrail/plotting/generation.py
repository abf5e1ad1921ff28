"""The sheet of an explained answer: for each content word its map over the image, and what it was read off."""

import re
from typing import TYPE_CHECKING

import numpy as np

from .canvas import FRAME, INK, PALE, Box, axes_at, blank, fitted, lines, signed_map, write, write_notes
from .overlay import AGAINST, FOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..generation.explanation import GenerationExplanation

__all__ = ["content_words", "draw_generation"]

SIDE, WIDEST, NARROWEST = 2.0, 3.2, 1.8  # of a panel, in inches
MARGIN, GAP = 0.3, 0.3
HEAD, SECOND, FOOT = 0.3, 0.2, 0.78  # the word; "against …"; bar, numbers and shares
IN_A_ROW = 4
NOTE, NOTE_SIZE = 0.16, 7.5
MOST = 48  # panels
SHARES = (("image", "#3d7a4f"), ("prompt", "#b9b9b9"), ("answer", "#dedede"))

_FUNCTION = (
    "a an the this that these those it its he his she her they their them we our us you your i my me who which what "
    "is are was were be been being am do does did has have had can could will would may might must shall should "
    "and or but nor so yet if then than as of in on at to by for from with without into onto over out up off about "
    "there here also very just not no"
)


def content_words(ex: "GenerationExplanation") -> list[int]:
    """Returns which words of `ex.by_word()` are content: no punctuation and no common English function words.

    Where nothing is left, all of them.
    """
    words = [word.strip().lower() for word in ex.by_word().tokens]
    kept = [at for at, word in enumerate(words) if re.search(r"\w", word) and re.sub(r"\W", "", word) not in _FUNCTION]
    return kept or list(range(len(words)))


def draw_generation(ex: "GenerationExplanation", *, opacity: float | int = 1.0, smooth: bool = True) -> "Figure":
    """Draws one panel for each content word and image: the map, the question, and the shares of what it rests on."""
    words = ex.by_word()
    shown = [(word, image) for word in content_words(ex) for image in range(ex.images)]
    left_out, shown = len(shown[MOST:]), shown[:MOST]
    sizes = [fitted(_shape(ex, image), SIDE, NARROWEST, WIDEST) for image in range(ex.images)]
    wide, high = (max(one[axis] for one in sizes) for axis in (0, 1))
    cols = min(IN_A_ROW, len(shown))
    rows = -(-len(shown) // cols)
    notes = [f"… and {left_out} more panels."] if left_out else []
    width = max(2 * MARGIN + cols * wide + (cols - 1) * GAP, 4.6)
    notes = [line for note in (*notes, *ex.notes) for line in lines(note, width - 2 * MARGIN, NOTE_SIZE)]
    head = HEAD + SECOND * (ex.against is not None)
    each = head + high + FOOT
    top = 2 * NOTE + 0.2
    figure = blank(width, top + rows * each + NOTE * len(notes) + MARGIN)
    height = figure.get_size_inches()[1]
    write(figure, MARGIN, height - 0.28, _answer(ex), width=width - 2 * MARGIN, size=9.5, color=INK)
    write(figure, MARGIN, height - 0.28 - NOTE, _how(ex), width=width - 2 * MARGIN, size=7.5, color=PALE)
    for number, (word, image) in enumerate(shown):
        row, col = divmod(number, cols)
        box = (MARGIN + col * (wide + GAP), height - top - row * each - head - high, *sizes[image])
        _panel(figure, words, word, image, box, opacity, smooth)
    write_notes(figure, notes, margin=MARGIN, step=NOTE, size=NOTE_SIZE)
    return figure


def _shape(ex: "GenerationExplanation", image: int) -> tuple[int, int]:
    of = ex.image_scores[image][0] if ex.pictures is None else ex.pictures[image][..., 0]
    return of.shape[0], of.shape[1]


def _answer(ex: "GenerationExplanation") -> str:
    return f"{ex.prompt} → {ex.answer}" if ex.prompt else ex.answer


def _how(ex: "GenerationExplanation") -> str:
    mode = f"{ex.gradient} gradient" if ex.gradient else ""
    return " · ".join(filter(None, (ex.model, ex.method, ex.objective.replace("_", " "), mode, f"by {ex.vision}")))


def _panel(
    figure: "Figure",
    words: "GenerationExplanation",
    word: int,
    image: int,
    box: Box,
    opacity: float | int,
    smooth: bool,
) -> None:
    x, y, wide, high = box
    picture = None if words.pictures is None else words.pictures[image].numpy(force=True)
    scores = words.map(word, image).numpy(force=True).astype(np.float64)
    signed_map(figure, scores, picture, box, opacity=opacity, smooth=smooth, signed=words.signed)
    asked, *other = words.question(word).split(" against ")
    name, _, share = asked.removesuffix(" %").rpartition(" ")
    top = y + high + 0.08
    if other:
        write(figure, x, top, f"against {other[0]}", width=wide, size=8.5, weight="bold", color=AGAINST)
        top += SECOND
    which = f" (image {image + 1})" if words.images > 1 else ""
    write(figure, x, top, name, ending=f" {share} %{which}", width=wide, size=11.0, weight="bold", color=FOR)
    _shares(figure, words.grounding[word].tolist(), (x, y - 0.5, wide, 0.07))


def _shares(figure: "Figure", parts: list[float], box: Box) -> None:
    """Draws the shares of image, prompt and earlier answer as one bar, the image's in words below it."""
    x, y, wide, _ = box
    axes = axes_at(figure, box)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    begun = 0.0
    for part, (_, colour) in zip(parts, SHARES, strict=True):
        axes.axvspan(begun, begun + part, color=colour, linewidth=0)
        begun += part
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)
    said = " · ".join(f"{name} {100 * part:.0f} %" for part, (name, _) in zip(parts, SHARES, strict=True))
    write(figure, x, y - 0.14, said, width=wide, size=7.0, smallest=5.0, color=PALE)
