"""What makes few steps enough: a start in the manner of trained models, and Muon for the matrices of the blocks."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

_STACKED = {"qkv.weight": 3, "kv.weight": 2}  # timm's projections that stack several matrices in one


@torch.no_grad()
def initialise(model: nn.Module, generator: Generator) -> None:
    """Draws every weight anew; attention starts as in trained models ("mimetic", Trockman and Kolter 2023).

    Queries meet the keys of like tokens, and values are taken away from the residual stream: a small transformer then
    learns from far fewer images. Knows timm's names (`qkv`, or `q` and `kv`; `proj`; `patch_embed`; `pos_embed`).
    """
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.02, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(0.0, module.weight[0].numel() ** -0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    nn.init.zeros_(model.get_classifier().weight)  # type: ignore[operator]
    position, embedding = getattr(model, "pos_embed", None), getattr(model, "patch_embed", None)
    if position is not None and embedding is not None:
        patches = embedding.num_patches
        position[0, -patches:] = 0.3 * _waves(position.shape[2], int(patches**0.5))
    for module in model.modules():
        if hasattr(module, "qkv") or hasattr(module, "kv"):
            _initialise_attention(module, generator)


def _initialise_attention(attention: Any, generator: Generator) -> None:
    if hasattr(attention, "qkv"):
        query, key, value = attention.qkv.weight.chunk(3)
    else:
        query, (key, value) = attention.q.weight, attention.kv.weight.chunk(2)
    dim, heads = len(query), attention.num_heads
    width = dim // heads

    def noise() -> Tensor:
        return torch.empty(dim, dim).normal_(0.0, dim**-0.5, generator=generator)

    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        left, values, right = torch.linalg.svd(0.7 * noise() + 0.7 * torch.eye(dim))
        root = values[:width].sqrt()
        query[rows] = (left[:, :width] * root).T
        key[rows] = root[:, None] * right[:width]
    left, values, right = torch.linalg.svd(0.4 * noise() - 0.4 * torch.eye(dim))
    value.copy_(values.sqrt()[:, None] * right)
    attention.proj.weight.copy_(left * values.sqrt())


def _waves(dim: int, grid: int) -> Float[Tensor, "tokens dim"]:
    """Returns sine and cosine of row and column in dim / 4 wavelengths, the first half of the channels for rows."""
    frequency = 4 * 10000.0 ** -(torch.arange(dim // 4) / (dim / 4))
    angle = torch.arange(grid)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = line[:, None].expand(grid, grid, -1), line[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, dim)


def orthogonalised(gradients: Float[Tensor, "count rows columns"]) -> Float[Tensor, "count rows columns"]:
    """Returns each matrix with its singular values brought near one by five Newton-Schulz steps (Jordan et al. 2024).

    >>> orthogonalised(torch.eye(3)[None] * 5)[0].diagonal().round(decimals=1)
    tensor([0.7000, 0.7000, 0.7000])
    """
    tall = gradients.shape[1] > gradients.shape[2]
    x = gradients.mT if tall else gradients
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Steps along orthogonalised Nesterov momentum, scaled to the size of AdamW's steps so that both share a rate.

    Each parameter comes with the number of equal matrices stacked in it: three in timm's `qkv.weight`.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[nn.Parameter, int]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        pairs = list(parameters)
        self._stacks = [stacks for _, stacks in pairs]
        super().__init__(
            [parameter for parameter, _ in pairs], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter, stacks in zip(group["params"], self._stacks, strict=True):
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                for target, direction in zip(parameter.chunk(stacks), update.chunk(stacks), strict=True):
                    by_shape.setdefault((target.shape[0], target.shape[1]), []).append((target, direction))
            for shape, same in by_shape.items():
                directions = orthogonalised(torch.stack([direction for _, direction in same]))
                for (target, _), direction in zip(same, directions, strict=True):
                    target.add_(direction, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def optimisers(model: nn.Module, reader: nn.Linear, rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Returns Muon for the matrices of the model's blocks, and AdamW for the rest and for the dense `reader`."""
    matrices, decayed, free = [], [], []
    for name, parameter in (*model.named_parameters(), *reader.named_parameters()):
        if "blocks" in name and name.endswith("weight") and parameter.ndim == 2:
            stacks = next((count for end, count in _STACKED.items() if name.endswith(f".{end}")), 1)
            matrices.append((parameter, stacks))
        elif name.endswith("weight") and parameter.ndim > 1:
            decayed.append(parameter)
        else:
            free.append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [Muon(matrices, rate, weight_decay=weight_decay), torch.optim.AdamW(groups, rate, betas=(0.9, 0.98))]
