"""Which module is which block: found by the attention that runs inside it, and not by its name."""

from contextlib import ExitStack
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.modules import at_input, at_output, tokens_first
from ..attention.tap import Tap, eager
from ..attention.visitors import LeafAttention
from .layout import TokenLayout
from .vision_model import VisionModel

__all__ = ["blocks_of"]

_BLOCKS: WeakKeyDictionary[VisionModel, tuple[nn.Module | None, ...]] = WeakKeyDictionary()


def blocks_of(
    model: VisionModel, images: Float[Tensor, "batch channels height width"], layout: TokenLayout
) -> tuple[nn.Module | None, ...]:
    """Returns the block around each attention of the layers (heads that pool tokens left out), looked up after the
    first time.

    A block is the outermost module that takes all tokens, returns all tokens, and calls attention once in between. None
    where no module does, as in models that write their layers into one function.

    Example:
        >>> import timm
        >>> from vitrail.models import wrap
        >>> from vitrail.models.layout import layout_of
        >>> vit, images = timm.create_model("test_vit").eval(), torch.randn(1, 3, 160, 160)
        >>> model = wrap(vit)
        >>> blocks_of(model, images, layout_of(model, images)) == tuple(vit.blocks)
        True
    """
    if model not in _BLOCKS:
        _BLOCKS[model] = _find(model, images[:1], layout)
    return _BLOCKS[model]


def _find(
    model: VisionModel, image: Float[Tensor, "1 channels height width"], layout: TokenLayout
) -> tuple[nn.Module | None, ...]:
    tokens = layout.block_tokens
    visitor = LeafAttention("full")
    entered: dict[nn.Module, list[int]] = {}
    left: dict[nn.Module, list[int]] = {}

    def note(where: dict[nn.Module, list[int]], part: nn.Module):
        def see(tensor: Tensor) -> Tensor:
            if tokens_first(tensor, 1, tokens) is not None:
                where.setdefault(part, []).append(visitor.count)
            return tensor

        return see

    parts = [part for part in model.module.modules() if part is not model.module]
    with torch.no_grad(), ExitStack() as stack:
        for part in parts:
            stack.enter_context(at_input(part, note(entered, part)))
            stack.enter_context(at_output(part, note(left, part)))
        stack.enter_context(eager())
        stack.enter_context(Tap(visitor, images=1))
        model.logits(image)
    found: list[nn.Module | None] = [None] * (layout.layers - layout.pools)
    for part in parts:  # parents come before their children
        calls = entered.get(part, []), left.get(part, [])
        if len(calls[0]) == len(calls[1]) == 1:
            (start,), (end,) = calls
            if end - start == 1 and start < len(found) and found[start] is None:
                found[start] = part
    return tuple(found)
