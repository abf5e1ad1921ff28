"""What one call of `explain` found, together with what was asked. It never changes and never needs the model again."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from vitrail.errors import OptionError, OutputFileError
from vitrail.explanation_file import contents_of, explanation_of, read_explanation, write_explanation
from vitrail.models.class_names import short_name
from vitrail.objectives import Rivals
from vitrail.outputs import Output, verdict_of
from vitrail.provenance import Provenance, failure_notes
from vitrail.views import Spread

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas
    import PIL.Image

__all__ = ["Explanation"]

Mode = Literal["bilinear", "bicubic", "nearest"]
PICTURES = ("png", "jpg", "jpeg", "pdf", "svg")  # endings of a figure's file
NOTEBOOK = 12  # images that a notebook shows of itself


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Explanation:
    """A signed map for each image, or for each target of each image, and the question that it answers.

    `scores` are raw: positive where a patch argues for the target, negative where it argues against, not normalised.
    `target` and `against` hold class indices. `images` is what the model saw, RGB from 0 to 255. `provenance` says
    where the map came from and how it was asked for, `metadata` the same as plain JSON values.

    `guided` is not empty where a guide was given: one explanation for each way in which the originals were laid beside
    a guide, with the whole stitched map, the stitched picture and the logits that the model gave for it; its
    provenance says by `stitch` where the original's patches are. `scores` is then the mean of these maps on those
    patches, while `logits` are those of the originals alone.

    `rivals` is what competed with the target (`compete=True`): the classes, how much each counts, and the map that
    was subtracted, of the shape of `scores`; None where nothing did.

    `spread` tells how steady the mean over several views is (`resolution=`, `smooth=`); None for a single one.

    Raises `ValueError` when the shapes of the tensors disagree.

    >>> ex = Explanation(
    ...     scores=torch.tensor([[[0.5, -1.0], [0.0, 2.0]]]),
    ...     logits=torch.tensor([[0.0, 1.5]]),
    ...     target=torch.tensor([1]),
    ...     method="complete",
    ...     objective="logit",
    ...     class_names=("horse", "zebra, striped horse"),
    ... )
    >>> ex.question()
    'zebra 81.8 %'
    >>> ex.upsample((4, 4)).shape
    torch.Size([1, 4, 4])
    """

    scores: Float[Tensor, "batch rows cols"] | Float[Tensor, "batch targets rows cols"]
    logits: Float[Tensor, "batch classes"]
    target: Int[Tensor, " batch"] | Int[Tensor, "batch targets"]
    against: Int[Tensor, " batch"] | Int[Tensor, "batch targets"] | None = None
    method: str
    objective: str
    signed: bool = True
    class_names: tuple[str, ...] | None = None
    images: UInt8[Tensor, "batch height width 3"] | None = None
    provenance: Provenance = field(default_factory=Provenance)
    rivals: Rivals | None = None
    spread: Spread | None = None
    guided: tuple["Explanation", ...] = ()

    def __post_init__(self) -> None:
        if self.scores.ndim not in (3, 4):
            raise ValueError(
                f"scores must be (batch, rows, cols) or (batch, targets, rows, cols), not {_shape(self.scores)}"
            )
        batch, questions = len(self.scores), self.scores.shape[:-2]
        for name, tensor, expected in (
            ("target", self.target, questions),
            ("against", self.against, questions),
            ("logits", self.logits, (batch, *self.logits.shape[1:2])),
            *(() if self.rivals is None else self._rival_shapes(self.rivals)),
            *(() if self.spread is None else self._spread_shapes(self.spread)),
            ("images", self.images, (batch, *self.images.shape[1:3], 3) if self.images is not None else ()),
        ):
            if tensor is not None and tensor.shape != torch.Size(expected):
                raise ValueError(
                    f"{name} is {_shape(tensor)}, but scores of {_shape(self.scores)} need {tuple(expected)}"
                )
        for part in self.guided:
            if part.scores.shape[:-2] != questions:
                raise ValueError(
                    f"a guided map of {_shape(part.scores)} does not belong to one of {_shape(self.scores)}"
                )

    def _rival_shapes(self, rivals: Rivals) -> tuple[tuple[str, Tensor, Sequence[int]], ...]:
        several = (*self.scores.shape[:-2], *rivals.classes.shape[-1:])
        return (
            ("rivals.scores", rivals.scores, self.scores.shape),
            ("rivals.classes", rivals.classes, several),
            ("rivals.weights", rivals.weights, several),
        )

    def _spread_shapes(self, spread: Spread) -> tuple[tuple[str, Tensor, Sequence[int]], ...]:
        views = spread.answers.shape[-1:]
        return (
            ("spread.error", spread.error, self.scores.shape),
            ("spread.answers", spread.answers, (*self.scores.shape[:-2], *views)),
        )

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Returns the provenance as plain JSON values: what the file holds, and what no attribute of its own says."""
        return MappingProxyType(self.provenance.as_metadata())

    def named(self, *sources: str | None) -> "Explanation":
        """Returns the same explanation of images under other names, one for each."""
        return replace(self, provenance=replace(self.provenance, sources=sources))

    # -- the question ------------------------------------------------------------------------------------------------

    @property
    def targets(self) -> int:
        """Returns the number of targets of each image: 1 for scores of (batch, rows, cols)."""
        return self.scores.shape[1] if self.scores.ndim == 4 else 1

    @property
    def grid(self) -> tuple[int, int]:
        """Returns the rows and columns of patches."""
        return self.scores.shape[-2], self.scores.shape[-1]

    def map(self, image: int = 0, target: int = 0) -> Float[Tensor, "rows cols"]:
        """Returns the raw map of one image for one of its targets. Raises `IndexError` beyond the last of either."""
        return self._by_target(self.scores)[image, target]

    def class_name(self, index: int) -> str:
        """Returns a short name: the text before the first comma, with the index where two classes share it; else "class
        7".

        A text that images were held against is its own name, commas and all.
        """
        if self.class_names is None or not 0 <= index < len(self.class_names):
            return f"class {index}" if index >= 0 else "a function"
        if self.provenance.of_texts:
            return self.class_names[index]
        name = short_name(index, self.class_names)
        return f"{name} ({index})" if name in _shared(tuple(self.class_names)) else name

    @property
    def output(self) -> Output:
        """Returns the kind of the model's output, which says what `logits` and probabilities are."""
        if (said := self.provenance.output) is not None:
            return Output(said.kind, link=said.link)
        return Output() if self.logits.shape[1] > 1 else Output("scores", link=None)

    def probability(self, index: int, image: int = 0) -> float | None:
        """Returns the model's probability of class `index`, from 0 to 1; None where it gives none, and for a
        function.
        """
        if index < 0 or self.output.link is None:
            return None
        return self.output.probabilities(self.logits[image].double())[index].item()

    def verdict(self, index: int, image: int = 0) -> str:
        """Returns the model's score of a class in words: "82.1 %", or "= 3.21" for a number that is not a probability.

        With a guide it is what the model says beside the guide, from the lowest to the highest of several inputs.
        """
        if self.guided:  # the map is of the stitched inputs, so the photograph alone is not what was asked about
            parts = sorted(self.guided, key=lambda part: part.probability(index, image) or 0.0)
            ends = dict.fromkeys((parts[0].verdict(index, image), parts[-1].verdict(index, image)))
            return f"{'…'.join(ends)} beside the guide"
        return verdict_of(self.probability(index, image), self.logits[image, index].item())

    def question(self, image: int = 0, target: int = 0) -> str:
        """Returns the question of the map: "zebra 82.1 % against African elephant 3.4 %"."""
        return " against ".join(f"{name} {value}".strip() for name, value in self.sides(image, target))

    def sides(self, image: int = 0, target: int = 0) -> list[tuple[str, str]]:
        """Returns the classes of the question, the target first: a short name and what the model says of it, as "82.1
        %".

        With a guide it is what the model says beside the guide, from the lowest to the highest of several inputs.
        """
        classes = [self._by_target(self.target)[image, target].item()]
        if (functions := self.provenance.functions) and (asked := functions[image][target]):
            name, value = asked
            return [(name, verdict_of(None, value))]
        if self.against is not None:
            classes.append(self._by_target(self.against)[image, target].item())
        return [(self.class_name(index), self.verdict(index, image)) for index in map(int, classes)]

    @property
    def competes(self) -> bool:
        """Returns whether classes competed: what argues for the target's rivals is subtracted, where any is present."""
        return self.rivals is not None

    def competitors(self, image: int = 0, target: int = 0) -> list[tuple[str, float]]:
        """Returns the classes that competed with the target, the most present first: a short name, and its weight in
        (0, 1].

        Empty where none did, for want of a rival or because nobody asked for competition.
        """
        if self.rivals is None:
            return []
        classes, weights = (self._by_target(t)[image, target] for t in (self.rivals.classes, self.rivals.weights))
        return [(self.class_name(c), w) for c, w in zip(classes.tolist(), weights.tolist(), strict=True) if w > 0]

    def competition_words(self, image: int = 0, target: int = 0) -> str:
        """Returns what was subtracted: "less what argues for African elephant, tusker"; "" without competition.

        Classes that count for less than a tenth of the first are not named.
        """
        if not self.competes:
            return ""
        found = self.competitors(image, target)
        named = ", ".join(name for name, weight in found if weight >= found[0][1] / 10)
        return f"less what argues for {named}" if named else "no rival class is present"

    def notes(self) -> list[str]:
        """Returns notes for the reader: on all images, then each sentence once with the images that it concerns."""
        said = [*self.provenance.notes, *failure_notes(self.failures, len(self) + len(self.failures))]
        about: dict[str, list[str]] = {}
        for i, notes in enumerate(self.provenance.image_notes[: len(self)]):
            for note in dict.fromkeys(notes):
                about.setdefault(note, []).append(self.source(i) or f"image {i}")
        said += [f"{_those(named, len(self))}{note}" for note, named in about.items()]
        return list(dict.fromkeys(said))

    @property
    def failures(self) -> tuple[Mapping[str, Any], ...]:
        """Returns the images left out by `on_error="skip"`: position in the call ("image"), "source", "error"
        and "message".
        """
        return self.provenance.failures

    def source(self, image: int = 0) -> str | None:
        """Returns the file name of an image that was given by its path."""
        return self.provenance.source(image)

    def gradient_mode(self) -> str | None:
        """Returns the gradient mode, "full", "leaf", "libra" or "gim"; None where the method uses no gradient."""
        return None if self.provenance.uses_gradient is False else self.provenance.gradient

    def gradient_words(self) -> str:
        """Returns the gradient mode in words, "libra gradient"; empty where there is none."""
        mode = self.gradient_mode()
        return f"{mode} gradient" if mode else ""

    def finer_words(self) -> str:
        """Returns how fine a map is, and over how many views the mean, "2 × 2 cells, 4 views"; empty for plain ones."""
        asked = self.provenance.finer or {"resolution": 1, "passes": 1}
        cells, views = asked["resolution"], asked["passes"]
        words = "pixels" if cells == "pixel" else f"{cells} × {cells} cells" * (cells != 1)
        return ", ".join(filter(None, (words, f"{views} views" * (views > 1))))

    # -- the map -----------------------------------------------------------------------------------------------------

    def upsample(
        self, size: int | tuple[int, int] | None = None, mode: Mode = "bilinear"
    ) -> Float[Tensor, "*some height width"]:
        """Returns the raw scores on a finer grid: of (height, width), a square of one number, by default the images'.

        Corners are not aligned, so that each patch keeps its place.

        Raises `OptionError` when no size is given and there are no images, or when the size or the mode is unknown.
        """
        if size is None:
            if self.images is None:
                raise OptionError(
                    "upsample() needs a size (height, width): this explanation holds no images to take it from"
                )
            size = (self.images.shape[1], self.images.shape[2])
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise OptionError(
                f"upsample() cannot make a map of {' x '.join(map(str, sides))}: give (height, width), both whole and "
                "at least 1, or one number for a square"
            )
        if mode not in ("bilinear", "bicubic", "nearest"):
            raise OptionError(f"unknown mode {mode!r} of upsample(); known: bilinear, bicubic, nearest")
        maps = self._by_target(self.scores)
        larger = interpolate(maps, size=sides, mode=mode, align_corners=None if mode == "nearest" else False)
        return larger if self.scores.ndim == 4 else larger[:, 0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """A copy of the raw scores as a NumPy array, so that `np.asarray(ex)` gives them."""
        return np.array(self.scores.numpy(force=True), dtype=dtype, copy=True if copy is None else copy)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns one row per image, target and patch: a pandas DataFrame.

        Its columns are image, source, target, target_name, where classes are compared against and against_name, then
        row, col and score. Raises `OptionError` where pandas is not installed.

        >>> question = {"target": torch.tensor([2]), "method": "gae", "objective": "logit"}
        >>> ex = Explanation(scores=torch.eye(2)[None], logits=torch.zeros(1, 3), **question)
        >>> list(ex.to_dataframe().columns), len(ex.to_dataframe())
        (['image', 'source', 'target', 'target_name', 'row', 'col', 'score'], 4)
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise OptionError("to_dataframe() needs pandas: pip install pandas") from error
        scores = self._by_target(self.scores).numpy(force=True)
        image, target, row, col = (axis.ravel() for axis in np.indices(scores.shape))
        names = [self.source(number) for number in range(len(self))]
        columns: dict[str, Any] = {"image": image, "source": np.array(names, dtype=object)[image]}
        for role, classes in (("target", self.target), ("against", self.against)):
            if classes is not None:
                index = self._by_target(classes).numpy(force=True)[image, target]
                named = {one: self.class_name(one) for one in np.unique(index).tolist()}
                columns |= {role: index, f"{role}_name": [named[one] for one in index.tolist()]}
        return pd.DataFrame(columns | {"row": row, "col": col, "score": scores.ravel()})

    # -- pictures ----------------------------------------------------------------------------------------------------

    def plot(self, path: str | os.PathLike[str] | None = None, **look: Any) -> "matplotlib.figure.Figure":
        """Draws photographs and signed maps, and writes them to `path` (.png, .jpg, .pdf or .svg) where one is given.

        The options are those of `vitrail.plotting.draw`: opacity, smooth, shared_scale, photograph, max_images,
        colormap, threshold and side.
        """
        from vitrail.plotting.figure import draw
        from vitrail.plotting.saving import save_figure, suffix_of

        if path is not None:
            suffix_of(path)  # before the drawing, which takes longer than a refusal should
        figure = draw(self, **look)
        if path is not None:
            save_figure(figure, path)
        return figure

    def overlay(
        self, image: int = 0, target: int = 0, *, size: int | tuple[int, int] | None = None, **look: Any
    ) -> "PIL.Image.Image":
        """Returns one map laid over its image, without letters: an RGB picture of the image's size.

        `size` is another one, (height, width) or one number for a square; the options are those of
        `vitrail.plotting.overlay`: opacity, smooth, limit, colormap and threshold.

        >>> question = {"target": torch.tensor([2]), "method": "gae", "objective": "logit"}
        >>> ex = Explanation(scores=torch.eye(2)[None], logits=torch.zeros(1, 3), **question)
        >>> ex.overlay(size=64).size
        (64, 64)
        """
        from PIL import Image

        from vitrail.plotting.overlay import overlay

        picture = None if self.images is None else self.images[image].numpy(force=True)
        sides = (size, size) if isinstance(size, int) else size
        scores = self.map(image, target).numpy(force=True).astype(np.float64)
        return Image.fromarray(overlay(scores, picture, size=sides, signed=self.signed, **look))

    def _repr_html_(self) -> str:
        """The figure and what it shows, for notebooks."""
        from vitrail.plotting.saving import figure_html

        return figure_html(self.plot(max_images=NOTEBOOK), repr(self))

    # -- one image at a time -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice) -> "Explanation":
        """The explanation of one image, still with a batch dimension (of 1), or of a slice of them."""
        if not isinstance(index, slice):
            if not -len(self) <= index < len(self):
                raise IndexError(f"image {index} of an explanation of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        return replace(
            self,
            scores=self.scores[index],
            logits=self.logits[index],
            target=self.target[index],
            against=None if self.against is None else self.against[index],
            images=None if self.images is None else self.images[index],
            provenance=self.provenance.of_images(index, len(self)),
            rivals=None if self.rivals is None else self.rivals[index],
            spread=None if self.spread is None else self.spread[index],
            guided=tuple(part[index] for part in self.guided),
        )

    def __iter__(self) -> Iterator["Explanation"]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        count = f"{len(self)} image{'s' if len(self) != 1 else ''}, " + (
            f"{self.targets} targets each, " if self.targets > 1 else ""
        )
        question = f", {self.question()}" if len(self) == self.targets == 1 else ""
        words = (f"{self.method} of {self.objective}", self.gradient_words(), "class competition" * self.competes)
        how = ", ".join(filter(None, words))
        cells = "patches" if self.provenance.grid in (None, self.grid) else "cells"
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"Explanation({how}, {count}{self.grid[0]} x {self.grid[1]} {cells}{question}{failed})"

    def _by_target(self, tensor: Tensor) -> Tensor:
        return tensor if self.scores.ndim == 4 else tensor.unsqueeze(1)

    # -- the file ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], **look: Any) -> Path:
        """Writes everything to a .safetensors file, or the figure to a .png, .jpg, .pdf or .svg file.

        The file is written whole or not at all; its path is returned. In a .safetensors file the tensors are stored as
        they are and all the rest as JSON text in the header; `Explanation.load` reads it. The same explanation makes
        the same bytes. For a figure the options are those of `plot`.

        Raises `OutputFileError` when the file cannot be written, its name ends otherwise, or the metadata are not plain
        JSON values; `OptionError` for options of a figure where none is written.
        """
        path = Path(path)
        if path.suffix.lower().removeprefix(".") in PICTURES:
            self.plot(path, **look)
            return path
        if look:
            raise OptionError(f"{', '.join(look)}: only a figure has these, and {path} is none; name it .png, say")
        if path.suffix != ".safetensors":
            raise OutputFileError(
                f"cannot save to {path}: name it .safetensors for the numbers and the question, or "
                f"{', '.join(f'.{kind}' for kind in PICTURES[:-1])} or .{PICTURES[-1]} for the figure"
            )
        write_explanation(path, *contents_of(self))
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Explanation":
        """Reads what `save` wrote; the tensors come back on the CPU, bit for bit.

        Raises `ExplanationFileError` when the file is missing, damaged, not an explanation, of a later version, or
        holds what no explanation does: NaN or infinity, an empty map, a target that is no class.
        """
        return read_explanation(Path(path), partial(explanation_of, Explanation))


def _those(named: Sequence[str], count: int) -> str:
    """The start of a note that is about some of `count` images: "a.jpg: ", "3 of 8 images (a.jpg, b.jpg, …): "."""
    if count == 1 or len(named) == count > 2:
        return "" if count == 1 else "All images: "
    if len(named) == 1:
        return f"{named[0]}: "
    return f"{len(named)} of {count} images ({', '.join(named[:3])}{', …' if len(named) > 3 else ''}): "


@lru_cache(maxsize=8)
def _shared(names: tuple[str, ...]) -> frozenset[str]:
    """The short names that several classes have."""
    return frozenset(
        name for name, count in Counter(short_name(i, names) for i in range(len(names))).items() if count > 1
    )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
