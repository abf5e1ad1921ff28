"""Other libraries on the same model, weights and images, each used as its own documentation says for a ViT.

pytorch-grad-cam is given a `reshape_transform`; Captum, which has no such thing, a layer whose output is laid out as a
picture. Both explain one layer, the last block's first norm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .plain import sharing_weights
from .subject import Subject

__all__ = ["PEERS", "Peer"]


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
        """Whether the library is there."""
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
    """No negative scores, from 0 to 1, as large as the image, as pytorch-grad-cam gives its maps out."""
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
