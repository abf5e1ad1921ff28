"""Cascading randomisation (Adebayo et al. 2018): how alike a map stays when the model's layers are drawn anew.

From the last layer to the first, a map that explains the model must change. One that stays has shown the picture, not
the model.

What is a layer here: each block is one, from its first norm to its last addition; all that is called after the last
block (final norm, pooling, head) is one, the last; and all before the first block (patch embedding, class token,
positions) is one, the first. What is called between two blocks belongs to the later one. A ViT of twelve blocks has
fourteen layers. A model in which no module is a block has a layer for each module with parameters of its own.
"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary
from zlib import crc32

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ...attention.modules import at_input
from ...attention.tap import eager
from ...errors import ModelError, NoSignalError, OptionError
from ...models.blocks import blocks_of
from ...models.layout import layout_of
from ...models.vision_model import VisionModel
from ...models.wrapping import wrap
from ..aggregation import Curves, Statistic
from ..maps import rank_correlation
from ..protocol import AttributionQuery, Case, Evaluation, Measured, register_protocol

__all__ = ["STAGES", "Likeness", "layers_of", "likeness", "randomisation", "randomised", "structural_similarity"]

# Doubled, since little changes from one layer to the next; 16 is every layer of a ViT of up to fourteen blocks.
STAGES = (1, 2, 4, 8, 16)

Model = TypeVar("Model", VisionModel, nn.Module)
Layers = dict[str, tuple[str, ...]]

_LAYERS: WeakKeyDictionary[VisionModel, Layers] = WeakKeyDictionary()


# -- how alike two maps are --------------------------------------------------------------------------------------------


class Likeness(NamedTuple):
    """1 where the maps are alike, near 0 where nothing binds them; NaN where one of them is constant.

    `rank`: Spearman's correlation of the scores; `absolute_rank`: of the scores without their signs; `structure`: SSIM
    of the maps, each over its largest absolute score.
    """

    rank: float
    absolute_rank: float
    structure: float


def likeness(first: Float[Tensor, "rows cols"], second: Float[Tensor, "rows cols"]) -> Likeness:
    """Returns the similarity of two maps, by three measures.

    Example:
        >>> scores = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, 0.0], [1.5, 2.5, -1.0]])
        >>> likeness(scores, 2 * scores).rank, likeness(scores, -scores).rank, likeness(scores, -scores).absolute_rank
        (1.0, -1.0, 1.0)
    """
    one, other = first.flatten(), second.flatten()
    return Likeness(
        rank_correlation(one, other),
        rank_correlation(one.abs(), other.abs()),
        structural_similarity(_scaled(first), _scaled(second), span=2),
    )


def structural_similarity(
    first: Float[Tensor, "rows cols"], second: Float[Tensor, "rows cols"], *, span: float | int, window: int = 7
) -> float:
    """Returns structural similarity (Wang et al. 2004) in square windows inside the map; small maps have smaller ones.

    `span` is the range that the values could have. Constants K₁ = 0.01, K₂ = 0.03; unbiased (co)variances, as
    scikit-image has them. In [−1, 1].

    Example:
        >>> scores = torch.arange(64.0).reshape(8, 8) / 64
        >>> structural_similarity(scores, scores, span=1)
        1.0
    """
    side = min(window, *first.shape)
    a, b = first.double()[None], second.double()[None]
    mean_a, mean_b, aa, bb, ab = (avg_pool2d(part, side, stride=1) for part in (a, b, a * a, b * b, a * b))
    unbiased = side * side / max(side * side - 1, 1)
    var_a, var_b, both = (
        unbiased * part for part in (aa - mean_a * mean_a, bb - mean_b * mean_b, ab - mean_a * mean_b)
    )
    small, large = (0.01 * span) ** 2, (0.03 * span) ** 2
    above = (2 * mean_a * mean_b + small) * (2 * both + large)
    return float((above / ((mean_a**2 + mean_b**2 + small) * (var_a + var_b + large))).mean())


def _scaled(scores: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    largest = scores.abs().max()
    return scores / torch.where(largest > 0, largest, torch.ones_like(largest))


# -- the protocol ------------------------------------------------------------------------------------------------------


def summarise_randomisation(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the mean likeness over the stages, and that of the last stage alone, by rank and structure; all
    better low.
    """
    found = {}
    for measure, name in (("rank", "rank correlation"), ("absolute_rank", "absolute rank"), ("structure", "SSIM")):
        values = curves.values[measure]
        found[f"{name} after randomisation"] = Statistic.mean(values.mean(axis=1), -1)
        found[f"{name} at the last stage"] = Statistic.mean(values[:, -1], -1)
    return found


@register_protocol("randomisation", summarise=summarise_randomisation, reference="Adebayo et al. 2018 (NeurIPS)")
def randomisation(case: Case, scores: Float[Tensor, "rows cols"], *, stages: Sequence[int] = STAGES) -> Evaluation:
    """How alike the map stays when the model's last layers are drawn anew; one that explains the model must change.

    `stages`: how many of the last layers, ascending: 1 is the head, 2 the head and the last block, and so on (see
    `vitrail.metrics.randomisation.cascading`); more than there are means all. A stage at which nothing moves the class
    any more has no map, and counts as no likeness: 0.
    """
    if not stages or any(stage < 1 for stage in stages) or list(stages) != sorted(set(stages)):
        raise OptionError(f"stages={list(stages)!r} must be numbers of layers from 1 on, ascending")
    measured = []
    for stage in stages:
        try:
            answer = yield AttributionQuery(case.image[None], [case.target], randomised=stage)
            found = likeness(scores, answer[0].to(scores))
        except NoSignalError:
            found = Likeness(0.0, 0.0, 0.0)
        measured += [Measured(name, float(stage), value) for name, value in found._asdict().items()]
    return measured


