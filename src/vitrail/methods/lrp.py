"""The methods of Chefer, Gur, Wolf (CVPR 2021): relevance by layer-wise propagation (LRP), on the model as it is.

Relevance starts as the objective's gradient at the logits (one at the target) and is shared out, operation by
operation, down to the attention or to the pixels: the rules stand in `lrp.chefer`. R_A is what reaches an
attention map A, and G = ∇A its gradient.

    T-Attr        Ā^l = I + E_h[(G ⊙ R_A)⁺], the readout's row of Ā^L … Ā^1      rules "tattr"
    partial LRP   E_h[R_A⁺] of one layer, the last, at the readout               rules "original"
    full LRP      the relevance of the pixels, summed over channels              rules "original"

The rules divide by sums that come near zero, which float32 cannot follow: on a ViT-Ti/16 the authors' own float32 map
is off by up to 18 % (T-Attr) and 60 % (full LRP) of its maximum. So the model's forward pass, which makes the divisors,
and the divisions are in float64 here whatever the model's type. Products on the way back only multiply by them: T-Attr
has them in float32 (`precision="mixed"`), full LRP, whose relevance explodes, in float64. `precision="stabilised"` is
float32 with the divisors kept away from zero.
"""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import without_autocast
from ..attention.relevance_row import Collector, ElementwiseRule, RelevanceRow, RowUpdate
from ..errors import OptionError
from ..lrp.attention import RelevanceListener, RelevantAttention
from ..lrp.chefer import chefer_rules, find_rule_set
from ..lrp.operations import Walk, find_precision
from ..lrp.tap import RelevanceTap
from .context import AttributionContext
from .registry import register_method

__all__ = ["lrp", "partial_lrp", "tattr"]

Result = TypeVar("Result")
Matrix = Float[Tensor, "images heads rows keys"]


def weighted_by_gradient(relevance: Matrix, gradient: Matrix) -> Matrix:
    """Returns (G ⊙ R_A)⁺."""
    return (gradient * relevance).clamp_(min=0)


def unweighted(relevance: Matrix, gradient: Matrix) -> Matrix:
    """Returns R_A⁺."""
    del gradient
    return relevance.clamp(min=0)


@register_method(
    "tattr",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B + LRP",
    reference="Chefer, Gur, Wolf, CVPR 2021, Eq. 13",
    accepts=("start_layer",),
)
def tattr(
    context: AttributionContext,
    *,
    weighted: bool = True,
    rules: str = "tattr",
    identity: bool = False,
    precision: str = "mixed",
) -> Float[Tensor, "images targets tokens"]:
    """Transformer attribution: Ā = I + E_h[(∇A ⊙ R_A)⁺], R_A the relevance that LRP brings to the attention.

    `weighted=False` leaves the gradient out, E_h[R_A⁺] (the authors' "rollout" of relevance). `rules="original"` takes
    the LRP that the authors compare with. `identity=True` keeps the identity's own share of the readout's row.
    """
    if context.gradient != "full" and not weighted:
        raise OptionError(f"gradient={context.gradient!r} changes nothing with weighted=False, which uses no gradient")
    listener = RelevanceRow(weighted_by_gradient if weighted else unweighted)
    rows = _propagate(context, listener, context.first_layer, rules, precision, "tattr", with_gradient=weighted)
    scores = torch.stack(rows, dim=1).to(context.readout_row().dtype)
    return scores + context.readout_row()[:, None] if identity and not context.layout.pools else scores


@register_method(
    "partial_lrp",
    signed=False,
    class_specific=True,
    uses_gradient=False,
    passes="1F + part of LRP",
    reference="Voita et al. 2019, as in Chefer, Gur, Wolf, CVPR 2021",
    differentiates={"ablation": (True,)},
)
def partial_lrp(
    context: AttributionContext,
    *,
    layer: int = -1,
    ablation: bool = False,
    rules: str = "original",
    precision: str = "float64",
) -> Float[Tensor, "images targets tokens"]:
    """Partial LRP: the positive relevance of one layer's attention at the readout, E_h[R_A⁺].

    `layer` counts blocks from 0, negative from the end; the last by default, and only what follows it is propagated.
    `ablation=True` weights with the gradient, E_h[(∇A ⊙ R_A)⁺].
    """
    layers = context.layout.layers
    if not -layers <= layer < layers:
        raise OptionError(f"layer={layer}, but the model calls attention {layers} times (0…{layers - 1})")
    chosen = layer % layers
    if context.layout.pools and chosen != layers - 1:
        raise OptionError(f"layer={layer}: this model's head pools its tokens, so only its last layer has a readout")
    listener = RowOfOneLayer(weighted_by_gradient if ablation else unweighted, chosen)
    rows = _propagate(context, listener, chosen, rules, precision, "partial_lrp", with_gradient=ablation)
    return torch.stack(rows, dim=1).to(context.readout_row().dtype)


