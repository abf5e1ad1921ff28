"""A model with all that is needed to explain it: preprocessing, class names, and where its logits are."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputSizeError, ModelError, OutputError, VitrailError
from ..outputs import Output, check_kind, recognise
from .class_names import class_index, short_name
from .preprocess import Preprocess
from .readiness import model_errors, takes_no_images

__all__ = ["VisionModel", "find_logits", "logits_of", "tensor_in"]

log = logging.getLogger("vitrail")


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A Vision Transformer as `vitrail.load` and `vitrail.wrap` return it; the module itself is never changed.

    `preprocess` turns pictures into the model's input; without it only tensors can be explained. Index i of
    `class_names` is class i; synonyms are separated by commas. `readout`, `prefix` and `grid` say from which tokens
    the head reads, how many tokens stand before the patches, and how many rows and columns of patches there are; None
    means worked out from the model at work. `logits_from` finds the logits in an unusual output, `output` is their kind
    (`vitrail.outputs.KINDS`; None: recognised where it is evident, else "logits"), `forward_options` go along with each
    call, and `metadata` says where the weights came from. `guessed` names the fields that Vitrail
    filled in and nobody vouched for: guessed class names are dropped when the module has another number of classes, a
    guessed kind of output when its numbers cannot be of that kind.

    Example:
        >>> toy = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
        >>> model = VisionModel(toy, name="toy", class_names=("a", "b", "c"))
        >>> model.logits(torch.zeros(1, 3, 2, 2)).shape, model.class_index("B"), model.class_name(1)
        (torch.Size([1, 3]), 1, 'b')
    """

    module: nn.Module
    name: str
    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None
    readout: str | int | Sequence | Tensor | None = None
    prefix: int | None = None
    grid: tuple[int, int] | None = None
    logits_from: Callable[[Any], Tensor] | None = None
    forward_options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    guessed: frozenset[str] = frozenset()
    output: str | None = None

    def __post_init__(self) -> None:
        check_kind(self.output)

    def __repr__(self) -> str:
        names = f"{len(self.class_names)} named classes" if self.class_names is not None else "classes without names"
        size = "" if self.preprocess is None else f", {self.preprocess.size[0]} x {self.preprocess.size[1]} pixels"
        return f"VisionModel({self.name!r}: {self._kind()}{size}, {names})"

    @property
    def device(self) -> torch.device:
        """Returns the device of the first parameter (or buffer); the CPU for a module that has none."""
        return next((tensor.device for tensor in _tensors(self.module)), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Returns the floating point type of the first such parameter (or buffer); float32 for a module that
        has none.
        """
        return next((t.dtype for t in _tensors(self.module) if t.is_floating_point()), torch.float32)

    def logits(
        self, images: Float[Tensor, "batch channels height width"], *, rows: int | None = None
    ) -> Float[Tensor, "rows classes"]:
        """Runs the model on normalised images, brought to its device and type; the logits that its answer stands for.

        A model that ends in a softmax or in sigmoids has its logits found again (see `vitrail.outputs`); scores and
        embeddings are taken as they are. A module that answers one number per image has one class. Gradients flow.
        `rows` is the number of rows of logits to expect where it is not that of the images.

        Raises:
            OutputError: when the output holds no tensor of batch x classes, or is not of the kind declared.
            InputSizeError: when the model does not take images of that size or with this number of channels.
            ModelError: when there are not as many class names as classes.
        """
        kind, numbers = self.kind_for(images), self.answer(images, rows=rows)
        return numbers if kind.encoding == "logits" else kind.logits(numbers)

    def answer(
        self, images: Float[Tensor, "batch channels height width"], *, rows: int | None = None
    ) -> Float[Tensor, "rows classes"]:
        """Returns the model's numbers as they are, before anything is made of them; errors as `logits`."""
        with model_errors(self.name, self.module):
            try:
                output = self.module(images.to(self.device, self.dtype), **self.forward_options)
            except (RuntimeError, AssertionError, ValueError) as error:
                self._refuse_size(images.shape, error)
                raise
        batch = images.shape[0] if rows is None else rows
        self._doubt_names(output, batch)
        return logits_of(output, batch, self.name, self.class_names, self.logits_from)

    def kind_for(self, images: Float[Tensor, "batch channels height width"]) -> Output:
        """Returns the model's kind of output, determined once from its outputs for two images of noise of that size."""
        if self not in _OUTPUTS:
            generator = torch.Generator().manual_seed(0)
            one, other = (torch.randn(1, *images.shape[1:], generator=generator) for _ in range(2))
            with torch.inference_mode(False):
                with torch.no_grad():
                    more = self.answer(other)
                with torch.enable_grad():
                    self.learn_kind(self.answer(one), more)
        return _OUTPUTS[self]

    def learn_kind(
        self, numbers: Float[Tensor, "rows classes"], more: Float[Tensor, "rows classes"] | None = None
    ) -> Output:
        """Returns the kind of output that these numbers, their graph attached, and `more` of them show; it is kept.

        Raises:
            OutputError: when they are not of the kind declared.
        """
        try:
            found = recognise(numbers, self.output, self.name, more)
        except OutputError:
            if "output" not in self.guessed:
                raise
            found = recognise(numbers, None, self.name, more)
            log.warning(
                "%s gives %s, and not %s as its library says; declare what the numbers are with output=",
                *(self.name, found.kind, self.output),
            )
        return _OUTPUTS.setdefault(self, found)

    def _doubt_names(self, output: Any, batch: int) -> None:
        """Drop guessed names when the module has another number of classes: they were never the user's."""
        if self.class_names is None or "class_names" not in self.guessed:
            return
        classes = logits_of(output, batch, self.name, None, self.logits_from).shape[1]
        if classes == len(self.class_names):
            return
        log.warning(
            "%s has %d classes, so the %d names that its library gives were dropped; give your own with class_names=",
            *(self.name, classes, len(self.class_names)),
        )
        object.__setattr__(self, "class_names", None)  # of this description, never of the user's module

    def takes(self) -> tuple[int | None, tuple[int, int] | None]:
        """Channels and (height, width) that the module itself says it takes; None for what it does not say."""
        config = getattr(self.module, "config", None)
        parts = list(self.module.modules())
        stem = next((part for part in parts if isinstance(part, nn.Conv2d)), None)
        channels = getattr(config, "num_channels", None if stem is None else stem.in_channels)
        said = [getattr(config, "image_size", None)]
        said += [getattr(part, name, None) for part in parts for name in ("img_size", "image_size")]
        for size in said:
            if isinstance(size, int) and size > 0:
                return channels, (size, size)
            if isinstance(size, (tuple, list)) and len(size) == 2:
                return channels, (int(size[0]), int(size[1]))
        return channels, None if self.preprocess is None else self.preprocess.size

    def _refuse_size(self, shape: torch.Size, error: Exception) -> None:
        """Raises `InputSizeError` where the input is not what the module says it takes, which explains its error."""
        channels, size = self.takes()
        if (
            len(shape) != 4
            or takes_no_images(self.module, error)
            or (channels in (None, shape[1]) and size in (None, tuple(shape[2:])))
        ):
            return
        wanted = f"{channels or 'channels'} x {' x '.join(map(str, size)) if size else 'height x width'}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "give images of that size"
        if channels not in (None, shape[1]):
            remedy = "give preprocess= with one mean and std" if channels == 1 else f"give {channels} channels"
        raise InputSizeError(
            f"{self.name} takes images of {wanted}, not of {' x '.join(map(str, shape[1:]))} (channels x height x "
            f"width): {remedy} ({reason})"
        ) from error

    @torch.no_grad()
    def tiled(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels tall wide"]:
        """Returns the batch in whole patches, padded or cut at the right and the bottom as the model itself does it.

        timm's `dynamic_img_pad` pads, and the convolution of a patch embedding drops what is left over. The logits stay
        the same, and the grid of patches covers what is returned exactly. Other batches are returned as they are.

        Raises:
            InputSizeError: for a size that the model does not take.
        """
        stem = next((part for part in self.module.modules() if isinstance(part, nn.Conv2d)), None)
        if stem is None or stem.kernel_size != stem.stride or self.module.training or not len(images):
            return images
        height, width = images.shape[-2:]
        down, across = height % stem.stride[0], width % stem.stride[1]
        if not down and not across:
            return images
        expected = self.logits(images[:1])
        padding = (0, -width % stem.stride[1], 0, -height % stem.stride[0])
        for found in (nn.functional.pad(images, padding), images[..., : height - down, : width - across]):
            with suppress(ModelError, RuntimeError, AssertionError, ValueError):
                if torch.allclose(self.logits(found[:1]), expected, rtol=1e-4, atol=1e-5):
                    return found
        return images

    def blank(self, images: int = 1) -> Float[Tensor, "images channels height width"]:
        """Zeros as a batch of the size that the preprocessing makes, on the model's device.

        Raises:
            ModelError: for a model without preprocessing.
        """
        if self.preprocess is None:
            raise ModelError(f"{self.name} comes without preprocessing, so its input size is not known")
        shape = (images, self.preprocess.channels, *self.preprocess.size)
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def class_index(self, name_or_index: Any, count: int | None = None) -> int:
        """Returns the index of a class given by name (case does not matter) or by index.

        `count` is the number of classes, where it is known and there are no names to tell.

        Raises:
            UnknownClassError: for a name or an index that the model does not have.
            AmbiguousClassError: for a name that several classes go by.
        """
        return class_index(name_or_index, self.class_names, count, whole=self.metadata.get("class_names") == "texts")

    def class_name(self, index: Any) -> str:
        """Returns the short name of a class: the text before the first comma, or "class 7" where there is no name.

        A text that images are held against is its own name, commas and all.
        """
        if self.metadata.get("class_names") == "texts" and self.class_names is not None:
            return self.class_names[int(index)]
        return short_name(int(index), self.class_names)

    def describe(self) -> str:
        """Returns a few lines that say what this model is, what it takes, and how its tokens lie (which takes one
        pass).
        """
        lines = [f"{self.name}: {self._kind()}"]
        if self.preprocess is not None:
            lines += [self.preprocess.describe(), self._tokens()]
        names = f"{len(self.class_names)} named classes" if self.class_names is not None else "classes without names"
        return "\n".join([*lines, names, *(f"{key}: {value}" for key, value in self.metadata.items())])

    def _kind(self) -> str:
        parameters = sum(p.numel() for p in self.module.parameters())
        return f"{type(self.module).__name__}, {parameters / 1e6:.1f} M parameters, {self.dtype}, {self.device}"

    def _tokens(self) -> str:
        from .layout import layout_of  # which is worked out from a VisionModel

        try:
            return layout_of(self, self.blank(), follow=True).describe()
        except ModelError as error:
            return f"not to be explained: {error}"


_OUTPUTS: WeakKeyDictionary[VisionModel, Output] = WeakKeyDictionary()


def _tensors(module: nn.Module):
    yield from module.parameters()
    yield from module.buffers()


def logits_of(
    output: Any,
    batch: int,
    name: str,
    class_names: tuple[str, ...] | None = None,
    logits_from: Callable[[Any], Tensor] | None = None,
    inputs: str = "images",
) -> Float[Tensor, "batch classes"]:
    """Returns the logits in what a module answered to a batch; `name` is the model's and `inputs` the batch's, in
    messages.

    Raises:
        OutputError: when the output holds no tensor of batch x classes.
        ModelError: when there are not as many class names as classes.
    """
    logits = find_logits(output, logits_from)
    if logits.ndim == 1 and logits.shape[0] == batch:
        logits = logits[:, None]  # a regression or a yes-no answer: one number per image
    if logits.ndim != 2 or logits.shape[0] != batch or logits.shape[1] == 0:
        what = inputs if batch != 1 else inputs.removesuffix("s")
        raise OutputError(
            f"{name} answered {batch} {what} with a tensor of shape {tuple(logits.shape)}, not ({batch}, "
            "classes); say where the logits are with logits_from=, a function from the output to that tensor"
        )
    if class_names is not None and len(class_names) != logits.shape[1]:
        raise ModelError(
            f"{name} has {logits.shape[1]} classes, but class_names holds {len(class_names)} names; "
            "give one name per class with class_names="
        )
    return logits


def find_logits(output: Any, logits_from: Callable[[Any], Tensor] | None = None) -> Tensor:
    """Returns the tensor of logits in a module's output, of any shape.

    Raises:
        OutputError: when there is none.
    """
    if logits_from is None:
        found = tensor_in(output, "logits")
    else:
        try:
            found = logits_from(output)
        except VitrailError:
            raise
        except Exception as error:  # the user's own function
            raise OutputError(
                f"logits_from= raised {type(error).__name__}: {error}; it is given the model's output "
                f"({type(output).__name__}) and returns a tensor of batch x classes"
            ) from error
    if isinstance(found, Tensor) and found.is_floating_point():
        return found
    fields = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    where = "logits_from= returned" if logits_from is not None else "the logits were looked for and found to be"
    raise OutputError(
        f"the model returned {type(output).__name__}{fields}, and {where} {type(found).__name__}; "
        "say where the logits are with logits_from=, a function from the output to a tensor of batch x classes"
    )


def tensor_in(output: Any, *names: str) -> Any:
    """Returns a module's output itself, or in a structure the first of these entries; else the first of a tuple, or
    None.

    Example:
        >>> tensor_in((torch.zeros(1), torch.ones(1))), tensor_in({"image_embeds": 3}, "logits", "image_embeds")
        (tensor([0.]), 3)
    """
    if isinstance(output, Tensor):
        return output
    for name in names:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if found is not None:
            return found
    return output[0] if isinstance(output, tuple | list) and output else None
