"""One forward pass, and its end again and again with another attention map in one layer."""

from collections.abc import Collection
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..attention.replay import DivergedError, Replay
from ..attention.tap import Tap, eager
from ..attention.visitors import DenseAttention
from .context import AttributionContext

__all__ = ["Pass", "Rerun"]


class Pass(NamedTuple):
    """Logits, and the attention of every layer that they depend on, both in the graph where one is built."""

    logits: Float[Tensor, "images classes"]
    maps: list[Float[Tensor, "images _ _ _"]]


class Rerun:
    """The forward pass, which can be taken up again at any attention of `layers`.

    Whether gradients flow is as where it is made and used. Not thread-safe, and to be dropped with its graph.
    """

    def __init__(self, context: AttributionContext, layers: Collection[int]) -> None:
        self._run = context
        self._replay = Replay(last=max(layers))
        self.first = self._forward(
            DenseAttention(context.first_layer, context.gradient != "full", reached=self._replay.mark)
        )

    def again(self, layer: int, attention: Float[Tensor, "images heads queries keys"]) -> Pass:
        """The pass with `attention` in the place of layer `layer`'s own, which leads no gradient to it."""
        context, given = self._run, {layer: attention.detach()}
        if self._replay.rewind(layer):
            try:
                end = self._forward(DenseAttention(context.first_layer, context.gradient != "full", given, count=layer))
            except DivergedError:
                self._replay.forget()
            else:
                return Pass(end.logits, self.first.maps[:layer] + end.maps)
        return self._forward(DenseAttention(context.first_layer, context.gradient != "full", given))

    def _forward(self, visitor: DenseAttention) -> Pass:
        context = self._run
        # What is replayed calls no attention: the tap counts from the layer on that the visitor begins with.
        with (
            eager(),
            Tap(visitor, len(context.images), context.gradient, context.layout.layers - visitor.count),
            self._replay,
        ):
            logits = context.model.logits(context.images)
        context.check_calls(visitor.count, logits)
        return Pass(logits, [visitor.maps[layer] for layer in sorted(visitor.maps) if layer < context.layout.layers])
