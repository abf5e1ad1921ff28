"""Maps of models whose tokens do not stay in place, from dense matrices. Shares no code with `vitrail`.

A map is read off a matrix T whose rows say, of every present token, how it depends on the tokens of the finest grid.
Each family states by index tables, taken from its module's source, what its layers do to T:

    block         T ← T + B T        B = E_h[f(∇A_h) ⊙ A_h], window by window put into a matrix over all tokens
    merging       T ← M T            every row of M is uniform over the tokens that the merged one is made of

What T would be without attention is subtracted at the end.

    family = FAMILIES["swin"]
    module, images = family.build(), family.images(2)
    maps = reference_maps(family, module, images, target=3)      # {"complete": 2 x rows x cols, …}
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import reference
import torch
from families import enliven
from torch import Tensor, nn

Grid = tuple[int, int]


def numbers(grid: Grid) -> Tensor:
    """The tokens of a grid, row after row."""
    return torch.arange(grid[0] * grid[1]).view(grid)


def windows(grid: Grid, size: int, shift: Grid = (0, 0)) -> Tensor:
    """Windows of a grid that is rolled and then padded (−1) to whole windows: (windows, size²)."""
    at = numbers(grid).roll((-shift[0], -shift[1]), (0, 1))
    rows, cols = (-(-one // size) * size for one in grid)
    padded = torch.full((rows, cols), -1)
    padded[: grid[0], : grid[1]] = at
    return torch.stack(
        [
            padded[top : top + size, left : left + size].flatten()
            for top in range(0, rows, size)
            for left in range(0, cols, size)
        ]
    )


def strided_windows(grid: Grid, size: int) -> Tensor:
    """Windows of size² tokens spread over the whole grid."""
    rows, cols = grid[0] // size, grid[1] // size
    return torch.stack([numbers(grid)[top::rows, left::cols].flatten() for top in range(rows) for left in range(cols)])


def pooled(grid: Grid, kernel: int, stride: int, padding: int = 0, before: int = 0) -> Tensor:
    """The matrix of a convolution or pooling: uniform over what of its window lies on the grid.

    The first `before` tokens are no part of the grid and stay as they are.
    """
    rows, cols = ((one + 2 * padding - kernel) // stride + 1 for one in grid)
    matrix = torch.zeros(rows * cols + before, grid[0] * grid[1] + before, dtype=torch.float64)
    matrix[range(before), range(before)] = 1
    for row in range(rows):
        for col in range(cols):
            top, left = row * stride - padding, col * stride - padding
            for y in range(max(top, 0), min(top + kernel, grid[0])):
                for x in range(max(left, 0), min(left + kernel, grid[1])):
                    matrix[before + row * cols + col, before + y * grid[1] + x] = 1
    return matrix / matrix.sum(1, keepdim=True)


def merged_2x2(grid: Grid) -> Tensor:
    """Patch merging: 2×2 tokens, at an odd edge those that there are."""
    rows, cols = -(-grid[0] // 2), -(-grid[1] // 2)
    matrix = torch.zeros(rows * cols, grid[0] * grid[1], dtype=torch.float64)
    for y in range(grid[0]):
        for x in range(grid[1]):
            matrix[y // 2 * cols + x // 2, y * grid[1] + x] = 1
    return matrix / matrix.sum(1, keepdim=True)


@dataclass
class Walk:
    """Goes through a model's attentions in order, with one matrix per window for each; `halve` is rollout's.

    Attentions before `first` move nothing; but where they have no residual, only they lead on.
    """

    maps: list[Tensor]
    images: int
    halve: bool = False
    first: int = 0
    only: bool = False
    calls: int = field(default=0, init=False)

    def attend(
        self, keys: Tensor, asked: Tensor, of: Tensor, residual: Tensor | None = None, queries: int | None = None
    ) -> Tensor:
        """T after attention: `asked` and `of` (windows, tokens) number queries and keys, −1 a token that is padding.

        `residual` is added (none: nothing is); rows of T that no query writes are those of the residual.
        """
        count = queries if residual is None else residual.shape[-2]
        assert count is not None
        total = keys.new_zeros(self.images, count, keys.shape[-2])
        given = self.maps[self.calls].reshape(self.images, *asked.shape, of.shape[1])
        for window, (rows, cols) in enumerate(zip(asked, of, strict=True)):
            for q, row in enumerate(rows.tolist()):
                if row >= 0:
                    real = cols >= 0
                    total[:, row].index_add_(1, cols[real], given[:, window, q, real])
        self.calls += 1
        update = total @ keys
        if residual is None:
            return update
        if self.calls <= self.first:
            return residual
        if self.only:
            return update
        return (residual + update) / 2 if self.halve else residual + update

    def block(self, tokens: Tensor, index: Tensor) -> Tensor:
        """A plain block: queries, keys and residual are the same tokens."""
        return self.attend(tokens, index, index, tokens)


@dataclass(frozen=True)
class Family:
    """`walk(walk, T)` gives the row at the grid's tokens; `grid` is the finest that attention looks at.

    `head_axis` is that of attention in five dimensions, `last` the last call that joins tokens; `heads` is given where
    the first dimension counts them, too. `literal` gives the module whose softmax is its attention, where its own has
    none.
    """

    make: Callable[[], nn.Module]
    walk: Callable[[Walk, Tensor], Tensor]
    grid: Grid
    size: Grid = (32, 32)
    head_axis: int = 1
    heads: int = 1
    literal: Callable[[nn.Module], nn.Module] = lambda module: module
    last: int = -1
    seed: int = 0
    slow: bool = False

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = self.make().eval()
            enliven(module)
        return module

    def images(self, batch: int = 2, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randn(3, *self.size, generator=generator, dtype=torch.float64) for _ in range(batch)]
        return torch.stack(draws)


RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "complete": lambda a, g: g * a,
    "gae": lambda a, g: g.clamp(min=0) * a,
    "absolute": lambda a, g: g.abs() * a,
    "rollout": lambda a, g: a,
    "raw": lambda a, g: a,
}


def reference_maps(
    family: Family,
    module: nn.Module,
    images: Tensor,
    target: int,
    *,
    against: int | None = None,
    first: int = 0,
    gradient: str = "full",
) -> dict[str, Tensor]:
    """The maps of all methods in float64, attentions before `first` left out; the module is changed to it."""
    captured = reference.capture(family.literal(module.double()), images, gradient)
    scalar = captured.logits[:, target].sum()
    gradients = captured.gradients(scalar if against is None else scalar - captured.logits[:, against].sum())
    leaves = family.grid[0] * family.grid[1]
    start = torch.eye(leaves, dtype=torch.float64).expand(len(images), -1, -1)
    maps = {}
    for method, rule in RULES.items():
        parts = []
        for a, g in zip(captured.maps, gradients, strict=True):
            if family.heads > 1 or a.dim() == 3:
                a, g = (one.unflatten(0, (-1, family.heads)) for one in (a, g))
            axis = family.head_axis if a.dim() == 5 else 1
            parts.append(rule(a, g).mean(axis).flatten(0, -3).detach())
        raw = method == "raw"
        walk = Walk(parts, len(images), method == "rollout", len(parts) + family.last if raw else first, raw)
        row = family.walk(walk, start)
        assert walk.calls == len(parts)
        if method in ("complete", "gae", "absolute"):
            row = row - family.walk(Walk([torch.zeros_like(one) for one in parts], len(images)), start)
        maps[method] = row.reshape(len(images), *family.grid)
    return maps
