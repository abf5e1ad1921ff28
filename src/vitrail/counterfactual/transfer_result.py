"""What a transfer of attention found, and the files of it: the finished record and the state of an interrupted run.

The record holds logits over the steps, maps of all classes on the way, and what was asked; the state holds enough to
resume to the same numbers, and to notice when the question has changed.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..errors import OptionError, OutputFileError, VitrailError
from ..explanation import Explanation
from ..files import atomic_write
from ..outputs import Output
from ..provenance import from_metadata
from .descent import Course

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Belonging",
    "Transfer",
    "TransferFileError",
    "fingerprint",
    "read_course",
    "usual_snapshots",
    "write_course",
]

KIND, STATE, VERSION = "vitrail transfer", "vitrail transfer state", 1


class TransferFileError(VitrailError):
    """The file is missing, damaged, of another kind, or does not belong to the question asked."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Transfer:
    """The course of one image's attention while the target's logit was lowered.

    `logits` are the model's answers after 0, 1, …, `steps` steps. `classes` are the target, the opposing class and
    others that were asked for; `maps` are their complete-gradient maps (Eq. 5; raw, signed) after each of the steps in
    `snapshots`. `image` is what the model saw, RGB from 0 to 255. `metadata` holds plain JSON values.

    Raises `ValueError` when the shapes disagree.

    Example:
        >>> found = Transfer(
        ...     logits=torch.tensor([[3.0, 2.0], [1.0, 1.9]]),
        ...     maps=torch.zeros(2, 2, 4, 4),
        ...     snapshots=(0, 1),
        ...     classes=(0, 1),
        ...     lr=4e-4,
        ...     optimiser="sgd",
        ...     constraint="none",
        ...     class_names=("zebra", "horse"),
        ... )
        >>> found.steps, found.class_name(found.target), found.curve(0).tolist()
        (1, 'zebra', [3.0, 1.0])
        >>> found.after(1).scores.shape
        torch.Size([1, 2, 4, 4])
    """

    logits: Float[Tensor, "states classes"]
    maps: Float[Tensor, "snapshots shown rows cols"]
    snapshots: tuple[int, ...]
    classes: tuple[int, ...]
    lr: float
    optimiser: str
    constraint: str
    class_names: tuple[str, ...] | None = None
    image: UInt8[Tensor, "height width 3"] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if tuple(self.maps.shape[:2]) != (len(self.snapshots), len(self.classes)):
            raise ValueError(
                f"maps are {tuple(self.maps.shape)}, but there are {len(self.snapshots)} snapshots of "
                f"{len(self.classes)} classes"
            )
        if len(self.classes) < 2 or list(self.snapshots) != sorted({*self.snapshots} & {*range(len(self.logits))}):
            raise ValueError(
                f"{len(self.classes)} classes and snapshots {self.snapshots} of {len(self.logits)} states: give two "
                "classes or more, and steps in rising order"
            )
        object.__setattr__(self, "metadata", dict(self.metadata))

    @property
    def steps(self) -> int:
        """Returns the number of steps taken."""
        return len(self.logits) - 1

    @property
    def target(self) -> int:
        """Returns the class whose logit was lowered."""
        return self.classes[0]

    @property
    def opposing(self) -> int:
        """Returns the class that attention was expected to go to."""
        return self.classes[1]

    def curve(self, index: int) -> Float[Tensor, " states"]:
        """Returns the logit of any class of the model after 0, 1, …, `steps` steps."""
        return self.logits[:, index]

    @property
    def output(self) -> Output:
        """Returns the kind of the model's output."""
        return self.after(self.snapshots[0]).output

    def probability(self, index: int, step: int) -> float | None:
        """Returns the probability of a class after a step; None for a model that gives none."""
        if self.output.link is None:
            return None
        return self.output.probabilities(self.logits[step].double())[index].item()

    def class_name(self, index: int) -> str:
        """Returns a short name for a class, as in `Explanation.class_name`."""
        return self.after(self.snapshots[0]).class_name(index)

    def after(self, step: int) -> Explanation:
        """Returns the maps of all classes after a step that was drawn, as an explanation that can be drawn and saved.

        Raises:
            OptionError: when no maps were drawn at that step.
        """
        if step not in self.snapshots:
            raise OptionError(f"no maps were drawn after step {step}; there are those of {_listed(self.snapshots)}")
        return Explanation(
            scores=self.maps[self.snapshots.index(step)][None],
            logits=self.logits[step][None],
            target=torch.tensor([self.classes]),
            method="complete",
            objective="logit",
            class_names=self.class_names,
            images=None if self.image is None else self.image[None],
            provenance=from_metadata(
                {key: of for key, of in self.metadata.items() if key in ("model", "sources", "output", "probability")}
                | {"gradient": "leaf"}
                | {"notes": [f"Attention after {step} of {self.steps} steps down the logit of the first class."]}
            ),
        )

    def plot(self, **look: Any) -> "Figure":
        """Draws classes by steps, with the curves below; the options are those of `vitrail.plotting.draw_transfer`."""
        from ..plotting.transfer import draw_transfer

        return draw_transfer(self, **look)

    def animate(self, path: str | os.PathLike[str], **look: Any) -> Path:
        """Writes a film of the maps and the curves: .gif, .webp or .mp4; see `vitrail.plotting.save_film`."""
        from ..plotting.film import save_film

        return save_film(self, path, **look)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes everything to one .safetensors file, whole or not at all. Returns the path.

        Raises `OutputFileError` when the file cannot be written.
        """
        values = {
            "snapshots": list(self.snapshots),
            "classes": list(self.classes),
            "lr": self.lr,
            "optimiser": self.optimiser,
            "constraint": self.constraint,
            "class_names": self.class_names,
            "metadata": dict(self.metadata),
        }
        tensors = {"logits": self.logits, "maps": self.maps}
        if self.image is not None:
            tensors["image"] = self.image
        return write_tensors(path, KIND, VERSION, values, tensors)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Transfer":
        """Reads what `save` wrote; the tensors come back on the CPU, bit for bit.

        Raises `TransferFileError` when the file is missing, damaged, not a transfer, or of a later version.
        """
        values, tensors = read_tensors(path, KIND, VERSION)
        try:
            names = values["class_names"]
            return Transfer(
                logits=tensors["logits"],
                maps=tensors["maps"],
                image=tensors.get("image"),
                snapshots=tuple(values["snapshots"]),
                classes=tuple(values["classes"]),
                class_names=None if names is None else tuple(names),
                **{key: values[key] for key in ("lr", "optimiser", "constraint", "metadata")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TransferFileError(f"{os.fspath(path)} is no transfer that Vitrail can read: {error!r}") from error

    def __repr__(self) -> str:
        target, opposing = (
            f"{self.class_name(index)} {self.logits[0, index]:.4g} → {self.logits[-1, index]:.4g}"
            for index in self.classes[:2]
        )
        return f"Transfer({target}; {opposing}; {self.steps} steps of {self.optimiser} at {self.lr:g})"


def usual_snapshots(steps: int) -> tuple[int, ...]:
    """Returns the default steps of the maps: 0, 5, 10, 20, 50 as far as the steps go, and the last.

    >>> usual_snapshots(12), usual_snapshots(50)
    ((0, 5, 10, 12), (0, 5, 10, 20, 50))
    """
    return tuple(sorted({step for step in (0, 5, 10, 20, 50) if step <= steps} | {steps}))


def _listed(steps: Sequence[int]) -> str:
    few = [str(step) for step in steps]
    return ", ".join(few if len(few) <= 12 else [*few[:6], "…", few[-1]])


@dataclass(frozen=True, eq=False)
class Belonging:
    """What a course belongs to: the values of the question, and the logits of the untouched model for the image."""

    values: Mapping[str, Any]
    snapshots: tuple[int, ...]
    logits: Float[Tensor, " classes"]


def fingerprint(image: Float[Tensor, "1 channels height width"]) -> str:
    """Returns the SHA-256 of an image as the model takes it."""
    pixels = image.detach().cpu().to(torch.float64).contiguous().numpy()
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def write_course(path: str | os.PathLike[str], course: Course, belonging: Belonging) -> None:
    """Writes a course down, whole or not at all.

    Raises:
        OutputFileError: when the file cannot be written.
    """
    tensors = {f"parameters.{layer}": tensor for layer, tensor in enumerate(course.parameters)}
    for name, moment in course.moments.items():
        tensors |= {f"moments.{name}.{layer}": tensor for layer, tensor in enumerate(moment)}
    tensors |= {f"logits.{number}": logits for number, logits in enumerate(course.logits)}
    tensors |= {f"maps.{number}": maps for number, maps in enumerate(course.maps)}
    values = {
        "taken": course.taken,
        "snapshots": _passed(belonging, course.taken),
        "moments": list(course.moments),
        "layers": len(course.parameters),
        "asked": dict(belonging.values),
    }
    write_tensors(path, STATE, VERSION, values, {**tensors, "plain": belonging.logits})


def read_course(path: str | os.PathLike[str], belonging: Belonging, steps: int, like: Tensor) -> Course:
    """Reads a course that belongs to this question; its parameters get the type and device of `like`.

    Raises:
        TransferFileError: when the file is damaged, or holds a course of another question, image or model.
    """
    values, tensors = read_tensors(path, STATE, VERSION)
    other = "name another state=, or delete it to begin anew"
    try:
        taken, layers = int(values["taken"]), range(int(values["layers"]))
        for name, wanted in belonging.values.items():
            if values["asked"][name] != wanted:
                raise TransferFileError(
                    f"{os.fspath(path)} is of a run with {name}={values['asked'][name]}, this one has {name}={wanted}: "
                    f"{other}"
                )
        if taken > steps:
            raise TransferFileError(f"{os.fspath(path)} has taken {taken} steps, more than steps={steps}: {other}")
        if values["snapshots"] != _passed(belonging, taken):
            raise TransferFileError(
                f"{os.fspath(path)} has maps of steps {values['snapshots']}, but of its {taken} steps "
                f"{_passed(belonging, taken)} are asked for: {other}"
            )
        if not torch.allclose(tensors["plain"].double(), belonging.logits.double(), rtol=1e-3, atol=1e-3):
            raise TransferFileError(f"{os.fspath(path)} is of a model that answers this image otherwise: {other}")
        return Course(
            parameters=tuple(tensors[f"parameters.{layer}"].to(like) for layer in layers),
            moments={
                name: tuple(tensors[f"moments.{name}.{layer}"].to(like) for layer in layers)
                for name in values["moments"]
            },
            taken=taken,
            logits=tuple(tensors[f"logits.{number}"] for number in range(taken)),
            maps=tuple(tensors[f"maps.{number}"] for number in range(len(values["snapshots"]))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TransferFileError(f"{os.fspath(path)} is no state that Vitrail can read: {error!r}") from error


def _passed(belonging: Belonging, taken: int) -> list[int]:
    return [step for step in belonging.snapshots if step < taken]


def write_tensors(
    path: str | os.PathLike[str], kind: str, version: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Writes whole or not at all; `kind` is the one key of the header, under which the values stand as JSON.

    Raises:
        OutputFileError: for another suffix than .safetensors, values that are not plain JSON, or a full disk.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OutputFileError(f"cannot save to {path}: it is written as tensors; name it .safetensors")
    try:
        header = json.dumps({"version": version, **values}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OutputFileError(f"cannot save to {path}: the metadata are not plain JSON values ({error})") from error
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as file:
        file.write(to_safetensors(stored, metadata={kind: header}))
    return path


def read_tensors(path: str | os.PathLike[str], kind: str, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what `write_tensors` wrote, on the CPU and bit for bit.

    Raises:
        TransferFileError: when the file is missing, damaged, of another kind or of a later version.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            header = (file.metadata() or {}).get(kind)
            tensors = {name: file.get_tensor(name).clone() for name in (file.keys() if header is not None else ())}
    except (OSError, SafetensorError) as error:
        raise TransferFileError(f"cannot read {os.fspath(path)}: {error}") from error
    if header is None:
        raise TransferFileError(f"{os.fspath(path)} is a safetensors file, but its header has no {kind!r} entry")
    try:
        values = json.loads(header)
        found = values.pop("version")
    except (AttributeError, KeyError, ValueError) as error:
        raise TransferFileError(f"{os.fspath(path)} has a header that cannot be read: {error!r}") from error
    if found > version:
        raise TransferFileError(
            f"{os.fspath(path)} is of version {found}, this Vitrail reads up to {version}; update Vitrail"
        )
    return values, tensors
