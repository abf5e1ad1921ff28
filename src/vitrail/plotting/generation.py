"""An explained answer as a sheet, for each content word its map over the image, and as a page for all its words."""

import io
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from .canvas import FRAME, INK, PALE, Box, axes_at, blank, fitted, lines, signed_map, write, write_notes
from .overlay import AGAINST, FOR, colour
from .saving import picture_address, web_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..generation.explanation import GenerationExplanation

__all__ = [
    "answer_data",
    "answer_news",
    "content_words",
    "draw_generation",
    "generation_page",
    "word_rows",
    "words_document",
    "words_files",
]

SIDE, WIDEST, NARROWEST = 2.0, 3.2, 1.8  # of a panel, in inches
MARGIN, GAP = 0.3, 0.3
HEAD, SECOND, FOOT = 0.3, 0.2, 0.78  # the word; "against …"; bar, numbers and shares
IN_A_ROW = 4
NOTE, NOTE_SIZE = 0.16, 7.5
MOST = 48  # panels
SHARES = (("image", "#3d7a4f"), ("prompt", "#b9b9b9"), ("answer", "#dedede"))

COLOURS = 128  # of the page, on either side of white
QUALITY = 92  # of the page's pictures

_LISTED = (
    "a an the this that these those it its he his she her they their them we our us you your i my me who which what "
    "is are was were be been being am do does did has have had can could will would may might must shall should "
    "and or but nor so yet if then than as of in on at to by for from with without into onto over out up off about "
    "there here also very just not no"
)
_FUNCTION = frozenset(_LISTED.split())


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
    for part, (_, tone) in zip(parts, SHARES, strict=True):
        axes.axvspan(begun, begun + part, color=tone, linewidth=0)
        begun += part
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)
    said = " · ".join(f"{name} {100 * part:.0f} %" for part, (name, _) in zip(parts, SHARES, strict=True))
    write(figure, x, y - 0.14, said, width=wide, size=7.0, smallest=5.0, color=PALE)


# -- the page ----------------------------------------------------------------------------------------------------------


def generation_page(ex: "GenerationExplanation") -> str:
    """Returns one HTML page without addresses from elsewhere: its scripts and pictures are in it.

    A word of several tokens has the sum of their scores, the product of their probabilities, the mean of their shares.
    """
    script, look = words_files()
    return web_page(
        "vitrail.plotting",
        "generation.html",
        title=f"{ex.answer} · {ex.model or 'Vitrail'}",
        model=Path(ex.model).name if Path(ex.model).is_absolute() else ex.model or "the model",
        prompt=ex.prompt,
        data=answer_data(ex),
        script=script,
        look=look,
    )


def words_files() -> tuple[str, str]:
    """Returns the script and the style sheet that show the words: `showWords(element, answer_data(ex))`."""
    folder = files("vitrail.plotting")
    script, look = (folder.joinpath(f"words.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    return script, look


def answer_data(ex: "GenerationExplanation") -> dict[str, Any]:
    """Returns all that a page shows of an explanation."""
    return answer_news(ex) | {
        "tokens": _tokens(ex),
        "grids": [list(one.shape[1:]) for one in ex.image_scores],
        "pictures": [None] * ex.images if ex.pictures is None else [_picture(one) for one in ex.pictures],
        "colours": np.rint(255 * colour(np.arange(-COLOURS, COLOURS + 1) / COLOURS)).astype(int).tolist(),
        "by": " · ".join(filter(None, (ex.method, ex.objective, ex.gradient and f"{ex.gradient} gradient", ex.vision))),
    }


def answer_news(ex: "GenerationExplanation", known: Sequence[slice] = (), *, ended: bool = True) -> dict[str, Any]:
    """Returns what a page is to be told that shows the words `known` of an explanation of the first tokens.

    Its first `keep` words stay as they are. Until the explanation has `ended`, the last word is shown by itself, and
    then the one that rests most on the image.
    """
    words = ex.words
    keep = next((at for at, pair in enumerate(zip(known, words, strict=False)) if pair[0] != pair[1]), len(known))
    keep = min(keep, len(words))
    most = int(np.argmax([float(ex.grounding[one, 0].mean()) for one in words]))
    return {
        "keep": keep,
        "words": word_rows(ex[words[keep].start :]) if keep < len(words) else [],
        "answer": _pieces(ex),
        "start": most if ended else len(words) - 1,
        "notes": list(ex.notes),
    }


def words_document(ex: "GenerationExplanation", **more: Any) -> dict[str, Any]:
    """Returns what `vitrail vlm` writes as words.json: question, answer, and for each word its numbers.

    `more` is told before the words, where it is not empty.
    """
    names = ("model", "prompt", "answer", "method", "objective", "gradient", "vision")
    about: dict[str, Any] = {name: getattr(ex, name) for name in names}
    about |= {"notes": list(ex.notes), "versions": dict(ex.versions)} | {name: one for name, one in more.items() if one}
    words = [
        {name: row[name] for name in ("word", "question", "position", "probability")}
        | {"grounding": dict(zip(("image", "prompt", "earlier_answer"), row["grounding"], strict=True))}
        for row in word_rows(ex)
    ]
    return {**about, "words": words}


def word_rows(ex: "GenerationExplanation") -> list[dict[str, Any]]:
    """Returns a row for each explained word, as the page and the command's JSON have it.

    `text` are the scores of the sequence's tokens in front of the word, `maps` those of each image row by row.
    """
    return [
        {
            "word": word.tokens[0].strip() or repr(word.tokens[0]),
            "question": word.question(),
            "position": word.positions[0],
            "probability": word.probability(),
            "grounding": _numbers(word.grounding),
            "maps": [_numbers(one) for one in word.image_scores],
            "text": _numbers(word.text_scores[0, : word.positions[0]]),
        }
        for word in ex.by_word()
    ]


def _numbers(scores: Tensor) -> list[float]:
    return [float(f"{one:.5g}") for one in scores.double().flatten().tolist()]


def _pieces(ex: "GenerationExplanation") -> list[dict[str, Any]]:
    """The answer in pieces: the words that are explained, and what lies between them."""
    starts = {ex.positions[one.start]: number for number, one in enumerate(ex.words)}
    covered = {ex.positions[token] for one in ex.words for token in range(one.start, one.stop)}
    first = ex.roles.index("answer") if "answer" in ex.roles else min(covered)
    pieces: list[dict[str, Any]] = []
    for at in range(first, len(ex.sequence)):
        if at in starts:
            pieces.append({"word": starts[at], "text": " " if ex.sequence[at][:1].isspace() else ""})
        elif at not in covered and at < max(covered):
            pieces.append({"word": None, "text": ex.sequence[at]})
    said = "".join(ex.sequence[first : max(covered) + 1]).lstrip()
    if (rest := ex.answer.removeprefix(said)) != ex.answer and rest.strip():  # which is not explained (yet)
        pieces.append({"word": None, "text": rest})
    return pieces


def _tokens(ex: "GenerationExplanation") -> list[dict[str, Any]]:
    """The tokens of prompt and answer; each run of image tokens is one mark, at -1."""
    found: list[dict[str, Any]] = []
    for at, (text, role) in enumerate(zip(ex.sequence, ex.roles, strict=True)):
        if role != "image":
            found.append({"at": at, "text": text})
        elif not found or found[-1]["at"] >= 0:
            found.append({"at": -1, "text": "image"})
    return found


def _picture(picture: Tensor) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(picture.numpy(force=True)).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return {"address": picture_address(buffer.getvalue(), "jpeg"), "size": list(picture.shape[:2])}
