"""What Vitrail is held against on the same model, weights and images: other libraries, and maps by stored attention.

Libraries are used as their own documentation says for a ViT: pytorch-grad-cam is given a `reshape_transform`; Captum,
which has no such thing, a layer whose output is laid out as a picture. Both explain one layer, the last block's first
norm.

Stored attention is the usual way to compute our own maps, written from the methods' description as in the released code
of GAE: every block's attention and its gradient are stored whole, gradients of all weights are computed on the way, and
N×N matrices are multiplied.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .subject import Subject, sharing_weights

__all__ = ["PEERS", "STORED", "Peer", "StoredMaps", "bytes_of_maps"]


@dataclass(frozen=True)
class Peer:
    """A method of another library: what to install, how it is set up, and our method of the same formula.

    `make` gives what to time. `finish` does to our map (images, rows, columns) what the library does to its own before
    it is given out.
    """

    name: str
    package: str
    module: str
    ours: str
    make: Callable[[Subject], Callable[[], Tensor]]
    finish: Callable[[Tensor, tuple[int, int]], Tensor]
    by_numpy: bool = False  # which has no bfloat16

    @property
    def installed(self) -> bool:
        """Returns whether the library is there."""
        return find_spec(self.module) is not None


def _grad_cam(kind: str) -> Callable[[Subject], Callable[[], Tensor]]:
    def make(subject: Subject) -> Callable[[], Tensor]:
        import pytorch_grad_cam as library
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        model = sharing_weights(subject.module, frozen=False)
        rows, cols = subject.grid
        prefix = model.num_prefix_tokens

        def reshape_transform(tensor: Tensor) -> Tensor:
            picture = tensor[:, prefix:, :].reshape(tensor.size(0), rows, cols, tensor.size(2))
            return picture.transpose(2, 3).transpose(1, 2)

        last = list(model.blocks.children())[-1]
        targets = [ClassifierOutputTarget(target) for target in subject.targets.tolist()]
        cam = getattr(library, kind)(model, [last.get_submodule("norm1")], reshape_transform=reshape_transform)
        return lambda: torch.from_numpy(cam(input_tensor=subject.images, targets=targets))

    return make


def _as_grad_cam_shows_it(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns scores from 0 to 1 at the size of the image, as pytorch-grad-cam returns its maps."""
    import numpy as np
    from pytorch_grad_cam.utils.image import scale_cam_image

    scaled = scale_cam_image(np.maximum(scores.numpy(), 0), size)
    return torch.from_numpy(scale_cam_image(scaled))


class _TokensAsPicture(nn.Module):
    """(images, tokens, width) as (images, width, rows, columns); the tokens before the patches wait."""

    def __init__(self, prefix: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.prefix, self.grid = prefix, grid
        self.waiting = torch.empty(0)

    def forward(self, tokens: Tensor) -> Tensor:
        self.waiting = tokens[:, : self.prefix]
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)


class _PictureAsTokens(nn.Module):
    """Back again."""

    def __init__(self, before: _TokensAsPicture) -> None:
        super().__init__()
        self.before = [before]  # in a list: it is no part of this module

    def forward(self, picture: Tensor) -> Tensor:
        return torch.cat([self.before[0].waiting, picture.flatten(2).transpose(1, 2)], dim=1)


def _captum(subject: Subject) -> Callable[[], Tensor]:
    from captum.attr import LayerGradCam

    model = sharing_weights(subject.module, frozen=False)
    last = list(model.blocks.children())[-1]
    picture = _TokensAsPicture(model.num_prefix_tokens, subject.grid)
    last.register_module("norm1", nn.Sequential(last.get_submodule("norm1"), picture, _PictureAsTokens(picture)))
    method = LayerGradCam(model, picture)

    def attribute() -> Tensor:
        maps: Any = method.attribute(subject.images, target=subject.targets)
        return maps.detach()[:, 0].cpu()

    return attribute


def _as_it_is(scores: Tensor, size: tuple[int, int]) -> Float[Tensor, "images rows cols"]:
    del size
    return scores


def _grad_cam_peer(kind: str, ours: str) -> Peer:
    name = f"pytorch-grad-cam {kind}"
    return Peer(name, "grad-cam", "pytorch_grad_cam", ours, _grad_cam(kind), _as_grad_cam_shows_it, True)


PEERS = (
    _grad_cam_peer("GradCAMPlusPlus", "gradcam_plus_plus"),
    _grad_cam_peer("LayerCAM", "layercam"),
    Peer("Captum LayerGradCam", "captum", "captum", "gradcam", _captum, _as_it_is),
)


STORED = ("gae", "complete", "rollout")


class StoredMaps:
    """GAE, the complete-gradient map and rollout of a timm ViT, on a copy whose attention is written out."""

    def __init__(self, module: VisionTransformer) -> None:
        self.module = sharing_weights(module, frozen=False)
        self.prefix = module.num_prefix_tokens
        self.attentions: list[_WrittenOutAttention] = []
        for block in self.module.blocks.children():
            written_out = _WrittenOutAttention(block.get_submodule("attn"))  # pyright: ignore[reportArgumentType]
            block.register_module("attn", written_out)
            self.attentions.append(written_out)

    def __call__(
        self, images: Float[Tensor, "images channels height width"], targets: Int[Tensor, " images"], method: str
    ) -> Float[Tensor, "images patches"]:
        """Returns the map by one of `STORED`."""
        if method == "rollout":
            with torch.no_grad():
                self.module(images)
        else:
            self.module.zero_grad(set_to_none=True)
            self.module(images).gather(1, targets[:, None]).sum().backward()
        first = self.attentions[0].map
        identity = torch.eye(first.shape[-1], device=first.device, dtype=first.dtype)
        relevance = identity.expand(len(images), -1, -1)
        for attention in self.attentions:
            if method == "rollout":
                relevance = (attention.map.mean(dim=1) + identity) / 2 @ relevance
            else:
                gradient = attention.map.grad
                assert gradient is not None
                weighted = gradient * attention.map.detach()
                weighted = weighted.clamp(min=0) if method == "gae" else weighted
                relevance = relevance + weighted.mean(dim=1) @ relevance
            attention.map = torch.empty(0)
        return relevance[:, 0, self.prefix :]


class _WrittenOutAttention(nn.Module):
    """A timm attention block's own weights, with the attention map kept."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.scale = attention.num_heads, attention.scale
        self.map = torch.empty(0)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        self.map = (query * self.scale @ key.transpose(-2, -1)).softmax(dim=-1)
        if self.map.requires_grad:
            self.map.retain_grad()
        return self.proj((self.map @ value).transpose(1, 2).reshape(batch, tokens, width))


def bytes_of_maps(layers: int, heads: int, tokens: int, images: int, method: str) -> int:
    """Returns the bytes of all A, and for a gradient method all ∇A, in float32: the least that the stored form needs.

    Example:
        >>> bytes_of_maps(layers=12, heads=12, tokens=4097, images=1, method="gae")
        19336791168
    """
    return 4 * layers * heads * tokens**2 * images * (1 if method == "rollout" else 2)
