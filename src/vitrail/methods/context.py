"""The context of a method over one batch: the model, the images, the question, and the passes through the model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..attention.differentiate import DifferentiatedAttention, Kernel, LayerListener
from ..attention.gradient_modes import GradientMode
from ..attention.record import CallRecorder, RecordedLayer
from ..attention.relevance_row import ElementwiseRule, RelevanceRow
from ..attention.tap import Tap, Visitor, eager
from ..attention.token_graph import GraphRow
from ..attention.token_stream import StreamWatcher, TokenStream
from ..attention.visitors import Replacement
from ..attention.windows import GraphVisitor
from ..errors import LayoutError, OptionError, PackedBatchError, UnsupportedOperationError
from ..models.blocks import blocks_of
from ..models.layout import TokenLayout
from ..objectives import Objective, evaluate_objective, find_rivals, rival_logit
from ..outputs import LOGITS, Output
from ..targets import Targets, ask_function, predicted

__all__ = ["AttributionContext", "Progress", "required_blocks"]

Progress: TypeAlias = Callable[[str, int, int], object]
Result = TypeVar("Result")


@runtime_checkable
class Answering(Protocol):
    """A model of images, texts or other sequences."""

    @property
    def logits(self) -> Callable[..., Tensor]:
        """Returns the logits of a batch; gradients flow."""
        ...


@runtime_checkable
class Batch(Protocol):
    """What a model is asked about together: images, or texts padded to one length."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...


Model = TypeVar("Model", bound=Answering)
Images = TypeVar("Images", bound=Batch)


