"""What one call of `explain_text` found: a signed score for every token of every text, and the question asked."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ExplanationFileError, OptionError
from ..explanation import PICTURES, Explanation

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["Piece", "TextExplanation"]


class Piece(NamedTuple):
    """A stretch of the text as people read it: a token with its score, or what stands between tokens (no score)."""

    text: str
    score: float | None
    special: bool = False


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TextExplanation:
    """A signed score for each token of each text, or for each target of each text.

    `tokens`, `special` and `spans` have one entry per text and in it one per token: the token as the model's vocabulary
    writes it; whether it stands for no part of the text, as [CLS] does; and where it stands: which of a pair of texts,
    first character, one past the last, None where that is not known. `answer` holds the numbers and the question, its
    maps one row high and as wide as the longest text; padding has the score zero. `pieces` gives a text as
    people read it.

    >>> import torch
    >>> ex = TextExplanation(
    ...     texts=("not bad",),
    ...     tokens=(("[CLS]", "not", "bad"),),
    ...     special=((True, False, False),),
    ...     spans=((None, (0, 0, 3), (0, 4, 7)),),
    ...     answer=Explanation(
    ...         scores=torch.tensor([[[0.0, -0.25, 0.5]]]),
    ...         logits=torch.tensor([[0.0, 1.5]]),
    ...         target=torch.tensor([1]),
    ...         method="complete",
    ...         objective="logit",
    ...     ),
    ... )
    >>> [(piece.text, piece.score) for piece in ex.pieces(special=False)]
    [('not', -0.25), (' ', None), ('bad', 0.5)]
    """

    texts: tuple[str | tuple[str, str], ...]
    tokens: tuple[tuple[str, ...], ...]
    special: tuple[tuple[bool, ...], ...]
    spans: tuple[tuple[tuple[int, int, int] | None, ...], ...]
    answer: Explanation

    @property
    def scores(self) -> Float[Tensor, "texts tokens"] | Float[Tensor, "texts targets tokens"]:
        """Returns raw scores, zero at padding: positive where a token argues for the target, negative where
        against it.
        """
        return self.answer.scores.squeeze(-2)

    @property
    def logits(self) -> Float[Tensor, "texts classes"]:
        """Returns the model's logits."""
        return self.answer.logits

    @property
    def target(self) -> Int[Tensor, " texts"] | Int[Tensor, "texts targets"]:
        """Returns the classes that were asked about."""
        return self.answer.target

    @property
    def targets(self) -> int:
        """Returns the number of targets of each text."""
        return self.answer.targets

    def of(self, text: int = 0, target: int = 0) -> Float[Tensor, " tokens"]:
        """Returns the scores of one text's own tokens, without padding. Raises `IndexError` beyond the last."""
        return self.answer.map(text, target)[0, : len(self.tokens[text])]

    def pieces(self, text: int = 0, target: int = 0, *, special: bool = True) -> list[Piece]:
        """Returns one text as people read it, cut into its tokens and what stands between them, in order.

        `special=False` leaves out the tokens that stand for no part of the text. Tokens that share the same characters
        (bytes of one letter) are one piece with the sum of their scores.
        """
        shown = [
            (token, float(score), is_special, span)
            for token, score, is_special, span in zip(
                self.tokens[text], self.of(text, target), self.special[text], self.spans[text], strict=True
            )
            if special or not is_special
        ]
        if any(span is not None for _, _, _, span in shown):
            return _in_place(self.texts[text], shown)
        return _written_out(shown)

    def question(self, text: int = 0, target: int = 0) -> str:
        """Returns the question of the scores: "positive 98.1 % against negative 1.9 %"."""
        return self.answer.question(text, target)

    @property
    def failures(self) -> tuple[Mapping[str, Any], ...]:
        """Returns the texts left out by `on_error="skip"`: position in the call ("image"), "error" and "message"."""
        return self.answer.failures

    def notes(self) -> list[str]:
        """Returns notes for the reader, for example where a text was cut."""
        return self.answer.notes()

    def plot(self, *, special: bool = False) -> "matplotlib.figure.Figure":
        """Draws every text with its tokens coloured: red for, blue against."""
        from ..plotting.text import draw_text

        return draw_text(self, special=special)

    def to_html(self, *, special: bool = False) -> str:
        """Returns a page of its own, without scripts or addresses, with every text coloured."""
        from ..plotting.text import text_page

        return text_page(self, special=special)

    def _repr_html_(self) -> str:
        """The coloured texts, for notebooks."""
        from ..plotting.saving import figure_html

        return figure_html(self.plot(), repr(self))

    def save(self, path: str | os.PathLike[str], *, special: bool = False) -> Path:
        """Writes by the suffix: .safetensors holds everything, .html, .png, .jpg, .pdf and .svg show it.

        Returns the path.

        `special` shows tokens such as [CLS] too; the .safetensors file always holds them.

        Raises `OptionError` for another suffix, `OutputFileError` when the file cannot be written.
        """
        path = Path(path)
        if path.suffix == ".safetensors":
            fields = {"texts": self.texts, "tokens": self.tokens, "special": self.special, "spans": self.spans}
            origin = {**self.answer.provenance.origin, "text": fields}
            return replace(self.answer, provenance=replace(self.answer.provenance, origin=origin)).save(path)
        if path.suffix == ".html":
            from ..files import atomic_write

            page = self.to_html(special=special)
            with atomic_write(path) as file:
                file.write(page.encode())
            return path
        if path.suffix.lower().removeprefix(".") not in PICTURES:
            named = ", ".join(f".{kind}" for kind in PICTURES)
            raise OptionError(f"cannot tell what to write to {path}: name it .html, {named} or .safetensors")
        from ..plotting.saving import save_figure

        return save_figure(self.plot(special=special), path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "TextExplanation":
        """Reads what `save` wrote to a .safetensors file.

        Raises `ExplanationFileError` when the file is missing, damaged, or holds no explanation of text.
        """
        answer = Explanation.load(path)
        origin = dict(answer.provenance.origin)
        fields: Any = origin.pop("text", None)
        try:
            return TextExplanation(
                texts=tuple(text if isinstance(text, str) else (text[0], text[1]) for text in fields["texts"]),
                tokens=tuple(tuple(one) for one in fields["tokens"]),
                special=tuple(tuple(one) for one in fields["special"]),
                spans=tuple(
                    tuple(None if at is None else (at[0], at[1], at[2]) for at in one) for one in fields["spans"]
                ),
                answer=replace(answer, provenance=replace(answer.provenance, origin=origin)),
            )
        except (TypeError, KeyError, IndexError) as error:
            raise ExplanationFileError(f"{os.fspath(path)} is an explanation, but none of text") from error

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> "TextExplanation":
        """The explanation of one text, padding cut off."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of an explanation of {len(self)}")
        index %= len(self)
        one = self.answer[index]
        return TextExplanation(
            texts=self.texts[index : index + 1],
            tokens=self.tokens[index : index + 1],
            special=self.special[index : index + 1],
            spans=self.spans[index : index + 1],
            answer=replace(one, scores=one.scores[..., : len(self.tokens[index])]),
        )

    def __iter__(self) -> Iterator["TextExplanation"]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        count = f"{len(self)} text{'s' if len(self) != 1 else ''}"
        question = f", {self.question()}" if len(self) == self.targets == 1 else ""
        return f"TextExplanation({self.answer.method} of {self.answer.objective}, {count}{question})"


Shown = list[tuple[str, float, bool, tuple[int, int, int] | None]]


def _in_place(text: str | tuple[str, str], shown: Shown) -> list[Piece]:
    parts = (text,) if isinstance(text, str) else text
    pieces: list[Piece] = []
    here, cursor = 0, 0
    for token, score, is_special, span in shown:
        if span is None:
            pieces.append(Piece(token, score, is_special))
            continue
        part, start, end = span
        if part != here:
            pieces.append(Piece("\n", None))
            here, cursor = part, 0
        if start < cursor and end <= cursor and pieces and pieces[-1].score is not None:
            pieces[-1] = pieces[-1]._replace(score=pieces[-1].score + score)
            continue
        if start > cursor:
            pieces.append(Piece(parts[part][cursor:start], None))
        pieces.append(Piece(parts[part][max(start, cursor) : end], score))
        cursor = max(end, cursor)
    if cursor < len(parts[here]):
        pieces.append(Piece(parts[here][cursor:], None))
    return [piece for piece in pieces if piece.text or piece.score]


def _written_out(shown: Shown) -> list[Piece]:
    """The tokens themselves, for tokenizers that do not tell where they stand: "##ly" and "▁the" by their marks."""
    marks = any(token.startswith(("▁", "Ġ")) for token, _, is_special, _ in shown if not is_special)
    pieces: list[Piece] = []
    for token, score, is_special, _ in shown:
        if is_special:
            glued = False
        elif marks:
            glued = not token.startswith(("▁", "Ġ"))
        else:
            glued = token.startswith("##")
        if pieces and not glued:
            pieces.append(Piece(" ", None))
        word = token if is_special else token.removeprefix("##").removeprefix("▁").removeprefix("Ġ")
        pieces.append(Piece(word or "␣", score, is_special))
    return pieces
