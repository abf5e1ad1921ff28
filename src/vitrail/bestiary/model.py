"""The small models of the bestiary: timm's plain classes, their weights on disk, and how often they are right."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitrail.bestiary.dataset import Bestiary
from vitrail.bestiary.species import CLASS_NAMES, refuse_name
from vitrail.errors import CheckpointError, CheckpointMismatchError
from vitrail.files import atomic_write

SIZE = 96  # pixels; with patches of 8 the grid is 12 x 12
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def _vit() -> VisionTransformer:
    return VisionTransformer(
        img_size=SIZE, patch_size=8, num_classes=len(CLASS_NAMES), embed_dim=128, depth=6, num_heads=4, mlp_ratio=3.0
    )


def _swin() -> nn.Module:
    return SwinTransformer(
        img_size=SIZE, patch_size=4, window_size=6, num_classes=len(CLASS_NAMES), embed_dim=48, depths=(2, 2, 4),
        num_heads=(2, 4, 8), mlp_ratio=3.0, drop_path_rate=0.0,
    )  # fmt: skip


def _pvt() -> nn.Module:
    return PyramidVisionTransformerV2(
        num_classes=len(CLASS_NAMES), depths=(2, 2, 2), embed_dims=(32, 64, 160), num_heads=(1, 2, 5),
        sr_ratios=(4, 2, 1), mlp_ratios=(4, 4, 4), drop_path_rate=0.0,
    )  # fmt: skip


# Each factory builds a module without random layers (drop_path_rate=0, or resuming a training is not exact) that has
# timm's `forward_features`, `forward_head`, `get_classifier` and its names of layers: the training recipe needs them.
ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = MappingProxyType({"vit": _vit, "swin": _swin, "pvt": _pvt})


def build_model(architecture: str = "vit") -> nn.Module:
    """Returns a new model in training mode: (batch, 3, 96, 96) in [-1, 1] to (batch, classes) logits.

    Raises `UnknownNameError` for an architecture that is not in `ARCHITECTURES`.

    >>> build_model()(torch.zeros(1, 3, 96, 96)).shape
    torch.Size([1, 20])
    """
    if architecture not in ARCHITECTURES:
        refuse_name("architecture", architecture, tuple(ARCHITECTURES))
    return ARCHITECTURES[architecture]()


def normalised(images: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Returns images with values in [0, 1] as the models take them, in [-1, 1]."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def save_weights(weights: Mapping[str, Tensor], path: Path, card: Mapping[str, object]) -> None:
    """Writes half-precision weights to a safetensors file at once; `card` goes into its header as JSON.

    The card's "architecture" says which factory `load_weights` builds the model with (default "vit").
    """
    header = {"bestiary": json.dumps({"classes": CLASS_NAMES, **card})}
    with atomic_write(path) as file:
        file.write(save({name: tensor.half().contiguous() for name, tensor in weights.items()}, header))


def load_weights(path: str | Path) -> tuple[nn.Module, Mapping[str, object]]:
    """Returns the model in evaluation mode and the card that came with its weights.

    Raises `CheckpointError` for a file that is missing or damaged, `CheckpointMismatchError` for the weights of
    another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file ({error}); train or copy it again") from error
    card = json.loads(header.get("bestiary", "{}"))
    architecture = card.get("architecture", "vit")
    if architecture not in ARCHITECTURES:
        raise CheckpointMismatchError(
            f"{path} holds a bestiary model of the architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}"
        )
    model = build_model(architecture)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != found:
        odd = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
        raise CheckpointMismatchError(
            f"{path} holds no bestiary model: the shape of {odd} is {found.get(odd, 'missing')}, "
            f"expected {wanted.get(odd, 'none')}"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise CheckpointError(f"{path} holds weights that are not finite; train or copy it again")
    model.load_state_dict(weights)
    return model.eval(), card


class Accuracy(NamedTuple):
    """Shares in [0, 1]: singles with the class on top, pairs with both on top, and how many scenes of each."""

    single: float
    pair: float
    scenes: int


def measure_accuracy(model: nn.Module, *, seed: int = 2**20, count: int = 1000, batch: int = 100) -> Accuracy:
    """Measures top-1 accuracy on `count` held-out singles and top-two accuracy on as many pairs, drawn from `seed`.

    The seed must be no seed of a training pool (training uses small ones); the model is used as it is, in evaluation
    mode.

    >>> 0 <= measure_accuracy(build_model().eval(), count=4).single <= 1
    True
    """
    hits = {"single": 0, "pair": 0}
    for kind in hits:
        data = Bestiary(kind, SIZE, count, seed)
        for start in range(0, count, batch):
            items = [data[index] for index in range(start, min(start + batch, count))]
            labels = torch.stack([item["label"] for item in items]).view(len(items), -1)
            logits = predict(model, torch.stack([item["image"] for item in items]))
            best = logits.topk(labels.shape[1], dim=1).indices
            hits[kind] += int((best.sort(dim=1).values == labels.sort(dim=1).values).all(dim=1).sum())
    return Accuracy(hits["single"] / count, hits["pair"] / count, count)


@torch.no_grad()
def predict(model: nn.Module, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch classes"]:
    """Returns the logits of images with values in [0, 1], as `Bestiary` gives them."""
    return model(normalised(images))
