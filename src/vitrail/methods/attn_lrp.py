"""AttnLRP and CP-LRP: relevance of the pixels by a changed gradient, R = Σ_c x_c ∂s/∂x_c (Achtibat et al., ICML 2024).

The rules stand in `lrp.attnlrp`. On a ViT it is the γ-rule of the linear layers, not the rule inside attention,
that decides; the defaults are the paper's for ViT: γ = 0.25 for convolutions, 0.05 for the MLPs and the head, ε for the
projections around attention. Relevance is not conserved: the logit's share of biases, positions and the softmax stays
behind. PA-LRP gives each patch its position's share (Bakish, Zimerman, Chefer, Wolf 2025).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import without_autocast
from ..attention.modules import tokens_first
from ..errors import OptionError, UnsupportedOperationError
from ..lrp.attnlrp import AttnLRPTap, SharedAttention, attnlrp_rules, find_attention_rule
from ..lrp.operations import find_precision
from ..lrp.tap import Call
from .context import AttributionContext
from .registry import register_method

__all__ = ["attn_lrp", "pa_lrp"]


@register_method(
    "attn_lrp",
    aliases=("attnlrp",),
    signed=True,
    class_specific=True,
    uses_gradient=False,
    passes="1F 1B",
    reference="Achtibat et al., ICML 2024 (CP-LRP: Ali et al., ICML 2022)",
    level="pixel",
)
@without_autocast
def attn_lrp(
    context: AttributionContext,
    *,
    rules: str = "attn_lrp",
    conv_gamma: float | None = 0.25,
    linear_gamma: float | None = 0.05,
    precision: str = "mixed",
) -> Float[Tensor, "images targets height width"]:
    """AttnLRP: gradient times input, with rules that make it relevance; signed, at the pixels.

    `rules="cp_lrp"` holds attention constant (CP-LRP), as the authors' released mapping for ViT does. γ = 0 is the
    ε-rule with the released stabiliser of 1e-6, None the bare gradient (ε → 0) of a linear layer or convolution.
    """
    maps, _ = _propagate(context, rules, conv_gamma, linear_gamma, precision, "attn_lrp")
    return maps


@register_method(
    "pa_lrp",
    signed=True,
    class_specific=True,
    uses_gradient=False,
    passes="1F 1B",
    reference="Bakish, Zimerman, Chefer, Wolf 2025",
    level="pixel",
)
@without_autocast
def pa_lrp(
    context: AttributionContext,
    *,
    positions: str = "added",
    rules: str = "attn_lrp",
    conv_gamma: float | None = 0.25,
    linear_gamma: float | None = 0.05,
    precision: str = "mixed",
) -> Float[Tensor, "images targets height width"]:
    """PA-LRP: AttnLRP's map, and the relevance of each patch's position, spread evenly over its pixels.

    `positions="alone"` gives the positions' part. All else is as for `attn_lrp`.
    """
    if positions not in ("added", "alone"):
        raise OptionError(f"positions={positions!r} is none of added, alone")
    maps, rows = _propagate(context, rules, conv_gamma, linear_gamma, precision, "pa_lrp")
    grid = context.layout.as_grid(rows)
    spread = torch.nn.functional.interpolate(grid, size=maps.shape[-2:], mode="nearest-exact")
    spread = spread * (grid[0, 0].numel() / maps[0, 0].numel())
    return spread if positions == "alone" else maps + spread


def _propagate(
    context: AttributionContext,
    rules: str,
    conv_gamma: float | None,
    linear_gamma: float | None,
    precision: str,
    method: str,
) -> tuple[Float[Tensor, "images targets height width"], Float[Tensor, "images targets tokens"]]:
    """Returns the relevance of the pixels; and for PA-LRP that of the positions, as a row over the tokens."""
    for name, gamma in (("conv_gamma", conv_gamma), ("linear_gamma", linear_gamma)):
        if gamma is not None and not 0 <= gamma < float("inf"):
            raise OptionError(f"{name}={gamma} must be 0 (the ε-rule) or more, or None (the gradient as it is)")
    exact = find_precision(precision, context.model.device, context.images.dtype)
    tap = AttnLRPTap(
        SharedAttention(find_attention_rule(rules), exact.products),
        len(context.images),
        attnlrp_rules(conv_gamma, linear_gamma, exact),
        exact.dtype,
        context.model.module,
        method,
        "method='complete' with gradient='libra'",
    )
    layout = context.layout
    places = len(context.images), layout.prefix, layout.patches, layout.all_tokens
    positions = Positions(*places) if method == "pa_lrp" else None
    tap.sums, tap.chain = positions and positions.see, layout.layers
    with torch.enable_grad():
        # The sum is no leaf, so the tap takes it for an activation.
        images = context.images.detach().to(context.model.device, exact.dtype).requires_grad_() + 0
    logits = context.trace(tap, images)
    tap.refuse_overwritten("the output", logits)
    seeds = context.seeds(logits)
    goals = [images, *(positions.sums if positions else ())]
    maps, rows = [], []
    for number, seed in enumerate(seeds):
        gradient, *at_sums = torch.autograd.grad(logits, goals, seed, retain_graph=number + 1 < len(seeds))
        maps.append((images.detach() * gradient).sum(dim=1))
        rows.append(positions.row(at_sums) if positions else images.new_zeros(len(images), 0))
    dtype = context.readout_row().dtype
    return torch.stack(maps, dim=1).to(dtype), torch.stack(rows, dim=1).to(dtype)


class Positions:
    """The constants that a model adds to its tokens before the first attention: the embeddings of their positions.

    By the ε-rule, which is the gradient of a sum, position p of a token z = x + p has the relevance Σ_c p_c ∂s/∂z_c
    (Bakish, Zimerman, Chefer, Wolf 2025).
    """

    def __init__(self, images: int, prefix: int, patches: int, tokens: int) -> None:
        self.images, self.prefix, self.patches, self.tokens = images, prefix, patches, tokens
        self.sums: list[Tensor] = []
        self._constants: list[Tensor] = []

    def see(self, call: Call, result: Tensor) -> None:
        """Keeps a sum of tokens and of one constant for each."""
        constants = [value for value in call.args[:2] if isinstance(value, Tensor) and not value.requires_grad]
        if len(constants) == 1 and result.dim() == 3 and constants[0].shape[-1:] == result.shape[-1:]:
            # Class or register tokens may join the patches before that or after.
            counts = range(self.patches, self.tokens + 1)
            if any(size in counts for size in constants[0].shape[:-1] if size > 1):
                self.sums.append(result)
                self._constants.append(constants[0])

    def row(self, gradients: Sequence[Tensor]) -> Float[Tensor, "images tokens"]:
        """Returns the relevance of every token's position, from the gradient at each sum; zero at the prefix.

        Raises:
            UnsupportedOperationError: where the model adds no positions to its tokens, or their order cannot be told.
        """
        if not self.sums:
            raise UnsupportedOperationError(
                f"pa_lrp found no embedding of positions that the model adds to its {self.patches} patches before its "
                "first attention; rotary and relative positions have no rule here: use method='attn_lrp'"
            )
        total = None
        for constant, gradient in zip(self._constants, gradients, strict=True):
            relevance = (constant * gradient).sum(dim=-1, keepdim=True)
            count = max(constant.shape[:-1])
            prefix = self.prefix if count == self.tokens else count - self.patches
            ordered = tokens_first(relevance, self.images, count)
            if ordered is None:
                raise UnsupportedOperationError(
                    f"pa_lrp cannot tell the {count} tokens of {self.images} images apart in a sum of shape "
                    f"{tuple(gradient.shape)}: use method='attn_lrp', or another number of images at once"
                )
            of_patches = ordered[:, prefix : prefix + self.patches, 0]
            total = of_patches if total is None else total + of_patches
        assert total is not None
        return torch.nn.functional.pad(total, (self.prefix, self.tokens - self.prefix - self.patches))
