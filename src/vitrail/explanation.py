"""What one call of `explain` found, together with what was asked. It never changes and never needs the model again."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.nn.functional import interpolate

from vitrail.errors import OptionError, OutputFileError, VitrailError
from vitrail.files import atomic_write, open_regular
from vitrail.objectives import Rivals
from vitrail.outputs import Kind, Output

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas
    import PIL.Image

__all__ = ["Explanation", "ExplanationFileError", "percent", "verdict_of"]

# One key in the header: safetensors promises no order for several, and equal results shall make equal files.
HEADER = "vitrail"
VERSION = 3  # of rivals; with guides it is 2, else 1, which older readers know

# Metadata that are lists with one entry for each image, and are cut with the images.
PER_IMAGE = ("sources", "image_notes", "difference_instead", "guides", "positions", "functions")

Mode = Literal["bilinear", "bicubic", "nearest"]
PICTURES = ("png", "jpg", "jpeg", "pdf", "svg")  # endings of a figure's file
NOTEBOOK = 12  # images that a notebook shows of itself


class ExplanationFileError(VitrailError):
    """The file is missing, damaged, or holds something other than an explanation."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Explanation:
    """A signed map for each image, or for each target of each image, and the question that it answers.

    `scores` are raw: positive where a patch argues for the target, negative where it argues against, not normalised.
    `target` and `against` hold class indices. `images` is what the model saw, RGB from 0 to 255. `metadata` holds plain
    JSON values, of which pictures show `model` (its name), `sources` (one file name per image), `notes` (sentences for
    the reader), `image_notes` (a list of them per image), `gradient` (unless "full"), `centred`, `class_specific`
    (where False), and `picture` (what `images` are, if not what the model saw). `output` is the kind of the model's
    output and `probability` what makes probabilities of `logits`: "softmax", "sigmoid", or None where there are none.
    `functions` holds the name and the value of every function that was asked about, where `target` is −1.

    `guided` is not empty where a guide was given: one explanation for each way in which the originals were laid beside
    a guide, with the whole stitched map, the stitched picture and the logits that the model gave for it; its metadata
    entry `stitch` says where the original's patches are. `scores` is then the mean of these maps on those patches,
    while `logits` are those of the originals alone.

    `rivals` is what competed with the target (`compete=True`): the classes, how much each counts, and the map that
    was subtracted, of the shape of `scores`; None where nothing did.

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
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rivals: Rivals | None = None
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
        object.__setattr__(self, "metadata", dict(self.metadata))

    def _rival_shapes(self, rivals: Rivals) -> tuple[tuple[str, Tensor, Sequence[int]], ...]:
        several = (*self.scores.shape[:-2], *rivals.classes.shape[-1:])
        return (
            ("rivals.scores", rivals.scores, self.scores.shape),
            ("rivals.classes", rivals.classes, several),
            ("rivals.weights", rivals.weights, several),
        )

    # -- the question ------------------------------------------------------------------------------------------------

    @property
    def targets(self) -> int:
        """How many targets each image has: 1 for scores of (batch, rows, cols)."""
        return self.scores.shape[1] if self.scores.ndim == 4 else 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.scores.shape[-2], self.scores.shape[-1]

    def map(self, image: int = 0, target: int = 0) -> Float[Tensor, "rows cols"]:
        """The raw map of one image for one of its targets. Raises `IndexError` beyond the last of either."""
        return self._by_target(self.scores)[image, target]

    def class_name(self, index: int) -> str:
        """A short name: the text before the first comma, with the index where two classes share it; else "class 7".

        A text that images were held against is its own name, commas and all.
        """
        if self.class_names is None or not 0 <= index < len(self.class_names):
            return f"class {index}" if index >= 0 else "a function"
        if self.metadata.get("class_names") == "texts":
            return self.class_names[index]
        name = _short(self.class_names[index])
        shared = sum(_short(other) == name for other in self.class_names) > 1
        return f"{name} ({index})" if shared else name

    @property
    def output(self) -> Output:
        """The kind of the model's output, which says what `logits` and probabilities are."""
        several = self.logits.shape[1] > 1
        kind: Kind = self.metadata.get("output") or ("logits" if several else "scores")
        return Output(kind, link=self.metadata.get("probability", "softmax" if several else None))

    def probability(self, index: int, image: int = 0) -> float | None:
        """The model's probability of class `index`, from 0 to 1; None where it gives none, and for a function."""
        if index < 0 or self.output.link is None:
            return None
        return self.output.probabilities(self.logits[image].double())[index].item()

    def verdict(self, index: int, image: int = 0) -> str:
        """What the model says of a class, in words: "82.1 %", or "= 3.21" for a number that is no probability.

        With a guide it is what the model says beside the guide, from the lowest to the highest of several inputs.
        """
        if self.guided:  # the map is of the stitched inputs, so the photograph alone is not what was asked about
            parts = sorted(self.guided, key=lambda part: part.probability(index, image) or 0.0)
            ends = dict.fromkeys((parts[0].verdict(index, image), parts[-1].verdict(index, image)))
            return f"{'…'.join(ends)} beside the guide"
        return verdict_of(self.probability(index, image), self.logits[image, index].item())

    def question(self, image: int = 0, target: int = 0) -> str:
        """What the map answers, in words: "zebra 82.1 % against African elephant 3.4 %"."""
        return " against ".join(f"{name} {value}".strip() for name, value in self.sides(image, target))

    def sides(self, image: int = 0, target: int = 0) -> list[tuple[str, str]]:
        """The classes of the question, the target first: a short name and what the model says of it, as "82.1 %".

        With a guide it is what the model says beside the guide, from the lowest to the highest of several inputs.
        """
        classes = [self._by_target(self.target)[image, target].item()]
        if (functions := self.metadata.get("functions")) and functions[image][target]:
            name, value = functions[image][target]
            return [(name, verdict_of(None, value))]
        if self.against is not None:
            classes.append(self._by_target(self.against)[image, target].item())
        return [(self.class_name(index), self.verdict(index, image)) for index in map(int, classes)]

    @property
    def competes(self) -> bool:
        """Whether classes competed: what argues for the target's rivals is subtracted, where any is present."""
        return self.rivals is not None

    def competitors(self, image: int = 0, target: int = 0) -> list[tuple[str, float]]:
        """The classes that competed with the target, the most present first: a short name, and its weight in (0, 1].

        Empty where none did, for want of a rival or because nobody asked for competition.
        """
        if self.rivals is None:
            return []
        classes, weights = (self._by_target(t)[image, target] for t in (self.rivals.classes, self.rivals.weights))
        return [(self.class_name(c), w) for c, w in zip(classes.tolist(), weights.tolist(), strict=True) if w > 0]

    def competition_words(self, image: int = 0, target: int = 0) -> str:
        """What was subtracted, in words: "less what argues for African elephant, tusker"; "" without competition.

        Classes that count for less than a tenth of the first are not named.
        """
        if not self.competes:
            return ""
        found = self.competitors(image, target)
        named = ", ".join(name for name, weight in found if weight >= found[0][1] / 10)
        return f"less what argues for {named}" if named else "no rival class is present"

    def notes(self) -> list[str]:
        """What the reader should know: of all images, then each sentence once with the images that it is about."""
        said = [str(note) for note in self.metadata.get("notes") or ()]
        said += failure_notes(self.failures, len(self) + len(self.failures))
        of_images: Sequence[Sequence[str]] = self.metadata.get("image_notes") or ()
        about: dict[str, list[str]] = {}
        for i, notes in zip(range(len(self)), of_images, strict=False):
            for note in dict.fromkeys(notes):
                about.setdefault(str(note), []).append(self.source(i) or f"image {i}")
        said += [f"{_those(named, len(self))}{note}" for note, named in about.items()]
        return list(dict.fromkeys(said))

    @property
    def failures(self) -> tuple[Mapping[str, Any], ...]:
        """The images left out by `on_error="skip"`: position in the call ("image"), "source", "error" and "message"."""
        return tuple(self.metadata.get("failures") or ())

    def source(self, image: int = 0) -> str | None:
        """The file name of an image that was given by its path."""
        sources: Sequence[str | None] = self.metadata.get("sources") or ()
        return sources[image] if image < len(sources) else None

    def gradient_mode(self) -> str | None:
        """How the gradient was taken, "full", "leaf" or "libra"; None where the method uses none."""
        return self.metadata.get("gradient") if self.metadata.get("uses_gradient", True) else None

    def gradient_words(self) -> str:
        """The gradient mode in words, "libra gradient"; empty where there is none."""
        mode = self.gradient_mode()
        return f"{mode} gradient" if mode else ""

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
        per_image = {key: self.metadata[key] for key in PER_IMAGE if len(self.metadata.get(key) or ()) == len(self)}
        metadata = {**self.metadata, **{key: list(values[index]) for key, values in per_image.items()}}
        if len(range(len(self))[index]) < len(self):
            metadata.pop("failures", None)  # of the whole call
        return replace(
            self,
            scores=self.scores[index],
            logits=self.logits[index],
            target=self.target[index],
            against=None if self.against is None else self.against[index],
            images=None if self.images is None else self.images[index],
            metadata=metadata,
            rivals=None if self.rivals is None else self.rivals[index],
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
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"Explanation({how}, {count}{self.grid[0]} x {self.grid[1]} patches{question}{failed})"

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
        text = {
            "version": VERSION if self.rivals is not None else 2 if self.guided else 1,
            "method": self.method,
            "objective": self.objective,
            "signed": self.signed,
            "class_names": self.class_names,
            "metadata": dict(self.metadata),
        }
        if self.guided:
            text["guided"] = [dict(part.metadata) for part in self.guided]
        try:
            header = json.dumps(text, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise OutputFileError(f"cannot save to {path}: the metadata are not plain JSON values ({error})") from error
        tensors = _tensors(self)
        for number, part in enumerate(self.guided):
            tensors |= {f"guided.{number}.{name}": tensor for name, tensor in _tensors(part).items()}
        for name, tensor in tensors.items():
            if tensor is not None and not bool(tensor.isfinite().all()):  # nor would `load` take it
                raise OutputFileError(f"cannot save to {path}: {name} hold NaN or infinity")
        stored = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items() if t is not None}
        with atomic_write(path) as file:
            file.write(to_safetensors(stored, metadata={HEADER: header}))
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Explanation":
        """Read what `save` wrote; the tensors come back on the CPU, bit for bit.

        Raises `ExplanationFileError` when the file is missing, damaged, not an explanation, of a later version, or
        holds what no explanation does: NaN or infinity, an empty map, a target that is no class.
        """
        path = Path(path)
        try:
            open_regular(path, 2**40).close()
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get(HEADER)
                names = file.keys() if header is not None else ()
                tensors = {name: file.get_tensor(name).clone() for name in names}
        except (OSError, SafetensorError, RuntimeError, TypeError, ValueError, KeyError) as error:
            name = str(path).replace("\0", "\\0")
            raise ExplanationFileError(f"cannot read {name}: {error}") from error
        if header is None:
            raise ExplanationFileError(
                f"{path} is a safetensors file, but not an explanation: its header has no {HEADER!r} entry"
            )
        try:
            text = json.loads(header)
            if text["version"] > VERSION:
                raise ExplanationFileError(
                    f"{path} is an explanation file of version {text['version']}, "
                    f"this Vitrail reads up to {VERSION}; update Vitrail"
                )
            fields = _fields(text)
            guided = []
            for number, metadata in enumerate(text.get("guided", ())):
                prefix = f"guided.{number}."
                own = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
                _check_tensors(own)
                guided.append(Explanation(**own, **fields, metadata=metadata))
            _check_tensors(tensors, functions=bool(text["metadata"].get("functions")))
            return Explanation(**_with_rivals(tensors), **fields, metadata=text["metadata"], guided=tuple(guided))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            said = f"it has no entry {error}" if isinstance(error, KeyError) else error
            raise ExplanationFileError(f"{path} is not an explanation that Vitrail can read: {said}") from error


def percent(probability: float) -> str:
    """A probability in words, never rounded to certainty.

    >>> percent(0.8214), percent(0.9999), percent(0.0001)
    ('82.1 %', '>99.9 %', '<0.1 %')
    """
    if 0 < probability < 0.0005:
        return "<0.1 %"
    if 0.9995 <= probability < 1:
        return ">99.9 %"
    return f"{100 * probability:.1f} %"


def _those(named: Sequence[str], count: int) -> str:
    """The start of a note that is about some of `count` images: "a.jpg: ", "3 of 8 images (a.jpg, b.jpg, …): "."""
    if count == 1 or len(named) == count > 2:
        return "" if count == 1 else "All images: "
    if len(named) == 1:
        return f"{named[0]}: "
    return f"{len(named)} of {count} images ({', '.join(named[:3])}{', …' if len(named) > 3 else ''}): "


def failure_notes(failures: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """One sentence per cause, naming the images that have no map."""
    causes: dict[str, list[str]] = {}
    for one in failures:
        causes.setdefault(one["message"], []).append(one["source"] or f"number {one['image']}")
    return [
        f"{len(names)} of {count} could not be explained and {'is' if len(names) == 1 else 'are'} left out "
        f"({', '.join(names[:5])}{', …' if len(names) > 5 else ''}): {message}"
        for message, names in causes.items()
    ]


def verdict_of(probability: float | None, number: float) -> str:
    """What a model says of a class, in words: its probability, or the number itself where it has none.

    >>> verdict_of(0.8214, 1.5), verdict_of(None, 1.5)
    ('82.1 %', '= 1.5')
    """
    return f"= {number:.3g}" if probability is None else percent(probability)


def _fields(text: Mapping[str, Any]) -> dict[str, Any]:
    """What a file's header says of all maps. Raises `ValueError` for an entry of another kind."""
    names, guided = text["class_names"], text.get("guided", [])
    fields = {key: text[key] for key in ("method", "objective", "signed")}
    for key, value, kind in (
        *((key, fields[key], str) for key in ("method", "objective")),
        ("signed", fields["signed"], bool),
        ("metadata", text["metadata"], dict),
        ("guided", guided, list),
        ("class_names", [] if names is None else names, list),
        *(("guided", metadata, dict) for metadata in (guided if isinstance(guided, list) else ())),
        *(("class_names", name, str) for name in (names if isinstance(names, list) else ())),
    ):
        if not isinstance(value, kind):
            raise ValueError(f"{key} holds {type(value).__name__}, expected {kind.__name__}")
    return {**fields, "class_names": None if names is None else tuple(names)}


def _check_tensors(tensors: Mapping[str, Tensor], *, functions: bool = False) -> None:
    """Refuses what no explanation holds, and a file may. Raises `ValueError` naming it.

    Where functions were asked about, the target −1 stands for them.
    """
    scores, logits = tensors["scores"], tensors["logits"]
    if scores.ndim not in (3, 4) or logits.ndim != 2 or 0 in scores.shape[-2:] or not logits.shape[1]:
        raise ValueError(
            f"scores are {_shape(scores)} and logits {_shape(logits)}, expected (batch, rows, cols) or (batch, "
            "targets, rows, cols), and (batch, classes)"
        )
    for name, tensor in tensors.items():
        kinds = (torch.uint8,) if name == "images" else (torch.int32, torch.int64)
        real = name in ("scores", "logits", "rivals.scores", "rivals.weights")
        if not (tensor.is_floating_point() if real else tensor.dtype in kinds):
            raise ValueError(f"{name} are {tensor.dtype}")
        if real and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} hold NaN or infinity")
        if name in ("target", "against", "rivals.classes") and tensor.numel():
            low, high = int(tensor.min()), int(tensor.max())
            least = -1 if functions and name == "target" else 0
            if low < least or high >= logits.shape[1]:
                raise ValueError(f"{name} {low if low < least else high} is no class of {logits.shape[1]}")


def _tensors(ex: Explanation) -> dict[str, Tensor | None]:
    own = {name: getattr(ex, name) for name in ("scores", "logits", "target", "against", "images")}
    return own if ex.rivals is None else {**own, **{f"rivals.{name}": t for name, t in vars(ex.rivals).items()}}


def _with_rivals(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of an explanation from the tensors of its file."""
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("rivals.")}
    theirs = {name.removeprefix("rivals."): t for name, t in tensors.items() if name not in own}
    return {**own, "rivals": Rivals(**theirs)} if theirs else own


def _short(name: str) -> str:
    return name.split(",", 1)[0].strip()


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