@register_method(
    "lrp",
    signed=True,
    class_specific=True,
    uses_gradient=False,
    passes="1F + LRP",
    reference="full LRP, as in Chefer, Gur, Wolf, CVPR 2021",
    level="pixel",
)
def lrp(
    context: AttributionContext, *, rules: str = "original", precision: str = "float64"
) -> Float[Tensor, "images targets height width"]:
    """Full LRP: relevance of the pixels, summed over channels; signed.

    The original rules do not conserve relevance and blow up on deep models (to 1e11 a pixel on a ViT-Ti/16);
    `rules="tattr"` takes those of T-Attr, which conserve it up to what positions and class token keep.
    """
    maps = _propagate(context, None, 0, rules, precision, "lrp", with_gradient=False)
    return torch.stack([pixels.sum(dim=1) for pixels in maps], dim=1).to(context.readout_row().dtype)


class RowOfOneLayer:
    """r · E_h[f(R_A, G)] of one layer, at the readout r."""

    def __init__(self, rule: ElementwiseRule, layer: int) -> None:
        self.rule = rule
        self.layer = layer
        self._readout: Tensor | None = None
        self._row: Tensor | None = None

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        self._readout, self._row = readout, None

    def collector(self, layer: int) -> Collector | None:
        if layer != self.layer:
            return None
        assert self._readout is not None
        return RowUpdate(self.rule, self._readout, centred=False)

    def take(self, layer: int, collector: Collector) -> None:
        del layer
        assert isinstance(collector, RowUpdate)
        self._row = collector.result()

    def result(self) -> Float[Tensor, "images tokens"]:
        if self._row is None:
            raise RuntimeError("no relevance has reached the layer")
        return self._row


@without_autocast
def _propagate(
    context: AttributionContext,
    listener: RelevanceListener | None,
    first: int,
    rules: str,
    precision: str,
    method: str,
    *,
    with_gradient: bool,
) -> list[Tensor]:
    """Runs one forward pass; then per target the gradient's walk, where it is wanted, and the relevance's.

    Returns the listener's result for each target; or, without a listener, the relevance of the pixels.
    """
    if context.gradient == "gim":
        raise OptionError("gradient='gim' is not defined next to the rules of LRP: use 'full', 'leaf' or 'libra'")
    walk = Walk(find_precision(precision, context.model.device, context.images.dtype))
    to_pixels = listener is None
    attention = RelevantAttention(walk, listener, first, through_scores=context.gradient == "full", to_pixels=to_pixels)
    table = chefer_rules(walk, find_rule_set(rules), context.gradient)
    dtype = walk.precision.dtype
    tap = RelevanceTap(
        attention, len(context.images), table, dtype, context.model.module, method, "method='complete' or 'gae'"
    )
    tap.chain = context.layout.layers
    images = context.images.detach().to(context.model.device, dtype)
    if to_pixels:
        with torch.enable_grad():
            # The sum is no leaf, so the tap takes it for an activation.
            images = images.requires_grad_() + 0
    logits = context.trace(tap, images)
    tap.refuse_overwritten("the output", logits)
    goal = images if to_pixels else attention.anchor
    assert goal is not None
    seeds = context.seeds(logits)
    results = []
    for number, seed in enumerate(seeds):
        if with_gradient:
            walk.relevance = False
            torch.autograd.grad(logits, [goal], seed, retain_graph=True, allow_unused=True)
        walk.relevance = True
        if listener is not None:
            listener.begin(context.readout_row().to(dtype))
        reached = torch.autograd.grad(logits, [goal], seed, retain_graph=number + 1 < len(seeds), allow_unused=True)
        results.append(reached[0] if listener is None else listener.result())
    return results