@dataclass(eq=False)
class AttributionContext(Generic[Model, Images]):
    """What a method needs of a batch of images (or texts, of which the tokens stand for the patches).

    After `forward` or `differentiate`, `logits` and `targets` are known, and `replaced` says, target by target, for
    which images the plain difference stood in for a quotient of logits (see `objectives.evaluate_objective`);
    `by_difference` says for which it must.

    With `competes`, each target has one more scalar: its rivals' (see `vitrail.objectives`). A method that asks about
    `questions` scalars gives the targets' maps, then as many of their rivals; `class_rows` tell who is a rival.

    With `to_input`, `differentiate` goes back to the images, and `input_gradients` holds each question's.
    """

    model: Model
    images: Images
    layout: TokenLayout
    target: Targets | None
    against: Targets | None
    objective: Objective
    readout: Float[Tensor, " queries"] | Float[Tensor, "images queries"]
    gradient: GradientMode = "full"
    start_layer: int = 0
    centred: bool = False
    kernel: Kernel = "auto"
    progress: Progress | None = None
    by_difference: Bool[Tensor, "images targets"] | None = None
    output: Output = LOGITS
    competes: bool = False
    class_rows: Float[Tensor, "classes features"] | None = None
    to_input: bool = False
    input_gradients: list[Float[Tensor, "images channels height width"]] = field(init=False, default_factory=list)
    logits: Tensor = field(init=False)
    replaced: list[Tensor] = field(init=False, default_factory=list)

    @property
    def first_layer(self) -> int:
        """Returns `start_layer` counted from the first block; negative numbers count from the last.

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
        """Returns the targets asked for, or the predicted classes once the logits are known."""
        return predicted(self.logits) if self.target is None else self.target

    @cached_property
    def rivals(self) -> tuple[Int[Tensor, "images targets rivals"], Float[Tensor, "images targets rivals"]]:
        """Returns each target's rivals and how much each counts, once the logits are known."""
        return find_rivals(self.logits, self.targets.index, self.class_rows)

    @property
    def questions(self) -> int:
        """Returns the number of scalars to differentiate: one per target, and as many again where any rival is
        present.
        """
        targets = self.targets.index.shape[1]
        return 2 * targets if self.competes and bool((self.rivals[1] > 0).any()) else targets

    @property
    def real(self) -> Bool[Tensor, "images tokens"] | None:
        """Returns which tokens are not padding; None where no token is padding, as in images."""
        return None

    def answer(self) -> Float[Tensor, "images classes"]:
        """Returns the model's logits for the images; gradients flow."""
        return self.model.logits(self.images)

    def at(
        self, images: Float[Tensor, "rows channels height width"], index: Int[Tensor, " rows"]
    ) -> "AttributionContext":
        """Returns the same question of other images: row i is asked what image `index[i]` of this context is asked.

        The classes are those of this context's own images, also where they are the predicted ones.
        """

        def rows(targets: Targets | None) -> Targets | None:
            return None if targets is None else targets.rows(index.cpu())

        difference = None if self.by_difference is None else self.by_difference[index]
        return replace(
            self, images=images, target=rows(self.targets), against=rows(self.against), by_difference=difference
        )

    def readout_row(self) -> Float[Tensor, "images queries"]:
        """Returns the row at which the product of the layers is read, once per image, in the precision of the
        relevance.
        """
        dtype = torch.float64 if self.images.dtype == torch.float64 else torch.float32
        return self.readout.to(self.images.device, dtype).expand(len(self.images), -1)

    def forward(self, visitor: Visitor, *watchers: AbstractContextManager[Any]) -> None:
        """Runs a forward pass without gradients; `watchers` are entered inside the tap."""
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(eager())
            tap = stack.enter_context(Tap(self._arranged(visitor), len(self.images), chain=self.layout.layers))
            for watcher in watchers:
                stack.enter_context(watcher)
            self.logits = self.answer().detach()
        self._check_layout(tap)

    def watch(self) -> list[TokenStream]:
        """Runs a forward pass per image, each alone, so that a method's choices do not depend on the batch."""
        images: Any = self.images
        streams, logits = [], []
        for number in range(len(self.images)):
            # A tensor of its own: a view of the whole batch could not be told from it.
            image = images[number : number + 1].clone()
            with eager(), torch.no_grad(), Tap(Replacement({}), 1) as tap:
                watcher = StreamWatcher(tap, self.layout.all_tokens, image)
                with watcher:
                    self.logits = self.model.logits(image).detach()
            self._check_layout(tap)
            streams.append(watcher.stream(self.layout.layers - self.layout.pools, self.layout.layers))
            logits.append(self.logits)
        self.logits = torch.cat(logits)
        return streams

    def report(self, doing: str, done: int, total: int) -> None:
        """Reports the progress of a long method."""
        if self.progress is not None:
            self.progress(doing, done, total)

    def record(self) -> list[RecordedLayer]:
        """Runs a forward pass and returns the queries, keys and values of every layer that the logits depend on."""
        recorder = CallRecorder()
        self.forward(recorder)
        return recorder.layers[: self.layout.layers]

    def differentiate(
        self,
        listener: LayerListener[Result],
        recorder: CallRecorder | None = None,
        *,
        first_layer: int | None = None,
        watcher: AbstractContextManager[Any] | None = None,
    ) -> list[Result]:
        """Runs a forward pass, and a backward pass per question; returns the listener's result of each.

        Nothing before `first_layer` (default: the context's own) is differentiated. `watcher` is entered inside the
        tap.
        """
        results = []
        first = self.first_layer if first_layer is None else first_layer
        with torch.enable_grad():
            branches = self.layout.graph is not None
            attention = DifferentiatedAttention(listener, self.gradient, first, self.kernel, branches, self.to_input)
            if recorder is not None:
                recorder.inner = attention
            visitor: Visitor = attention if recorder is None else recorder
            tap = Tap(self._arranged(visitor), len(self.images), self.gradient, self.layout.layers)
            images: Any = self.images
            leaf = images.detach().requires_grad_() if self.to_input else None
            beneath = None if leaf is None else leaf * 1  # a leaf itself is a constant beneath the tap
            with eager(), tap, watcher or nullcontext():
                logits = self.answer() if beneath is None else self.model.logits(beneath)
            self.logits = logits.detach()
            self._check_layout(tap)
            count = self.questions
            for number in range(count):
                listener.begin(self.readout_row())
                slope = attention.backward(self.scalar(logits, number), keep=number + 1 < count, leaf=leaf)
                if slope is not None:
                    self.input_gradients.append(slope)
                results.append(listener.result())
        return results

    def relevance_row(
        self, rule: str | ElementwiseRule, clamp_mean: bool = False
    ) -> LayerListener[Float[Tensor, "images tokens"]]:
        """Returns what keeps the readout's row up to date in `differentiate`, also where tokens do not stay in place.

        `rule` is a function of A and ∇A, or "complete", "positive" or "absolute" (`attention.relevance_row`).
        """
        if self.layout.graph is None:
            return RelevanceRow(rule, self.centred, clamp_mean)
        return GraphRow(self.layout.graph, rule, self.centred, clamp_mean)

    def _arranged(self, visitor: Visitor) -> Visitor:
        return visitor if self.layout.graph is None else GraphVisitor(visitor, self.layout.graph)

    def graph(
        self,
        visitor: Visitor,
        *watchers: AbstractContextManager[Any],
        images: Float[Tensor, "images channels height width"] | None = None,
        rows: int | None = None,
    ) -> Float[Tensor, "rows classes"]:
        """Runs a forward pass with gradients, parameters constant, and returns the logits in its graph.

        The graph begins where `visitor` or one of the `watchers` (entered inside the tap) makes a leaf, or at `images`.
        `rows` is the number of rows of logits where a watcher adds rows behind those of the images; `self.logits` are
        the images' own.
        """
        batch: Any = self.images if images is None else images
        with torch.enable_grad(), ExitStack() as stack:
            stack.enter_context(eager())
            tap = stack.enter_context(Tap(visitor, len(batch), self.gradient, self.layout.layers))
            for watcher in watchers:
                stack.enter_context(watcher)
            logits = self.model.logits(batch, rows=rows)
        self.logits = logits[: len(batch)].detach()
        self._check_layout(tap)
        return logits

    def trace(self, tap: Tap, images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images classes"]:
        """Runs a forward pass under a tap and returns the logits in its graph; `images` carry a gradient for pixels."""
        with torch.enable_grad(), eager(), tap:
            logits = self.model.logits(images)
        self.logits = logits.detach()
        self._check_layout(tap)
        return logits

    def seeds(self, logits: Float[Tensor, "images classes"]) -> list[Float[Tensor, "images classes"]]:
        """Returns the start of each target's backward pass: the objective's gradient at the logits, one-hot for a
        logit.
        """
        seeds = []
        with torch.enable_grad():
            for number in range(self.targets.index.shape[1]):
                leaf = logits.detach().requires_grad_()
                seeds += torch.autograd.grad(self.scalar(leaf, number), [leaf])
        return seeds

    def _check_layout(self, tap: Tap) -> None:
        self.check_calls(tap.attention_calls, self.logits)

    def check_calls(self, calls: int, logits: Float[Tensor, "images classes"]) -> None:
        """Refuses a model that does not do what it did when its tokens were worked out.

        Raises:
            LayoutError: naming how often it called attention, and for how many logits.
            PackedBatchError: where it calls attention for each image of the batch anew.
        """
        if self.layout.calls is not None and calls > self.layout.calls and len(self.images) > 1:
            raise PackedBatchError(
                f"the model calls attention {calls} times for a batch of {len(self.images)} images, and "
                f"{self.layout.calls} times for one: it sends the images one after another; explain one image at a "
                "time, with batch_size=1 or in calls of their own"
            )
        if calls < self.layout.layers or logits.shape[1] != self.layout.classes:
            raise LayoutError(
                f"the model called attention {calls} times for {logits.shape[1]} logits, but "
                f"{self.layout.layers} times for {self.layout.classes} when its tokens were worked out: it has changed "
                "since; wrap it again"
            )

    def objective_values(
        self, logits: Float[Tensor, "images classes"], number: int
    ) -> tuple[Float[Tensor, " images"], Bool[Tensor, " images"]]:
        """Returns the objective of question `number` for each image, and where the difference stood in."""
        targets = self.targets.index.shape[1]
        if number >= targets:
            classes, weights = (found[:, number - targets] for found in self.rivals)
            return rival_logit(logits, classes, weights), torch.zeros_like(weights[:, 0], dtype=torch.bool)
        target = self.targets.index[:, number].to(logits.device)
        against = None if self.against is None else self.against.index[:, number].to(logits.device)
        by_difference = None if self.by_difference is None else self.by_difference[:, number].to(logits.device)
        if self.targets.functions is None:
            return evaluate_objective(self.objective, logits, target, against, by_difference, self.output)
        values, nowhere = evaluate_objective(self.objective, logits, target.clamp(min=0), None, output=self.output)
        asked = [(row, self.targets.function(row, number)) for row in range(len(logits))]
        numbers = self.output.numbers(logits)
        rows = [values[row] if f is None else ask_function(f, numbers[row]).to(values) for row, f in asked]
        return torch.stack(rows), nowhere

    def scalar(self, logits: Float[Tensor, "images classes"], number: int) -> Float[Tensor, ""]:
        """Returns the objective of question `number`, summed over the images; where the difference stood in, is
        noted.
        """
        values, replaced = self.objective_values(logits, number)
        self.replaced.append(replaced)
        return values.sum()


def required_blocks(context: AttributionContext, layers: range | None = None) -> list[nn.Module]:
    """Returns the modules around the attentions of these layers; by default around all that do not pool.

    Raises:
        UnsupportedOperationError: where no module takes and returns all tokens.
    """
    found = blocks_of(context.model, context.images, context.layout)
    chosen = {layer: found[layer] for layer in (range(len(found)) if layers is None else layers)}
    for layer, block in chosen.items():
        if block is None:
            raise UnsupportedOperationError(
                f"this method needs the tokens around every block, but around attention {layer} of "
                f"{context.model.name} no module takes and returns all tokens: use complete, gae or gradcam"
            )
    return [block for block in chosen.values() if block is not None]
