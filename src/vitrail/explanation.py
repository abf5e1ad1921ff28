"""What one call of `explain` found, together with what was asked. It never changes and never needs the model again."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.nn.functional import interpolate

from vitrail.errors import OptionError, OutputFileError, VitrailError
from vitrail.files import atomic_write

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["Explanation", "ExplanationFileError", "percent"]

# One key in the header: safetensors promises no order for several, and equal results shall make equal files.
HEADER = "vitrail"
VERSION = 2  # a file without guides is written as version 1, which older readers know

# Metadata that are lists with one entry for each image, and are cut with the images.
PER_IMAGE = ("sources", "image_notes", "difference_instead", "guides", "gradients")

Mode = Literal["bilinear", "bicubic", "nearest"]


class ExplanationFileError(VitrailError):
    """The file is missing, damaged, or holds something other than an explanation."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Explanation:
    """A signed map for each image, or for each target of each image, and the question that it answers.

    `scores` are raw: positive where a patch argues for the target, negative where it argues against, not normalised.
    `target` and `against` hold class indices. `images` is what the model saw, RGB from 0 to 255. `metadata` holds plain
    JSON values, of which pictures show `model` (its name), `sources` (one file name per image), `notes` (sentences for
    the reader), `image_notes` (a list of them per image), `gradient` (unless "full"), `centred`, `class_specific`
    (where False), and `picture` (what `images` are, if not what the model saw).

    `guided` is not empty where a guide was given: one explanation for each way in which the originals were laid beside
    a guide, with the whole stitched map, the stitched picture and the logits that the model gave for it; its metadata
    entry `stitch` says where the original's patches are. `scores` is then the mean of these maps on those patches,
    while `logits` are those of the originals alone.

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
    target: Int[Tensor, "batch"] | Int[Tensor, "batch targets"]
    against: Int[Tensor, "batch"] | Int[Tensor, "batch targets"] | None = None
    method: str
    objective: str
    signed: bool = True
    class_names: tuple[str, ...] | None = None
    images: UInt8[Tensor, "batch height width 3"] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
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
            return f"class {index}"
        if self.metadata.get("class_names") == "texts":
            return self.class_names[index]
        name = _short(self.class_names[index])
        shared = sum(_short(other) == name for other in self.class_names) > 1
        return f"{name} ({index})" if shared else name

    def probability(self, index: int, image: int = 0) -> float:
        """The softmax of the image's logits at class `index`, from 0 to 1."""
        return self.logits[image].double().softmax(-1)[index].item()

    def question(self, image: int = 0, target: int = 0) -> str:
        """What the map answers, in words: "zebra 82.1 % against African elephant 3.4 %"."""
        return " against ".join(f"{name} {value}".strip() for name, value in self.sides(image, target))

    def sides(self, image: int = 0, target: int = 0) -> list[tuple[str, str]]:
        """The classes of the question, the target first: a short name and what the model says of it, as "82.1 %".

        With a guide it is what the model says beside the guide, from the lowest to the highest of several inputs.
        """
        classes = [self._by_target(self.target)[image, target].item()]
        if self.against is not None:
            classes.append(self._by_target(self.against)[image, target].item())
        return [(self.class_name(index), self._verdict(index, image)) for index in map(int, classes)]

    def notes(self) -> list[str]:
        """What the reader should know: of all images, then of each, with its name where there are several."""
        said = [str(note) for note in self.metadata.get("notes") or ()]
        of_images: Sequence[Sequence[str]] = self.metadata.get("image_notes") or ()
        sources: Sequence[str | None] = self.metadata.get("sources") or [None] * len(self)
        for i, (source, notes) in enumerate(zip(sources, of_images, strict=False)):
            where = f"{source or f'image {i}'}: " if len(self) > 1 else ""
            said += [f"{where}{note}" for note in notes]
        return list(dict.fromkeys(said))

    def _verdict(self, index: int, image: int) -> str:
        if self.guided:  # the map is of the stitched inputs, so the photograph alone is not what was asked about
            parts = sorted(self.guided, key=lambda part: float(part.logits[image].double().softmax(-1)[index]))
            ends = dict.fromkeys((parts[0]._verdict(index, image), parts[-1]._verdict(index, image)))
            return f"{'…'.join(ends)} beside the guide"
        if self.logits.shape[1] == 1:  # a regression: the softmax of one number is always 1 and says nothing
            return f"= {self.logits[image, index].item():.3g}"
        return percent(self.probability(index, image))

    # -- the map -----------------------------------------------------------------------------------------------------

    def upsample(
        self, size: tuple[int, int] | None = None, mode: Mode = "bilinear"
    ) -> Float[Tensor, "*some height width"]:
        """The raw scores on a finer grid, by default that of the images.

        Corners are not aligned, so that each patch keeps its place.

        Raises `OptionError` when no size is given and there are no images, or when the mode is unknown.
        """
        if size is None:
            if self.images is None:
                raise OptionError(
                    "upsample() needs a size (height, width): this explanation holds no images to take it from"
                )
            size = (self.images.shape[1], self.images.shape[2])
        if mode not in ("bilinear", "bicubic", "nearest"):
            raise OptionError(f"unknown mode {mode!r} of upsample(); known: bilinear, bicubic, nearest")
        if min(size) < 1:
            raise OptionError(f"upsample() cannot make a map of {size[0]} x {size[1]}; both sides must be at least 1")
        maps = self._by_target(self.scores)
        larger = interpolate(maps, size=size, mode=mode, align_corners=None if mode == "nearest" else False)
        return larger if self.scores.ndim == 4 else larger[:, 0]

    def plot(self, **look: Any) -> "matplotlib.figure.Figure":
        """Draw photographs and signed maps side by side; the options are those of `vitrail.render.figure.draw`."""
        from vitrail.render.figure import draw

        return draw(self, **look)

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
        return replace(
            self,
            scores=self.scores[index],
            logits=self.logits[index],
            target=self.target[index],
            against=None if self.against is None else self.against[index],
            images=None if self.images is None else self.images[index],
            metadata=metadata,
            guided=tuple(part[index] for part in self.guided),
        )

    def __iter__(self) -> Iterator["Explanation"]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        count = f"{len(self)} image{'s' if len(self) != 1 else ''}, " + (
            f"{self.targets} targets each, " if self.targets > 1 else ""
        )
        question = f", {self.question()}" if len(self) == self.targets == 1 else ""
        return (
            f"Explanation({self.method} of {self.objective}, {count}{self.grid[0]} x {self.grid[1]} patches{question})"
        )

    def _by_target(self, tensor: Tensor) -> Tensor:
        return tensor if self.scores.ndim == 4 else tensor.unsqueeze(1)

    # -- the file ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to one safetensors file, whole or not at all, and return its path.

        The tensors are stored as they are; all the rest is JSON text in the file's header. The same explanation makes
        the same bytes.

        Raises `OutputFileError` when the file cannot be written, its name does not end in .safetensors, or the metadata
        are not plain JSON values.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise OutputFileError(
                f"cannot save to {path}: an explanation is a .safetensors file; "
                "for a picture use vitrail.render.save_picture"
            )
        text = {
            "version": VERSION if self.guided else 1,
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
        stored = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items() if t is not None}
        with atomic_write(path) as file:
            file.write(to_safetensors(stored, metadata={HEADER: header}))
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Explanation":
        """Read what `save` wrote; the tensors come back on the CPU, bit for bit.

        Raises `ExplanationFileError` when the file is missing, damaged, not an explanation, or of a later version.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get(HEADER)
                names = file.keys() if header is not None else ()
                tensors = {name: file.get_tensor(name).clone() for name in names}
        except (OSError, SafetensorError) as error:
            raise ExplanationFileError(f"cannot read {path}: {error}") from error
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
            names = text["class_names"]
            fields = {key: text[key] for key in ("method", "objective", "signed")}
            fields["class_names"] = None if names is None else tuple(names)
            guided = []
            for number, metadata in enumerate(text.get("guided", ())):
                prefix = f"guided.{number}."
                own = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
                guided.append(Explanation(**own, **fields, metadata=metadata))
            return Explanation(**tensors, **fields, metadata=text["metadata"], guided=tuple(guided))
        except (KeyError, TypeError, ValueError) as error:
            raise ExplanationFileError(f"{path} is not an explanation that Vitrail can read: {error!r}") from error


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


def _tensors(ex: Explanation) -> dict[str, Tensor | None]:
    return {name: getattr(ex, name) for name in ("scores", "logits", "target", "against", "images")}


def _short(name: str) -> str:
    return name.split(",", 1)[0].strip()


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
