"""Muon for the matrices of the blocks, AdamW for the rest: fewer steps for the same loss than AdamW alone."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def orthogonalised(gradients: Float[Tensor, "count rows columns"]) -> Float[Tensor, "count rows columns"]:
    """Each matrix with its singular values brought near one by five Newton-Schulz steps (Jordan et al. 2024).

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

    Each parameter comes with the number of equal matrices stacked in it: three in timm's joint query-key-value weight.
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
        """Update every matrix that has a gradient."""
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
