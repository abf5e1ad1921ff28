"""One look at a model: which attention it calls, on which grid of patches, and which tokens its head reads."""

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
    that is known. `beside` says for each attention how much of the gradient at one of its tokens comes from other
    tokens as the attention before left them: there something mixes tokens that is no attention.
    """

    shapes: tuple[AttentionShape, ...]
    patch_grids: tuple[tuple[int, int], ...]
    reads: Float[Tensor, " queries"]
    classes: int
    places: Places | None = None
    beside: tuple[float, ...] = ()


class ShapeObserver:
    """Notes every call's size, and lets gradients start at every output, where the graph of the layers before ends.

    So no layer is kept longer than what stands between two attentions: a look takes less memory than an explanation.
    With `mixing` it is measured meanwhile what mixes tokens between the attentions (`Observation.beside`).
    """

    def __init__(self, mixing: bool = False) -> None:
        self.shapes: list[AttentionShape] = []
        self.mixing = mixing
        self.first: Tensor | None = None
        self._beside: list[float] = []
        self._outputs: list[Tensor] = []
        self._starts: list[Node] = []
        self._follows: list[bool] = []

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
        """What was seen, given the logits; `shapes` is empty when they depend on no attention."""
        # A fixed mixture of the logits, so that no class's weights can hide a token by chance.
        mixture = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
        scalar = (logits * mixture).sum()
        classes = logits.shape[1]
        for count in range(len(self._outputs), 0, -1):
            if not _leads_to(self._starts[count - 1], scalar):
                continue
            (gradient,) = torch.autograd.grad(scalar, self._outputs[count - 1], retain_graph=True)
            if bool(gradient.any()):
                self._check_chain(count)
                reads = gradient.float().square().sum(dim=(0, 1, 3)).sqrt()
                beside = tuple(self._beside[:count])
                return Observation(tuple(self.shapes[:count]), patch_grids, reads, classes, beside=beside)
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
                share = 1 - float(by_token[own].sum() / by_token.sum())
        self._beside.append(share)

    def _check_chain(self, count: int) -> None:
        for layer in range(1, count):
            if not self._follows[layer]:
                raise UnsupportedAttentionError(
                    f"attention {layer} of {count} does not follow from attention {layer - 1}: blocks side by side, "
                    "several passes in one forward, a text tower next to the image's, or a part under no_grad; a "
                    "relevance row needs one attention after the other. For a whole CLIP embed the texts first: "
                    "vitrail.load(…, texts=[…])"
                )

    def _start_anew(self, output: Tensor, *inputs: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise UnsupportedAttentionError(
                "the model's forward runs under torch.inference_mode(), where nothing has a gradient: take it off "
                "there, and put it around your own calls of the model instead"
            )
        self._follows.append(bool(self._starts) and _leads_to(self._starts[-1], *inputs))
        output.requires_grad_()
        self._outputs.append(output)
        # A leaf that asks for a gradient is taken for a weight by the tap, and cannot be changed in place; a copy is
        # neither.
        with torch.enable_grad():
            copy = output.clone()
        assert copy.grad_fn is not None
        self._starts.append(copy.grad_fn)
        return copy


def _leads_to(start: Node, *results: Tensor) -> bool:
    """Whether the graph of any of the results goes back to the node where something started."""
    waiting = [result.grad_fn for result in results if result.grad_fn is not None]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is start:
            return True
        if node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions if before is not None]
    return False
