"""A copy of a model whose last layers have forgotten what they learned (Adebayo et al. 2018, cascading randomisation).

What is a layer here: each block is one, from its first norm to its last addition; all that is called after the last
block (final norm, pooling, head) is one, the last; and all before the first block (patch embedding, class token,
positions) is one, the first. What is called between two blocks belongs to the later one. A ViT of twelve blocks has
fourteen layers. A model in which no module is a block has a layer for each module with parameters of its own.
"""

import copy
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar
from weakref import WeakKeyDictionary
from zlib import crc32

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.modules import at_input
from ..attention.tap import eager
from ..errors import ModelError, OptionError
from ..models.blocks import blocks_of
from ..models.layout import layout_of
from ..models.vision_model import VisionModel
from ..models.wrapping import wrap

__all__ = ["layers_of", "randomised"]

Model = TypeVar("Model", VisionModel, nn.Module)
Layers = dict[str, tuple[str, ...]]

_LAYERS: WeakKeyDictionary[VisionModel, Layers] = WeakKeyDictionary()


def randomised(
    model: Model, layers: int, seed: int = 0, *, image: Float[Tensor, "1 channels height width"] | None = None
) -> Model:
    """A deep copy of a model with all parameters of its last layers drawn anew; the model itself stays as it is.

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
    """The model's layers, first to last, by name, with the names of the parameters of each; worked out in one pass.

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
    """The place of each module in the order in which the forward pass calls them for the first time."""
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
    """Normal numbers of the parameter's own mean and standard deviation; drawn on the CPU, alike for every device."""
    learned = parameter.detach().cpu().double()
    noise = torch.randn(learned.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (learned.mean() + learned.std(correction=0) * noise).to(parameter)
