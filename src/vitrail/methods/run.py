"""One run of a method over one batch: the model, the images, the question, and the ways to send them through."""

from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.differentiate import DifferentiatedAttention, Kernel, LayerListener
from ..attention.eager import eager
from ..attention.gradient_modes import GradientMode
from ..attention.norms import NormWatcher
from ..attention.record import CallRecorder, RecordedLayer
from ..attention.tap import Tap, Visitor
from ..errors import LayoutError, OptionError
from ..models.layout import TokenLayout
from ..models.vision_model import VisionModel
from ..objectives import Objective, evaluate_objective
from ..targets import Targets, predicted

__all__ = ["Run"]

Result = TypeVar("Result")


@dataclass(eq=False)
class Run:
    """What a method needs, and nothing of files, pictures or names.

    After `forward` or `differentiate`, `logits` and `targets` are known, and `replaced` says, target by target, for
    which images the plain difference stood in for a quotient of logits (see `objectives.evaluate_objective`).
    """

    model: VisionModel
    images: Float[Tensor, "images channels height width"]
    layout: TokenLayout
    target: Targets | None
    against: Targets | None
    objective: Objective
    readout: Float[Tensor, " queries"]
    gradient: GradientMode = "full"
    start_layer: int = 0
    centred: bool = False
    kernel: Kernel = "auto"
    logits: Tensor = field(init=False)
    replaced: list[Tensor] = field(init=False, default_factory=list)

    @property
    def first_layer(self) -> int:
        """`start_layer` counted from the first block; negative numbers count from the last.

        Raises:
            OptionError: when the model has no such layer.
        """
        layers = self.layout.layers
        if not -layers <= self.start_layer < layers:
            raise OptionError(
                f"start_layer={self.start_layer}, but the model calls attention {layers} times (0…{layers - 1})"
            )
        return self.start_layer % layers

    @property
    def targets(self) -> Targets:
        """The targets asked for, or the predicted classes once the logits are known."""
        return predicted(self.logits) if self.target is None else self.target

    def readout_row(self) -> Float[Tensor, "images queries"]:
        """The row at which the product of the layers is read, once per image, in the precision of the relevance."""
        dtype = torch.float64 if self.images.dtype == torch.float64 else torch.float32
        return self.readout.to(self.images.device, dtype).expand(len(self.images), -1)

    def forward(self, visitor: Visitor) -> None:
        """One forward pass without gradients."""
        with eager(), torch.no_grad(), Tap(visitor, len(self.images)) as tap:
            self.logits = self.model.logits(self.images).detach()
        self._check_layout(tap)

    def record(self) -> list[RecordedLayer]:
        """One forward pass; the queries and keys of every layer that the logits depend on."""
        recorder = CallRecorder()
        self.forward(recorder)
        return recorder.layers[: self.layout.layers]

    def differentiate(self, listener: LayerListener[Result], recorder: CallRecorder | None = None) -> list[Result]:
        """One forward pass, then one backward pass per target; what the listener heard of each target."""
        results = []
        with torch.enable_grad():
            attention = DifferentiatedAttention(listener, self.gradient, self.first_layer, self.kernel)
            if recorder is not None:
                recorder.inner = attention
            visitor: Visitor = attention if recorder is None else recorder
            with eager(), Tap(visitor, len(self.images), self.gradient) as tap:
                logits = self.model.logits(self.images)
            self.logits = logits.detach()
            self._check_layout(tap)
            count = self.targets.index.shape[1]
            for number in range(count):
                listener.begin(self.readout_row())
                attention.backward(self._scalar(logits, number), keep=number + 1 < count)
                results.append(listener.result())
        return results

    def trace(self, tap: Tap, images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images classes"]:
        """One forward pass under a tap, the logits in its graph; `images` carry a gradient for pixels' relevance."""
        with torch.enable_grad(), eager(), tap:
            logits = self.model.logits(images)
        self.logits = logits.detach()
        self._check_layout(tap)
        return logits

    def seeds(self, logits: Float[Tensor, "images classes"]) -> list[Float[Tensor, "images classes"]]:
        """What each target's backward pass starts with: the objective's gradient at the logits, one-hot for a logit."""
        seeds = []
        with torch.enable_grad():
            for number in range(self.targets.index.shape[1]):
                leaf = logits.detach().requires_grad_()
                seeds += torch.autograd.grad(self._scalar(leaf, number), [leaf])
        return seeds

    def gradients_at_last_norm(self, recorder: CallRecorder) -> list[Float[Tensor, "images tokens width"]]:
        """The gradient, per target, at the normalisation in front of the last attention; `recorder` sees the layers."""
        watcher = NormWatcher()
        gradients = []
        with torch.enable_grad():
            # The sum is no leaf, so the tap takes it for an activation and the whole graph is built.
            images = self.images.detach().requires_grad_() + 0
            with eager(), Tap(recorder, len(self.images), self.gradient), watcher:
                logits = self.model.logits(images)
            self.logits = logits.detach()
            at = watcher.before_attention
            if at is None:
                raise OptionError(
                    "grad_at='last_ln', but this model calls no layer norm before its last attention, "
                    "or writes that attention out by hand"
                )
            for number in range(self.targets.index.shape[1]):
                (gradient,) = torch.autograd.grad(self._scalar(logits, number), [at], retain_graph=True)
                gradients.append(gradient)
        return gradients

    def _check_layout(self, tap: Tap) -> None:
        if tap.attention_calls < self.layout.layers or self.logits.shape[1] != self.layout.classes:
            raise LayoutError(
                f"the model called attention {tap.attention_calls} times for {self.logits.shape[1]} logits, but "
                f"{self.layout.layers} times for {self.layout.classes} when its tokens were worked out: it has changed "
                "since; wrap it again"
            )

    def _scalar(self, logits: Float[Tensor, "images classes"], number: int) -> Float[Tensor, ""]:
        target = self.targets.index[:, number].to(logits.device)
        against = None if self.against is None else self.against.index[:, number].to(logits.device)
        values, replaced = evaluate_objective(self.objective, logits, target, against)
        self.replaced.append(replaced)
        return values.sum()
