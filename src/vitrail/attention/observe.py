"""Analysis of a model: which attention it calls, on which grid of patches, and which tokens its head reads."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node

from ..errors import UnsupportedAttentionError
from .calls import AttentionCall
from .places import Places

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
    `classes` is the number of logits. `places` says where the tokens of the first attention lie in the image, where
    that is known. `next to` says for each attention how much of the gradient at one of its tokens comes from other
    tokens as the attention before left them: there something other than attention mixes tokens. `after` says for each
    which attentions it follows from with none between, and `calls` how many there were, with those that do not matter.
    """

    shapes: tuple[AttentionShape, ...]
    patch_grids: tuple[tuple[int, int], ...]
    reads: Float[Tensor, " queries"]
    classes: int
    places: Places | None = None
    beside: tuple[float, ...] = ()
    after: tuple[frozenset[int], ...] = ()
    calls: int = 0

    @property
    def broken(self) -> int | None:
        """Returns the first attention that does not follow from the one before it; None where they form a chain."""
        return next((layer for layer in range(1, len(self.after)) if layer - 1 not in self.after[layer]), None)


class ShapeObserver:
    """Notes every call's size, and lets gradients start at every output, where the graph of the layers before ends.

    So no layer is kept longer than what stands between two attentions: a look takes less memory than an explanation.
    With `mixing` it is measured meanwhile what mixes tokens between the attentions (`Observation.next to`).
    """

    def __init__(self, mixing: bool = False) -> None:
        self.shapes: list[AttentionShape] = []
        self.mixing = mixing
        self.first: Tensor | None = None
        self._beside: list[float] = []
        self._outputs: list[Tensor] = []
        self._starts: dict[Node, int] = {}
        self._after: list[frozenset[int]] = []

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        self.shapes.append(AttentionShape(call.images, call.heads, call.queries, call.keys))
        self._note_first(call.key)
        self._measure(call.key[:, :, call.keys // 2], call.keys, [call.keys // 2])
        return self._start_anew(call.detached().output(), call.query, call.key, call.value)

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        self.shapes.append(AttentionShape(*scores.shape))
        self._note_first(scores)
        tokens = min(scores.shape[-2:])
        # A score joins two tokens; that of a token with itself may be masked.
        here, there = tokens // 2, max(tokens // 2 - 1, 0)
        self._measure(scores[:, :, here, there, None], scores.shape[-2], [here, there])
        return self._start_anew(torch.softmax(scores.detach(), dim=-1), scores)

    def observation(
        self, logits: Float[Tensor, "images classes"], patch_grids: tuple[tuple[int, int], ...]
    ) -> Observation:
        """Returns the observation, given the logits; `shapes` is empty when they depend on no attention."""
        # A fixed mixture of the logits, so that no class's weights can hide a token by chance.
        mixture = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
        scalar = (logits * mixture).sum()
        classes = logits.shape[1]
        for count in sorted((start + 1 for start in self._behind(scalar)), reverse=True):
            (gradient,) = torch.autograd.grad(scalar, self._outputs[count - 1], retain_graph=True)
            if bool(gradient.any()):
                reads = gradient.float().square().sum(dim=(0, 1, 3)).sqrt()
                beside, after = tuple(self._beside[:count]), tuple(self._after[:count])
                return Observation(
                    *(tuple(self.shapes[:count]), patch_grids, reads, classes),
                    beside=beside,
                    after=after,
                    calls=len(self.shapes),
                )
        return Observation((), patch_grids, torch.zeros(0), classes)

    def _note_first(self, tokens: Float[Tensor, "images heads queries width"]) -> None:
        """Something of every token as it enters the first attention, where tokens have not yet been mixed."""
        if self.first is None:
            self.first = tokens.detach()

    def _measure(self, of_tokens: Float[Tensor, "images heads width"], tokens: int, own: list[int]) -> None:
        """What share of the gradient at some tokens comes from other tokens' places after the attention before."""
        share = 0.0
        before = self._outputs[-1] if self._outputs else None
        if self.mixing and before is not None and before.shape[2] == tokens and of_tokens.requires_grad:
            mixture = torch.randn(of_tokens.shape, generator=torch.Generator().manual_seed(3)).to(of_tokens)
            (found,) = torch.autograd.grad(of_tokens, before, mixture, retain_graph=True, allow_unused=True)
            if found is not None and bool(found.any()):
                by_token = found.float().abs().sum(dim=(0, 1, 3))
                whole = by_token.sum()
                by_token[own] = 0  # so that where no other token takes part, the share is zero and not a rounding error
                share = float(by_token.sum() / whole)
        self._beside.append(share)

    def _start_anew(self, output: Tensor, *inputs: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise UnsupportedAttentionError(
                "the model's forward runs under torch.inference_mode(), where nothing has a gradient: take it off "
                "there, and put it around your own calls of the model instead"
            )
        self._after.append(self._behind(*inputs))
        output.requires_grad_()
        self._outputs.append(output)
        # A leaf that asks for a gradient is taken for a weight by the tap, and cannot be changed in place; a copy is
        # neither.
        with torch.enable_grad():
            copy = output.clone()
        assert copy.grad_fn is not None
        self._starts[copy.grad_fn] = len(self._starts)
        return copy

    def _behind(self, *results: Tensor) -> frozenset[int]:
        """The attentions in the results' graph; it ends at each of them."""
        waiting = [result.grad_fn for result in results if result.grad_fn is not None]
        seen: set[Node] = set()
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                if node not in self._starts:
                    waiting += [before for before, _ in node.next_functions if before is not None]
        return frozenset(self._starts[node] for node in seen if node in self._starts)
