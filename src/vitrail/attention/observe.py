"""One look at a model: which attention it calls, on which grid of patches, and which tokens its head reads."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UnsupportedAttentionError
from .calls import AttentionCall

__all__ = ["AttentionShape", "Observation", "ShapeObserver"]


@dataclass(frozen=True)
class AttentionShape:
    """The size of one attention call."""

    images: int
    heads: int
    queries: int
    keys: int


@dataclass(frozen=True, eq=False)
class Observation:
    """What one pass over one image showed, as far as the logits depend on it.

    `shapes` ends with the last attention that the logits depend on: some models compute an attention pooling that their
    classifier ignores. `patch_grids` are heights and widths of what the convolutions before the first attention gave.
    `reads` is the size of the logits' gradient at each query of that last attention: zero where the head does not look.
    `classes` is the number of logits. `from_image` says which tokens carry anything of the image into the first
    attention.
    """

    shapes: tuple[AttentionShape, ...]
    patch_grids: tuple[tuple[int, int], ...]
    reads: Float[Tensor, " queries"]
    classes: int
    from_image: Bool[Tensor, " tokens"] | None = None


class ShapeObserver:
    """Notes every call's size, and keeps the outputs in the graph so that their gradients can be asked for."""

    def __init__(self) -> None:
        self.shapes: list[AttentionShape] = []
        self._outputs: list[Tensor] = []
        self.first: Tensor | None = None

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        self.shapes.append(AttentionShape(call.images, call.heads, call.queries, call.keys))
        self._note_first(call.query)
        return self._keep(call.output())

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        self.shapes.append(AttentionShape(*scores.shape))
        self._note_first(scores.diagonal(dim1=-2, dim2=-1)[..., None])
        return self._keep(torch.softmax(scores, dim=-1))

    def observation(
        self, logits: Float[Tensor, "images classes"], patch_grids: tuple[tuple[int, int], ...]
    ) -> Observation:
        """What was seen, given the logits; `shapes` is empty when they depend on no attention."""
        # A fixed mixture of the logits, so that no class's weights can hide a token by chance.
        mixture = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
        scalar = (logits * mixture).sum()
        classes = logits.shape[1]
        needed = scalar.requires_grad
        gradients = torch.autograd.grad(scalar, self._outputs, allow_unused=True, retain_graph=True) if needed else ()
        for count in range(len(gradients), 0, -1):
            gradient = gradients[count - 1]
            if gradient is not None and bool(gradient.any()):
                self._check_chain(count)
                reads = gradient.float().square().sum(dim=(0, 1, 3)).sqrt()
                return Observation(tuple(self.shapes[:count]), patch_grids, reads, classes)
        return Observation((), patch_grids, torch.zeros(0), classes)

    def _note_first(self, tokens: Float[Tensor, "images heads queries width"]) -> None:
        """Something of every token as it enters the first attention, where tokens have not yet been mixed."""
        if self.first is None:
            self.first = tokens.detach()

    def _check_chain(self, count: int) -> None:
        for layer in range(1, count):
            before, here = self._outputs[layer - 1], self._outputs[layer]
            (follows,) = torch.autograd.grad(here.sum(), [before], retain_graph=True, allow_unused=True)
            if follows is None:
                raise UnsupportedAttentionError(
                    f"attention {layer} of {count} does not follow from attention {layer - 1}: blocks side by side, "
                    "several passes in one forward, or a part under no_grad; a relevance row needs one attention "
                    "after the other"
                )

    def _keep(self, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.requires_grad_()
        self._outputs.append(output)
        # A leaf that asks for a gradient is taken for a weight by the tap; its view is not.
        return output.view_as(output)
