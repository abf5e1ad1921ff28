"""What one call of `explain_generation` found: for every word a map, scores of words, a share."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import ExplanationFileError, OptionError, OutputFileError
from ..explanation import PICTURES
from ..explanation_file import read_explanation, write_explanation

if TYPE_CHECKING:
    import matplotlib.figure
    import PIL.Image

__all__ = ["GenerationExplanation"]

KIND = "generation"
ROLES = ("image", "prompt", "answer")
_BEGINS = re.compile(r"[\s\u0e00-\u0e7f\u2e80-\u9fff]")  # a space, Thai, Chinese, Japanese


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class GenerationExplanation:
    """For each explained token a signed map of every image, a signed score of every word before it, and three shares.

    `image_scores` hold one tensor for each image, (tokens, rows, cols), of its patches or (with vision="tokens") of its
    image tokens. `text_scores` are zero at the image tokens and from the explained token on. `grounding` are the shares
    of |relevance| at the text model's input that lie on the image tokens, on the prompt and on the answer's earlier
    tokens, in this order: a word with hardly any share on the image was not read off it.

    `tokens` are the explained tokens as they read behind the one before, at `positions` of `sequence`; `roles` says of
    each token of the sequence whether it stands for a piece of an "image", for the "prompt" or the "answer". `logits`
    are those at the position that predicts the token, `target` its id, `against` the id that it is compared with.
    `pictures` are the images as the model was shown them, which the maps lie on exactly. `probabilities` are those of
    whole words, which `by_word` gives; without them a token's follows from its logits.

    >>> ex = GenerationExplanation(
    ...     tokens=("a", " tavel"),
    ...     positions=(3, 4),
    ...     image_scores=(torch.tensor([[[0.0, 0.1]], [[-0.2, 0.5]]]),),
    ...     text_scores=torch.zeros(2, 5),
    ...     grounding=torch.tensor([[0.2, 0.8, 0.0], [0.7, 0.2, 0.1]]),
    ...     logits=torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]),
    ...     target=torch.tensor([1, 2]),
    ...     sequence=("<image>", "<image>", "what?", "a", " tavel"),
    ...     roles=("image", "image", "prompt", "answer", "answer"),
    ...     method="complete",
    ...     objective="logit",
    ... )
    >>> ex.question(1), ex.map(1).argmax().item()
    ('tavel 90.9 %', 1)
    """

    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    image_scores: tuple[Float[Tensor, "tokens _ _"], ...]
    text_scores: Float[Tensor, "tokens sequence"]
    grounding: Float[Tensor, "tokens three"]
    logits: Float[Tensor, "tokens vocabulary"]
    target: Int[Tensor, " tokens"]
    against: Int[Tensor, " tokens"] | None = None
    against_tokens: tuple[str, ...] | None = None
    sequence: tuple[str, ...]
    roles: tuple[str, ...]
    prompt: str = ""
    answer: str = ""
    pictures: tuple[UInt8[Tensor, "_ _ 3"], ...] | None = None
    probabilities: Float[Tensor, " tokens"] | None = None
    method: str
    objective: str
    signed: bool = True
    gradient: str | None = None
    vision: str = "patches"
    model: str = ""
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, length = len(self.tokens), len(self.sequence)
        for name, found, expected in (
            ("positions", (len(self.positions),), (count,)),
            ("roles", (len(self.roles),), (length,)),
            ("text_scores", tuple(self.text_scores.shape), (count, length)),
            ("grounding", tuple(self.grounding.shape), (count, 3)),
            ("logits", tuple(self.logits.shape[:1]), (count,)),
            ("target", tuple(self.target.shape), (count,)),
            *((name, tuple(one.shape), (count,)) for name in _OPTIONAL if (one := getattr(self, name)) is not None),
            *((f"image_scores[{i}]", (one.ndim, len(one)), (3, count)) for i, one in enumerate(self.image_scores)),
        ):
            if found != expected:
                raise ValueError(f"{name} is {found}, but {count} tokens of a sequence of {length} need {expected}")

    # -- the question ------------------------------------------------------------------------------------------------

    @property
    def images(self) -> int:
        """Returns the number of images."""
        return len(self.image_scores)

    @property
    def words(self) -> tuple[slice, ...]:
        """Returns the explained tokens that make one word together, word by word: slices of `tokens`.

        A token begins a word where it begins with a space or a letter of a script that has none, or does not follow
        the one before. Punctuation at a word's end is a word of its own.

        >>> from types import SimpleNamespace
        >>> answer = SimpleNamespace(tokens=("a", " str", "iped", " T", "-", "shirt", "."), positions=range(5, 12))
        >>> [answer.tokens[one] for one in GenerationExplanation.words.fget(answer)]
        [('a',), (' str', 'iped'), (' T', '-', 'shirt'), ('.',)]
        """
        starts = [
            number
            for number, (text, at) in enumerate(zip(self.tokens, self.positions, strict=True))
            if number == 0 or _BEGINS.match(text) or at != self.positions[number - 1] + 1
        ]
        found = []
        for start, end in zip(starts, [*starts[1:], len(self.tokens)], strict=True):
            stem = end
            while stem > start + 1 and not re.search(r"\w", self.tokens[stem - 1]):
                stem -= 1
            found += [slice(start, stem), slice(stem, end)][: 1 + (stem < end)]
        return tuple(found)

    def probability(self, token: int = 0, *, other: bool = False) -> float:
        """Returns the model's probability of an explained token (of `by_word`, of the whole word), or of the `other`
        that it is compared with.
        """
        if self.probabilities is not None and not other:
            return float(self.probabilities[token])
        index = self._other(token) if other else int(self.target[token])
        return float(self.logits[token].double().softmax(dim=0)[index])

    def question(self, token: int = 0) -> str:
        """Returns the question of a token's map: "left 71.2 % against right 28.1 %"."""
        sides = [(self.tokens[token].strip() or repr(self.tokens[token]), self.probability(token))]
        if self.against is not None:
            name = f"[{self._other(token)}]" if self.against_tokens is None else self.against_tokens[token].strip()
            sides.append((name, self.probability(token, other=True)))
        return " against ".join(f"{name} {100 * value:.1f} %" for name, value in sides)

    def _other(self, token: int) -> int:
        if self.against is None:
            raise OptionError("the tokens were compared with no others: ask with against=")
        return int(self.against[token])

    def map(self, token: int = 0, image: int = 0) -> Float[Tensor, "rows cols"]:
        """Returns the raw map of one token. Raises `IndexError` beyond the last token or image."""
        return self.image_scores[image][token]

    def before(self, token: int = 0) -> list[tuple[str, str, float]]:
        """Returns the words that a token follows: each as it reads, "prompt" or "answer", and its score."""
        end = self.positions[token]
        return [
            (text, role, float(score))
            for text, role, score in zip(self.sequence[:end], self.roles[:end], self.text_scores[token], strict=False)
            if role != "image"
        ]

    # -- one token at a time -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int | slice) -> "GenerationExplanation":
        """The explanation of one token, or of a slice of them."""
        if not isinstance(index, slice):
            if not -len(self) <= index < len(self):
                raise IndexError(f"token {index} of an explanation of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        return replace(
            self,
            tokens=self.tokens[index],
            positions=self.positions[index],
            image_scores=tuple(one[index] for one in self.image_scores),
            text_scores=self.text_scores[index],
            grounding=self.grounding[index],
            logits=self.logits[index],
            target=self.target[index],
            against_tokens=None if self.against_tokens is None else self.against_tokens[index],
            **{name: one[index] for name in _OPTIONAL if (one := getattr(self, name)) is not None},
        )

    def __iter__(self) -> Iterator["GenerationExplanation"]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        count = f"{len(self)} token{'s' if len(self) != 1 else ''}"
        sizes = " and ".join(f"{one.shape[1]} x {one.shape[2]}" for one in self.image_scores)
        how = f"{self.method} of {self.objective}" + (f", {self.gradient} gradient" if self.gradient else "")
        said = f", {self.question()}" if len(self) == 1 else f" of {self.answer!r}"
        return f"GenerationExplanation({how}, {count}{said}, maps of {sizes} {self.vision})"

    def by_word(self) -> "GenerationExplanation":
        """Returns the explanation of whole words: the scores of a word's tokens added up, their grounding averaged.

        Probabilities are multiplied. Logits, target and position are those of a word's first token, and so is the
        token that it is compared with.
        """
        words = self.words
        products = [math.prod(self.probability(at) for at in range(one.start, one.stop)) for one in words]
        first = [one.start for one in words]

        def joined(scores: Tensor, mean: bool = False) -> Tensor:
            return torch.stack([scores[one].mean(dim=0) if mean else scores[one].sum(dim=0) for one in words])

        return replace(
            self,
            tokens=tuple("".join(self.tokens[one]) for one in words),
            positions=tuple(self.positions[at] for at in first),
            image_scores=tuple(joined(one) for one in self.image_scores),
            text_scores=joined(self.text_scores),
            grounding=joined(self.grounding, mean=True),
            logits=self.logits[first],
            target=self.target[first],
            against=None if self.against is None else self.against[first],
            against_tokens=None if self.against_tokens is None else tuple(self.against_tokens[at] for at in first),
            probabilities=torch.tensor(products, dtype=torch.float64),
        )

    # -- pictures ----------------------------------------------------------------------------------------------------

    def overlay(
        self, token: int = 0, image: int = 0, *, size: int | tuple[int, int] | None = None, **look: Any
    ) -> "PIL.Image.Image":
        """Returns one token's map laid over its image, an RGB picture of the image's size or of another.

        The options are those of `vitrail.plotting.overlay`: opacity, smooth, limit, colormap and threshold.
        """
        from PIL import Image

        from ..plotting.overlay import overlay

        picture = None if self.pictures is None else self.pictures[image].numpy(force=True)
        sides = (size, size) if isinstance(size, int) else size
        scores = self.map(token, image).numpy(force=True).astype(np.float64)
        return Image.fromarray(overlay(scores, picture, size=sides, signed=self.signed, **look))

    def plot(
        self, path: str | os.PathLike[str] | None = None, *, opacity: float | int = 1.0, smooth: bool = True
    ) -> "matplotlib.figure.Figure":
        """Draws the sheet of the content words, and writes it to `path` (.png, .jpg, .pdf or .svg) where one is given.

        Each word and image has a panel: the map over the image, the question, and the shares of image, prompt and
        earlier answer. Scores of the tokens of one word are added up; function words and punctuation are left out.
        """
        from ..plotting.generation import draw_generation
        from ..plotting.saving import save_figure, suffix_of

        if path is not None:
            suffix_of(path)  # before the drawing, which takes longer than a refusal should
        figure = draw_generation(self, opacity=opacity, smooth=smooth)
        if path is not None:
            save_figure(figure, path)
        return figure

    def _repr_html_(self) -> str:
        """The sheet and what it shows, for notebooks."""
        from ..plotting.saving import figure_html

        return figure_html(self.plot(), repr(self))

    # -- the file ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes everything to a .safetensors file, or the sheet to a .png, .jpg, .pdf or .svg file; returns the path.

        Raises `OutputFileError` when the file cannot be written, or its name ends otherwise.
        """
        path = Path(path)
        if path.suffix.lower().removeprefix(".") in PICTURES:
            self.plot(path)
            return path
        if path.suffix != ".safetensors":
            raise OutputFileError(
                f"cannot save to {path}: name it .safetensors for the numbers and the question, or "
                f"{', '.join(f'.{kind}' for kind in PICTURES)} for the sheet"
            )
        words = {name: getattr(self, name) for name in _WORDS}
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for name in ("image_scores", "pictures"):
            for number, one in enumerate(getattr(self, name) or ()):
                tensors[f"{name}.{number}"] = one
        write_explanation(path, {**words, "kind": KIND, "version": 1, "versions": dict(self.versions)}, tensors)
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "GenerationExplanation":
        """Reads what `save` wrote; the tensors come back on the CPU, bit for bit.

        Raises `ExplanationFileError` when the file is missing, damaged, or holds no explanation of generated words.
        """

        def build(text: dict[str, Any], tensors: dict[str, Tensor]) -> GenerationExplanation:
            if text.get("kind") != KIND:
                raise ExplanationFileError(f"{os.fspath(path)} is an explanation, but none of generated words")
            return GenerationExplanation(**_fields(text, tensors))

        return read_explanation(Path(path), build)


_LISTS = ("tokens", "positions", "sequence", "roles", "notes", "against_tokens")
_STRINGS = ("prompt", "answer", "method", "objective", "vision", "model", "gradient")
_WORDS = (*_LISTS, *_STRINGS, "signed")
_OPTIONAL = ("against", "probabilities")
_TENSORS = ("text_scores", "grounding", "logits", "target", *_OPTIONAL)


def _fields(text: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of an explanation from a file, once each is of its kind.

    Raises:
        ValueError: naming one that is not.
    """
    found: dict[str, Any] = {"signed": bool(text["signed"]), "versions": dict(text["versions"])}
    for name in _LISTS:
        value, kind = text[name], int if name == "positions" else str
        if value is None and name == "against_tokens":
            found[name] = None
        elif not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
            raise ValueError(f"{name} holds other things than {kind.__name__}")
        else:
            found[name] = tuple(value)
    for name in _STRINGS:
        if not isinstance(text[name], str) and not (name == "gradient" and text[name] is None):
            raise ValueError(f"{name} is {type(text[name]).__name__}, expected str")
        found[name] = text[name]
    if not set(found["roles"]) <= set(ROLES):
        raise ValueError(f"roles are {sorted(set(found['roles']))}, expected {', '.join(ROLES)}")
    for name in _TENSORS:
        found[name] = tensors.get(name) if name in _OPTIONAL else tensors[name]
    for name in ("image_scores", "pictures"):
        parts = []
        while f"{name}.{len(parts)}" in tensors:
            parts.append(tensors[f"{name}.{len(parts)}"])
        found[name] = tuple(parts) or None
    _check_numbers(tensors, found)
    for name in ("target", "against"):
        ids, vocabulary = found[name], found["logits"].shape[-1]
        if ids is not None and (ids.is_floating_point() or bool(((ids < 0) | (ids >= vocabulary)).any())):
            raise ValueError(f"{name} names no token of {vocabulary}")
    return found


