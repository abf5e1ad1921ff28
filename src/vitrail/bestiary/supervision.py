"""What training asks of every token: the dense labels that the masks give for free, and the forward pass that answers.

The patch tokens learn which part they lie on and which creature it belongs to, as in token labelling (Jiang et al.
2021). The layer that reads them is thrown away after training; the model itself is plain.
"""

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor

from vitrail.bestiary.pool import SECOND, VARIANT_CODES
from vitrail.bestiary.species import CLASS_NAMES

PART_LABELS = len(VARIANT_CODES) + 1  # the first label is the landscape
CLASS_LABELS = len(CLASS_NAMES) + 1


def patch_labels(
    owners: Int[Tensor, "batch size size"], creatures: Float[Tensor, "batch 2 classes"], patch: int
) -> tuple[Float[Tensor, "batch tokens parts"], Float[Tensor, "batch tokens labels"]]:
    """For each patch the shares of its pixels by part, and the same shares by the classes of the parts' owners."""
    batch, size, _ = owners.shape
    grid = size // patch
    pixels = owners.view(batch, grid, patch, grid, patch).transpose(2, 3).reshape(batch, grid * grid, patch * patch)
    shares = torch.zeros(batch, grid * grid, 2 * SECOND)
    shares.scatter_add_(2, pixels, torch.full(pixels.shape, 1 / patch**2))
    first, second = shares[..., 1:PART_LABELS], shares[..., SECOND + 1 : SECOND + PART_LABELS]
    ground = shares[..., :1]
    owned = first.sum(2, keepdim=True) * creatures[:, None, 0] + second.sum(2, keepdim=True) * creatures[:, None, 1]
    return torch.cat([ground, first + second], dim=2), torch.cat([ground, owned], dim=2)


def kept_tokens(ground: Float[Tensor, "batch tokens"], keep: int, generator: Generator) -> Int[Tensor, "batch keep"]:
    """A random choice of tokens that prefers those with a creature on them: the landscape teaches less."""
    chance = torch.rand(ground.shape, generator=generator) + 1.5 * (ground < 0.9)
    return chance.topk(keep, dim=1).indices


def tokens_forward(
    model: VisionTransformer, images: Float[Tensor, "batch 3 size size"], kept: Int[Tensor, "batch keep"] | None
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch tokens dim"]]:
    """The model's logits and its last patch tokens, computed from the kept patches only (all of them if None)."""
    position, start = model.get_parameter("pos_embed"), model.get_parameter("cls_token")
    tokens = model.patch_embed(images) + position[:, 1:]
    if kept is not None:
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
    first = (start + position[:, :1]).expand(len(tokens), -1, -1)
    tokens = model.norm(model.blocks(torch.cat([first, tokens], dim=1)))
    return model.head(tokens[:, 0]), tokens[:, 1:]
