"""plan(): what explaining would cost in memory and time, found out on a few images before a thousand are begun."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .attention.differentiate import DifferentiatedAttention
from .attention.gradient_modes import GradientMode, check_gradient_mode
from .attention.relevance_row import RelevanceRow
from .attention.tap import Tap, eager
from .errors import NonFiniteError, NoSignalError, NotEnoughMemoryError, OptionError
from .explain import explain
from .inputs import ImagesLike, prepare
from .memory import Allocations, fitting, free_memory, most_images, saved_bytes, usable
from .methods import MethodInfo, find_method
from .models import VisionModel, wrap
from .models.layout import layout_of
from .models.readiness import refuse_training

__all__ = ["Plan", "in_words", "plan"]

LARGEST = 4  # images of the largest pass that is watched, after one and two, where it does not take long
LONGEST = 5.0  # seconds after which a method that tells how far it has come is cut short, and the rest reckoned
TIMED = 8  # images at most in the pass that is timed, fewer where they would take longer than that

# What explain() takes for every method; all other options are the method's own.
COMMON = ("centred", "compete", "effort", "objective", "readout", "resolution", "smooth", "start_layer")


@dataclass(frozen=True)
class Plan:
    """What a pass of `batch` images costs, as seen on this model and this machine.

    `first` is what one image takes beyond the weights, `each` what every further image of the same pass adds, `weights`
    the model itself, `free` what the device could still give when it was asked: all in bytes of tensors (on a CPU the
    process grows by 1.6 to 1.8 times as much, for the gaps between them; `batch` leaves room). `seconds` is one pass.
    `size` is the input's height and width. `competes`: rivals are subtracted; an image without any costs less.
    """

    model: str
    method: str
    gradient: str
    device: str
    dtype: str
    size: tuple[int, int]
    targets: int
    batch: int
    first: int
    each: int
    weights: int
    free: int
    seconds: float
    competes: bool = False

    @property
    def peak(self) -> int:
        """Bytes at the peak of one pass, beyond the weights."""
        return self.peak_of(self.batch)

    @property
    def seconds_per_image(self) -> float:
        return self.seconds / self.batch

    @property
    def fits(self) -> bool:
        """Returns whether the free memory holds such a pass, gaps between its tensors included."""
        return self.peak <= usable(self.free, torch.device(self.device).type)

    def peak_of(self, images: int) -> int:
        """Bytes at the peak of a pass of that number of images, beyond the weights."""
        return self.first + self.each * (images - 1)


def plan(
    model: VisionModel | nn.Module,
    *,
    method: str = "complete",
    gradient: str | None = None,
    targets: int = 1,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    images: ImagesLike | None = None,
    most: int | None = None,
    **options: Any,
) -> Plan:
    """Finds out what `explain` would take, in memory and time, and how many images should go together.

    The question is really asked, of one image, two and four, while the bytes of all tensors that live at once are
    counted, which tells what every further image adds. Then a pass is timed. So the plan knows this model, this method
    and this machine, and costs about as much as explaining a dozen images. Beforehand a forward pass that throws away
    what it would have to keep makes sure that one image fits at all.

    Args:
        model: as for `explain`; it is left as it was.
        method: a name from `vitrail.list_methods()`.
        gradient: as for `explain`; competition is reckoned for images in which a rival is present.
        targets: classes asked about in each image.
        batch: images per pass; None for as many as the free memory holds.
        size: the input's (height, width) in pixels; default: what the model's preprocessing makes.
        images: examples to plan with, as for `explain`, in place of noise, which nearly every method takes alike.
        most: the largest batch to choose; default: where larger ones gain nothing on the device.
        **options: as for `explain`.

    Raises:
        NotEnoughMemoryError: when not even one image's pass fits into the free memory.
        VitrailError: for a question that `explain` would refuse too.

    Example:
        >>> import timm, vitrail
        >>> vit = timm.create_model("test_vit", num_classes=10).eval()
        >>> found = vitrail.plan(vit, method="gae", size=(160, 160), batch=4)
        >>> found.batch, found.peak == found.first + 3 * found.each, found.fits
        (4, True, True)
    """
    if not isinstance(model, VisionModel):
        model = wrap(model)
    for name, number in (("targets", targets), ("batch", batch), ("most", most)):
        if number is not None and number < 1:
            raise OptionError(f"{name}={number} must be 1 or more")
    info = find_method(method, {name: value for name, value in options.items() if name not in COMMON})
    check_gradient_mode(gradient or "full")
    refuse_training(model.module)
    some = _examples(model, images, size)
    free = free_memory(model.device)
    if info.uses_gradient:
        _refuse_too_large(model, some[:1], free, info, check_gradient_mode(gradient or info.gradient))
    count = min(targets, layout_of(model, some, follow=info.follows).classes)
    question = {"method": method, "gradient": gradient, **options}
    asked = _Asked(model, list(range(count)), question, gradient or info.gradient)
    peaks: dict[int, int] = {}
    count, seconds = 1, 0.0
    while count <= LARGEST and (count <= 2 or seconds < LONGEST / 2):
        peaks[count], seconds = asked.watch(_rows(some, count))
        count *= 2
    first, last = peaks[1], max(peaks)
    # The peak is that of the greediest of several stages, so it may bend upward: the steepest slope to the last counts.
    each = max(0, *((peaks[last] - peak) // (last - count) for count, peak in peaks.items() if count < last))
    fits = fitting(first, each, usable(free, model.device.type))
    if batch is None:
        batch = min(fits, most or most_images(model.device.type))
    timed = last
    if seconds < LONGEST:
        timed = max(1, min(batch, fits, TIMED, round(LONGEST * last / seconds)))
        seconds = asked.seconds(_rows(some, timed))
    constant = (*model.module.parameters(), *model.module.buffers())
    return Plan(
        model=model.name,
        method=info.name,
        gradient=asked.mode,
        competes=asked.competes,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        size=(some.shape[-2], some.shape[-1]),
        targets=targets,
        batch=batch,
        first=first,
        each=each,
        weights=sum(tensor.numel() * tensor.element_size() for tensor in constant),
        free=free,
        seconds=seconds * batch / timed,
    )


class _EnoughError(Exception):
    """A method that reports its progress has been watched for long enough."""


@dataclass(eq=False)
class _Asked:
    """One question of `explain`, with its targets per image; `mode` and `competes` are as in its last answer."""

    model: VisionModel
    targets: list[int]
    question: dict[str, Any]
    mode: str
    competes: bool = False

    def watch(self, images: Float[Tensor, "images channels height width"]) -> tuple[int, float]:
        """Returns the bytes of the tensors that lived at once, and how long it took while they were counted."""
        with Allocations(self.model.device) as allocations:
            seconds = self.seconds(images)
        return allocations.peak, seconds

    def seconds(self, images: Float[Tensor, "images channels height width"]) -> float:
        """Returns the seconds it took, or would have taken at the pace of the first seconds."""
        start = time.perf_counter()
        share = self._ask(images)
        return (time.perf_counter() - start) / share

    def _ask(self, images: Float[Tensor, "images channels height width"]) -> float:
        """Returns the share of the work that was done: 1 unless it became too long."""
        start, share = time.monotonic(), 1.0

        def report(doing: str, done: int, total: int) -> None:
            nonlocal share
            del doing
            if 0 < done < total and time.monotonic() - start > LONGEST:
                share = done / total
                raise _EnoughError

        target = [self.targets] * len(images) if len(self.targets) > 1 else self.targets[0]
        # Noise may hold nothing that speaks for the class; by then the work has been done.
        with suppress(_EnoughError, NoSignalError, NonFiniteError):
            ex = explain(self.model, images, target, batch_size=len(images), progress=report, **self.question)
            self.mode, self.competes = ex.gradient_mode() or "full", ex.rivals is not None
        return share


def _examples(
    model: VisionModel, images: ImagesLike | None, size: tuple[int, int] | None
) -> Float[Tensor, "images channels height width"]:
    if images is not None:
        return prepare(model, images).batch
    if size is None:
        if model.preprocess is None:
            raise OptionError(f"{model.name} comes without preprocessing, so its input size is not known: give size=")
        size = model.preprocess.size
    channels = 3 if model.preprocess is None else model.preprocess.channels
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, *size, generator=generator).to(model.device, model.dtype)


def _rows(images: Float[Tensor, "some channels height width"], count: int) -> Tensor:
    """Returns that number of images, the examples repeated."""
    return images[torch.arange(count, device=images.device) % len(images)]


def _refuse_too_large(
    model: VisionModel,
    image: Float[Tensor, "1 channels height width"],
    free: int,
    info: MethodInfo,
    mode: GradientMode,
) -> None:
    """Counts what the backward pass would need before anything is kept for it."""
    visitor = DifferentiatedAttention(RelevanceRow("complete"), mode)

    def forward() -> None:
        with eager(), Tap(visitor, 1, mode):
            model.answer(image)  # not its logits: what kind they are is learned from passes of its own

    needed = saved_bytes(forward, (*model.module.parameters(), *model.module.buffers()))
    if needed > free:
        height, width = image.shape[-2:]
        raise NotEnoughMemoryError(
            f"one image of {height}×{width} pixels needs {in_words(needed)} and more beyond the weights for "
            f"{info.name}, and {in_words(free)} are free: take a smaller size, or the model in bfloat16"
        )


def in_words(number: int) -> str:
    """Bytes in words.

    Example:
        >>> in_words(3 * 2**30 // 2), in_words(50 * 2**20)
        ('1.5 GiB', '50 MiB')
    """
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