def _check_numbers(tensors: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    """Refuses numbers that no explanation holds, and a file may.

    Raises:
        ValueError: naming them.
    """
    for name, tensor in tensors.items():
        kind, _, number = name.partition(".")
        if kind in ("image_scores", "text_scores", "grounding", "logits", "probabilities"):
            if not tensor.is_floating_point():
                raise ValueError(f"{name} are {tensor.dtype}")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} hold NaN or infinity")
        elif kind == "pictures":
            if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[2] != 3:
                raise ValueError(f"{name} is {tensor.dtype} of {tuple(tensor.shape)}, expected colours of uint8")
        elif name not in _TENSORS:
            raise ValueError(f"it holds {name}, which is unknown")
        if not tensor.numel() or (number and int(number) >= len(found[kind] or ())):
            raise ValueError(f"{name} is empty, or the one before it is missing")
    maps, pictures = found["image_scores"], found["pictures"]
    if maps is None or (pictures is not None and len(pictures) != len(maps)):
        raise ValueError(f"there are {len(maps or ())} maps and {len(pictures or ())} pictures")
    outside = [one for one in found["positions"] if not 0 < one < len(found["sequence"])]
    if outside:
        raise ValueError(f"positions {outside} are outside of a sequence of {len(found['sequence'])}")
