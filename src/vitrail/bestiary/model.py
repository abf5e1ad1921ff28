"""The small ViT of the bestiary: timm's plain class, its initialisation, and its weights on disk."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitrail.bestiary.species import CLASS_NAMES
from vitrail.errors import CheckpointError, CheckpointMismatchError
from vitrail.files import atomic_write

SIZE = 96  # pixels; with patches of 8 the grid is 12 x 12
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CONFIG: Mapping[str, int | float] = MappingProxyType(
    {"img_size": SIZE, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "mlp_ratio": 3.0}
)


def build_model(generator: torch.Generator | None = None) -> VisionTransformer:
    """A new bestiary model in training mode: (batch, 3, 96, 96) in [-1, 1] to (batch, classes) logits.

    With a `generator`, its blocks start in the manner of trained ones ("mimetic initialisation", Trockman and Kolter
    2023): queries meet the keys of like tokens, and values are taken away from the stream. A small ViT then learns
    from far fewer images.

    >>> build_model()(torch.zeros(1, 3, 96, 96)).shape
    torch.Size([1, 20])
    """
    model = VisionTransformer(num_classes=len(CLASS_NAMES), **CONFIG)  # type: ignore[arg-type]
    if generator is not None:
        _initialise(model, generator)
    return model


@torch.no_grad()
def _initialise(model: VisionTransformer, generator: torch.Generator) -> None:
    dim, heads = int(CONFIG["embed_dim"]), int(CONFIG["num_heads"])
    width = dim // heads
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.02, generator=generator)
    patch = parameters["patch_embed.proj.weight"]
    patch.normal_(0.0, patch[0].numel() ** -0.5, generator=generator)
    parameters["patch_embed.proj.bias"].zero_()
    parameters["head.weight"].zero_()
    parameters["pos_embed"][0, 1:] = 0.3 * _waves(dim, SIZE // int(CONFIG["patch_size"]))

    def noise() -> Tensor:
        return torch.empty(dim, dim).normal_(0.0, dim**-0.5, generator=generator)

    for block in range(int(CONFIG["depth"])):
        weight = parameters[f"blocks.{block}.attn.qkv.weight"]
        for head in range(heads):
            left, values, right = torch.linalg.svd(0.7 * noise() + 0.7 * torch.eye(dim))
            root = values[:width].sqrt()
            weight[head * width : (head + 1) * width] = (left[:, :width] * root).T
            weight[dim + head * width : dim + (head + 1) * width] = root[:, None] * right[:width]
        left, values, right = torch.linalg.svd(0.4 * noise() - 0.4 * torch.eye(dim))
        weight[2 * dim :] = values.sqrt()[:, None] * right
        parameters[f"blocks.{block}.attn.proj.weight"].copy_(left * values.sqrt())


def _waves(dim: int, grid: int) -> Float[Tensor, "tokens dim"]:
    """Sine and cosine of row and column in dim / 4 wavelengths, the first half of the channels for rows."""
    frequency = 4 * 10000.0 ** -(torch.arange(dim // 4) / (dim / 4))
    angle = torch.arange(grid)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = line[:, None].expand(grid, grid, -1), line[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, dim)


def normalised(images: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Pictures with values in [0, 1] as the model takes them, in [-1, 1]."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def save_weights(weights: Mapping[str, Tensor], path: Path, card: Mapping[str, object]) -> None:
    """Write half-precision weights to a safetensors file at once; `card` goes into its header as JSON."""
    header = {"bestiary": json.dumps({"classes": CLASS_NAMES, "config": dict(CONFIG), **card})}
    with atomic_write(path) as file:
        file.write(save({name: tensor.half().contiguous() for name, tensor in weights.items()}, header))


def load_weights(path: str | Path) -> tuple[VisionTransformer, Mapping[str, object]]:
    """The model in evaluation mode and the card that came with its weights.

    Raises `CheckpointError` for a file that is missing or damaged, `CheckpointMismatchError` for the weights of
    another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file ({error}); train or copy it again") from error
    model = build_model()
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
    return model.eval(), json.loads(header.get("bestiary", "{}"))
