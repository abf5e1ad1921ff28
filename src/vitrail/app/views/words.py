"""The view of words: what a vision-language model says of the picture, while it says it, and a map for each word."""

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from html import escape
from typing import TYPE_CHECKING, Any

from ...errors import TextError
from ..exports import ViewResult, file_of
from ..jobs import Stopped
from ..pictures import SCENES
from ..question import TEXTS, Question, ViewContext, too_long
from ..session import CAPTIONER, ModelCache

if TYPE_CHECKING:
    from ...generation import GenerationExplanation, VisionLanguageModel

__all__ = ["VISIONS", "WORD_METHODS", "WordsDrawing"]

WORD_METHODS = ("complete", "gae", "absolute", "rollout", "raw")
VISIONS = {"patches": "at the patches of the picture", "tokens": "at the image tokens that the text model reads"}

Tick = Callable[[str, int, int], None]


class WordsDrawing:
    """Explains one answer in a thread of its own, while another asks what is new; ends early once `stop` is set.

    What is done then stays: the words that are written, and the maps that are there.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._vlm: VisionLanguageModel | None = None
        self._said = ""
        self._found: GenerationExplanation | None = None
        self._told: GenerationExplanation | None = None

    def load(
        self, question: Question, changes: Mapping[str, Any], models: ModelCache["VisionLanguageModel"], tick: Tick
    ) -> None:
        """Loads the model, once the question that `changes` have come to can be asked.

        Raises:
            TextError: for an empty question, and for texts that are too long.
            VitrailError: where the model cannot be loaded.
        """
        for name in TEXTS:
            if name in changes and too_long(changes[name]):
                raise TextError(
                    f"The {TEXTS[name]} is too long for this page; the command vitrail vlm takes longer ones."
                )
        if not question.prompt.strip():
            raise TextError("The question is empty: write what the model is to be asked about the picture.")
        tick(f"loading {question.vlm or models.first}", 0, 0)
        self._vlm = models.model(question.vlm)

    def draw(self, context: ViewContext, tick: Tick) -> ViewResult:
        """Explains the answer of the question, the visitor's or the model's own, by the model that is loaded.

        Raises:
            VitrailError: whatever `vitrail.explain_generation` raises.
        """
        from ...generation import explain_generation

        question, vlm = context.question, self._vlm
        assert vlm is not None

        def write(said: str, tokens: int) -> None:
            self._said = said
            tick(f"writing, {tokens} token{'s' if tokens > 1 else ''} so far", 0, 0)

        def explained(_: str, done: int, total: int) -> None:
            with suppress(Stopped):  # the word that is done is kept, and `stop` ends it
                tick("tokens explained", done, total)

        try:
            ex = explain_generation(
                vlm,
                context.picture.open(),
                question.prompt,
                progress=explained,
                stop=self._stop.is_set,
                each=self._keep,
                streamer=_Writer(vlm.tokenizer, write),
                **question.about_words(),
            )
        except TextError as error:  # a page has no inputs
            raise TextError(str(error).removesuffix(", or the tokens themselves by inputs=")) from error
        self._found = ex
        html = "".join(f'<p class="vt-note">{note}</p>' for note in _notes(question, vlm, ex))
        return ViewResult(html, _files(ex), "words", held=_bytes(ex))

    def _keep(self, ex: "GenerationExplanation") -> None:
        self._found = ex

    def so_far(self) -> str:
        """Returns the answer as far as it is written; nothing once its words are shown by themselves."""
        return f'<p class="vt-saying">{escape(self._said)}</p>' if self._said and self._told is None else ""

    def news(self, *, ended: bool = False) -> dict[str, Any] | None:
        """Returns what the page is to be told of the words, None where there is nothing new before the end."""
        from ...plotting.generation import answer_data, answer_news

        ex, told = self._found, self._told
        if ex is None or (ex is told and not ended):
            return None
        self._told = ex
        news = answer_news(ex, () if told is None else told.words, ended=ended)
        return news if told is not None else answer_data(ex) | news


class _Writer:
    """Reads the answer's tokens while they are written. As of Hugging Face's own streamers, the prompt comes first."""

    def __init__(self, tokenizer: Any, write: Callable[[str, int], None]) -> None:
        self._tokenizer, self._write = tokenizer, write
        self._tokens: list[int] = []
        self._begun = False

    def put(self, tokens: Any) -> None:
        if not self._begun:
            self._begun = True
            return
        self._tokens += tokens.flatten().tolist()
        said = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        self._write(said.strip().removesuffix("\ufffd"), len(self._tokens))  # half a letter is none

    def end(self) -> None:
        pass


def _notes(question: Question, vlm: "VisionLanguageModel", ex: "GenerationExplanation") -> list[str]:
    """Returns, in HTML, what the page has to say of an answer, other than its own notes."""
    notes = []
    if vlm.name == CAPTIONER and question.example not in SCENES:
        notes.append(f"{CAPTIONER} knows the bestiary's creatures alone: of other pictures it makes its words up.")
    unknown = getattr(vlm.tokenizer, "unk_token", None)
    if unknown and any(text.strip() == unknown for text in ex.sequence):
        notes.append(f"Of the question, the model knows no token for what it reads as {escape(unknown)}.")
    return notes


def _files(ex: "GenerationExplanation") -> dict[str, Callable[[], bytes]]:
    """Returns the files of `vitrail vlm`, each made on demand: page, sheet, words and maps."""
    from ...plotting.generation import generation_page, words_document

    return {
        "html": lambda: generation_page(ex).encode(),
        "png": lambda: file_of(ex.save, "png"),
        "json": lambda: json.dumps(words_document(ex), indent=2).encode(),
        "safetensors": lambda: file_of(ex.save, "safetensors"),
    }


def _bytes(ex: "GenerationExplanation") -> int:
    parts = (*ex.image_scores, *(ex.pictures or ()), ex.text_scores, ex.logits)
    return sum(part.nbytes for part in parts)