# -- the model with layers drawn anew ----------------------------------------------------------------------------------


def randomised(
    model: Model, layers: int, seed: int = 0, *, image: Float[Tensor, "1 channels height width"] | None = None
) -> Model:
    """Returns a deep copy of a model with all parameters of its last layers drawn anew; the model itself stays as it
    is.

    Each parameter is drawn from the normal distribution that has its own mean and standard deviation, so that neither
    signals nor gradients vanish on the way. The numbers depend on the seed and the parameter's name alone: with one
    layer more, the others stay as they were. Parameters of one number, and buffers, stay.

    Args:
        model: a `VisionModel`, or a module that `vitrail.wrap` knows how to feed.
        layers: how many of the last (see `layers_of`); 0 for a plain copy. More than there are means all.
        seed: another one, another draw.
        image: any input, to see the order of the layers; needed only where the model brings no preprocessing.

    Raises:
        OptionError: for a negative number of layers.
        ModelError: when it is not known what size of image the model takes.

    Example:
        >>> import vitrail
        >>> model = vitrail.load("bestiary")
        >>> other = randomised(model, layers=1)
        >>> torch.equal(other.module.blocks[0].attn.qkv.weight, model.module.blocks[0].attn.qkv.weight)
        True
        >>> torch.equal(other.module.head.weight, model.module.head.weight)
        False
    """
    if layers < 0:
        raise OptionError(f"layers={layers} cannot be drawn anew; 0 is the least")
    whole = model if isinstance(model, VisionModel) else wrap(model)
    found = layers_of(whole, image)
    module = copy.deepcopy(whole.module)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    done: set[int] = set()  # a parameter that two layers share is drawn once, with the later one
    with torch.no_grad():
        for layer in [*reversed(found)][:layers]:
            for name in found[layer]:
                parameter = parameters[name]
                if id(parameter) not in done and parameter.is_floating_point() and parameter.numel() > 1:
                    parameter.copy_(_drawn(parameter, crc32(f"{seed}/{name}".encode())))
                done.add(id(parameter))
    if isinstance(model, VisionModel):
        return replace(model, module=module)
    return module  # pyright: ignore[reportReturnType]  (of the class of `model`: it is a copy)


def layers_of(model: VisionModel, image: Float[Tensor, "1 channels height width"] | None = None) -> Layers:
    """Returns the model's layers, first to last, by name, with the names of the parameters of each; worked out in one
    pass.

    Raises:
        ModelError: without an image, when the model does not say what size it takes.

    Example:
        >>> import vitrail
        >>> list(layers_of(vitrail.load("bestiary")))[-3:]
        ['blocks.4', 'blocks.5', 'head']
    """
    if model not in _LAYERS:
        if image is None:
            if model.preprocess is None:
                raise ModelError(f"{model.name} does not say what size of image it takes; give randomised(…, image=…)")
            image = model.blank()
        _LAYERS[model] = _find(model, image.to(model.device, model.dtype))
    return _LAYERS[model]


def _find(model: VisionModel, image: Float[Tensor, "1 channels height width"]) -> Layers:
    module, called = model.module, _order(model, image)
    name_of = {part: name for name, part in module.named_modules()}
    units = [part for part in blocks_of(model, image, layout_of(model, image)) if part is not None]
    if not units:
        units = [part for part in called if part is not module and any(True for _ in part.parameters(recurse=False))]
    layers: dict[str, list[str]] = {"stem": [], **{name_of[unit]: [] for unit in units}, "head": []}
    for name, part in module.named_modules(remove_duplicate=False):
        own = [f"{name}.{key}".removeprefix(".") for key, _ in part.named_parameters(recurse=False)]
        if own:
            holders = [module.get_submodule(name.rsplit(".", cut)[0]) for cut in range(name.count(".") + 1)]
            layer = next((name_of[holder] for holder in holders if holder in units), None)
            if layer is None:
                # What is never called itself (an out-projection that is only read) goes with what holds it.
                when = next((called[holder] for holder in holders if holder in called), 0)
                later = [unit for unit in units if when < called[unit]]
                layer = "head" if not later else "stem" if len(later) == len(units) else name_of[later[0]]
            layers[layer] += own
    return {name: tuple(names) for name, names in layers.items() if names}


def _order(model: VisionModel, image: Float[Tensor, "1 channels height width"]) -> dict[nn.Module, int]:
    """Returns the place of each module in the order in which the forward pass calls them for the first time."""
    order: dict[nn.Module, int] = {}

    def note(part: nn.Module):
        def see(tensor: Tensor) -> Tensor:
            order.setdefault(part, len(order))
            return tensor

        return see

    with torch.no_grad(), ExitStack() as stack:
        for part in model.module.modules():
            stack.enter_context(at_input(part, note(part)))
        stack.enter_context(eager())
        model.logits(image)
    return order


def _drawn(parameter: Tensor, seed: int) -> Tensor:
    """Draws normal numbers with the parameter's mean and standard deviation, on the CPU, so that all devices agree."""
    learned = parameter.detach().cpu().double()
    noise = torch.randn(learned.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (learned.mean() + learned.std(correction=0) * noise).to(parameter)
