"""Attention flow: how much can flow from the readout to each patch through pipes as wide as the attention.

    C^l(f, t) = ½ (E_h[A^l] + I)(f, t)        the pipe from output token f of block l to its input token t
    S(j)      = maxflow(readout → j) / Σ_i maxflow(readout → i)

Each maximum flow is found exactly, see `attention.max_flow`.
Source: Abnar & Zuidema 2020, Section 3. Capacities of gradients: Azarkhalili & Libbrecht 2025, whose one flow to all
tokens together is not unique; here each token has its own, as in the first paper.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..attention.listeners import GRADIENT_MATRICES, MatrixListener
from ..attention.max_flow import UNITS, FlowGraph, flows_to_inputs
from ..errors import OptionError
from .context import AttributionContext
from .registry import register_method

__all__ = ["attention_capacities", "attention_flow", "normalised_flows"]


@register_method(
    "attention_flow",
    signed=False,
    class_specific=False,
    uses_gradient=False,
    passes="1F",
    reference="Abnar & Zuidema 2020",
    accepts=("start_layer",),
    differentiates={"capacities": GRADIENT_MATRICES},
)
def attention_flow(
    context: AttributionContext, *, capacities: str = "attention", units: int = UNITS
) -> Float[Tensor, "images targets tokens"]:
    """Maximum flow from the readout to each token, the attention's probabilities being the capacities.

    `capacities`: "attention", the row-normalised E_h[A] + I, the same for every class; "gradient", E_h[(∇A)⁺]; or
    "attention_gradient", E_h[(A ⊙ ∇A)⁺]. The solver counts in whole numbers: a token's bound is `units` of them.
    """
    if not 10**6 <= units <= UNITS:
        raise OptionError(f"units={units} must be a whole number from 10⁶ to 2³⁰ = {UNITS}")
    if capacities == "attention":
        layers = [layer.probabilities().mean(dim=1) for layer in context.record()[context.first_layer :]]
        targets = [[attention_capacities(matrix) for matrix in layers]]
    elif capacities in GRADIENT_MATRICES:
        heard = context.differentiate(MatrixListener(capacities))
        targets = [[of[layer] for layer in sorted(of) if layer < context.layout.layers] for of in heard]
    else:
        known = ", ".join(("attention", *GRADIENT_MATRICES))
        raise OptionError(f"capacities={capacities!r} is none of {known}")
    readout = context.readout_row()[0].double().cpu().numpy()
    images = len(context.images)
    maps = []
    for number, layers in enumerate(targets):
        for image in range(images):
            tokens = layers[0].shape[-1]
            before, total = (number * images + image) * tokens, len(targets) * images * tokens
            report = partial(_report, context, before, total)
            flows = normalised_flows([layer[image].double().cpu().numpy() for layer in layers], readout, units, report)
            maps.append(torch.from_numpy(flows))
    dtype = context.readout_row().dtype
    return torch.stack(maps).unflatten(0, (len(targets), images)).transpose(0, 1).to(context.images.device, dtype)


def attention_capacities(attention: Float[Tensor, "images queries keys"]) -> Float[Tensor, "images queries keys"]:
    """Returns A + I with rows normalised to one; A alone where a few queries pool the tokens."""
    attention = attention.double()
    if attention.shape[-1] != attention.shape[-2]:
        return attention
    residual = attention + torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    return residual / residual.sum(dim=-1, keepdim=True)


def normalised_flows(
    layers: Sequence[Float64[np.ndarray, "_ _"]],
    readout: Float64[np.ndarray, " _"],
    units: int = UNITS,
    report: Callable[[int, int], object] | None = None,
) -> Float64[np.ndarray, " tokens"]:
    """Returns S(j) for the capacities of all layers, first to last, and the readout's weights over the last one's
    queries.
    """
    graph = FlowGraph(layers, readout * layers[-1].sum(axis=1))
    flows = flows_to_inputs(graph, units, report)
    return flows / flows.sum() if flows.any() else flows


def _report(context: AttributionContext, before: int, total: int, done: int, of: int) -> None:
    del of
    context.report("maximum flows", before + done, total)
