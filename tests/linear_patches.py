"""The smallest model that cuts its patches without a convolution and normalises nothing."""

import torch
from torch import nn


class LinearPatches(nn.Module):
    """Patches cut by reshaping, no convolution in sight."""

    def __init__(self, patch: int, prefix: int) -> None:
        super().__init__()
        self.patch, self.prefix = patch, prefix
        self.embed = nn.Linear(3 * patch * patch, 16)
        self.tokens = nn.Parameter(torch.randn(1, prefix, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = nn.functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), self.embed(x)], dim=1)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])
