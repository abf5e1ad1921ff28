"""Literal references for generated words: every attention written out, every product dense, by hand for each class.

In float64 with eager attention, the maps A are caught as the softmax gives them, ∇A is autograd's. The row e_{t−1} is
multiplied by I + E_h[f(∇A_h) ⊙ A_h], layer by layer, and carried to the patches by matrices that are written down here
from what the class does: which patches an image token is made of. Nothing is shared with the engine.
"""

from collections.abc import Callable, Sequence
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOFTMAX = F.softmax
RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "complete": lambda a, g: a * g,
    "gae": lambda a, g: (a * g).clamp(min=0),
    "absolute": lambda a, g: a * g.abs(),
    "attention": lambda a, g: a,
}


def dense_maps(
    model: nn.Module,
    inputs: dict[str, Tensor],
    scalar: Callable[[Tensor], Tensor],
    *,
    rule: str = "complete",
    constant: bool = False,
) -> list[Tensor]:
    """Returns E_h[f(∇A) ⊙ A] of every attention in the order of the pass, (windows, queries, keys).

    With `constant` attention no gradient flows through it to queries and keys.
    """
    model.set_attn_implementation("eager")
    caught: list[Tensor] = []

    def softmax(scores: Tensor, *args, dim: int = -1, **kwargs) -> Tensor:
        attention = SOFTMAX(scores, dim=-1)
        attention = attention.detach().requires_grad_() if constant else attention
        if not attention.requires_grad:
            attention.requires_grad_()
        caught.append(attention)
        return attention

    with mock.patch("torch.nn.functional.softmax", softmax):
        logits = model(**inputs, use_cache=False).logits[0]
    gradients = torch.autograd.grad(scalar(logits), caught, allow_unused=True)
    return [
        RULES[rule](a, torch.zeros_like(a) if g is None else g).mean(dim=1).detach()
        for a, g in zip(caught, gradients, strict=True)
    ]


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def through(row: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Returns row · (I + B_L) … (I + B_1); several rows of several windows at once."""
    for one in reversed(maps):
        row = row @ (eye(one.shape[-1]) + one)
    return row


def start(length: int, position: int) -> Tensor:
    return eye(length)[position - 1]


def pooled(rows: int, cols: int, side: int = 2) -> Tensor:
    """Returns the matrix (image tokens, patches) of a mean over squares of `side` patches; both row by row."""
    found = torch.zeros(rows // side * (cols // side), rows * cols, dtype=torch.float64)
    for y in range(rows):
        for x in range(cols):
            found[y // side * (cols // side) + x // side, y * cols + x] = side**-2
    return found


def in_blocks(rows: int, cols: int, side: int = 2) -> list[int]:
    """Returns the place (row · cols + col) of every patch in the order of Qwen's processors."""
    return [
        (y + dy) * cols + x + dx
        for y in range(0, rows, side)
        for x in range(0, cols, side)
        for dy in range(side)
        for dx in range(side)
    ]


def onto(fine: int, coarse: int) -> Tensor:
    """Returns the matrix (fine, coarse) that spreads each coarse cell of one axis over the finer ones in it."""
    found = torch.zeros(fine, coarse, dtype=torch.float64)
    for at in range(fine * coarse):  # in parts that divide both
        found[at // coarse, at // fine] += 1 / fine
    return found


def spread(base: Tensor, rows: int, cols: int) -> Tensor:
    """Returns a map of a coarser view on rows × cols, its sum kept."""
    return onto(rows, base.shape[0]) @ base @ onto(cols, base.shape[1]).T


# --- from the row at the image tokens to a map, by image tokens and by patches ----------------------------------------
#
# Each takes what the decoder gave to the image tokens (in the order of the sequence), the vision part's maps and, of
# Qwen3-VL, what it gave to the features that are added again.

Vision = Callable[[Tensor, list[Tensor]], tuple[Tensor, Tensor]]


def plain(rows: int, cols: int, *, prefix: int = 0, used: int | None = None, merge: Tensor | None = None) -> Vision:
    """One image, `prefix` tokens before its patches; the first `used` layers matter."""

    def vision(row: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        merging = eye(rows * cols) if merge is None else merge
        side = int((rows * cols / len(merging)) ** 0.5)
        tokens = torch.cat([row.new_zeros(prefix), row @ merging])
        patches = through(tokens, [one[0] for one in maps[:used]])[prefix:]
        return row.view(rows // side, cols // side), patches.view(rows, cols)

    return vision


def qwen2_vl(row: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    patches = through(row.repeat_interleave(4) / 4, [one[0] for one in maps])
    return row.view(2, 3), _placed(patches)


def _placed(patches: Tensor) -> Tensor:
    found = torch.zeros(24, dtype=torch.float64)
    found[in_blocks(4, 6)] = patches
    return found.view(4, 6)


def qwen2_5_vl(row: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Windows of 2 × 2 image tokens: columns 0 and 1, then column 2; the middle layer sees all."""
    order = [0, 1, 3, 4, 2, 5]
    first, last = (torch.block_diag(maps[at][0], maps[at + 1][0]) for at in (0, 3))
    windowed = through((row[order] / 4).repeat_interleave(4), [first, maps[2][0], last])
    patches = torch.zeros(6, 4, dtype=torch.float64)
    patches[order] = windowed.view(6, 4)
    return row.view(2, 3), _placed(patches.flatten())


def qwen3_vl(row: Tensor, maps: list[Tensor], again: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Layers 0 and 1 of the tower each give features of their own."""
    patches = through(row.repeat_interleave(4) / 4, [maps[2][0]])
    patches = through(patches + again[1].repeat_interleave(4) / 4, [maps[1][0]])
    patches = through(patches + again[0].repeat_interleave(4) / 4, [maps[0][0]])
    return (row + sum(again)).view(2, 3), _placed(patches)


def tiled(rows: int, cols: int, *, prefix: int = 0) -> Vision:
    """rows × cols tiles and then the whole image, each 4 × 4 patches of which 2 × 2 make a token."""

    def vision(row: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        tokens = row.view(-1, 4) @ pooled(4, 4)
        tokens = torch.cat([tokens.new_zeros(len(tokens), prefix), tokens], dim=1)
        for one in reversed(maps):
            tokens = tokens + torch.einsum("tq,tqk->tk", tokens, one)
        found = []
        for part, side in ((row.view(-1, 4), 2), (tokens[:, prefix:], 4)):
            mosaic = part[:-1].view(rows, cols, side, side).transpose(1, 2).reshape(rows * side, cols * side)
            found.append(mosaic + spread(part[-1].view(side, side), rows * side, cols * side))
        return found[0], found[1]

    return vision


def llava_next(row: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The whole image, then rows 1 and 2 of 4 of two tiles side by side, a new line (left out) after each."""
    base, rest = row[:16], row[16:].view(2, 8)
    tiles = torch.zeros(3, 17, dtype=torch.float64)
    tiles[0, 1:] = base
    for tile in (1, 2):
        grid = torch.zeros(4, 4, dtype=torch.float64)
        grid[1:3] = rest[:, 4 * tile - 4 : 4 * tile]
        tiles[tile, 1:] = grid.flatten()
    for one in reversed(maps[:-1]):
        tiles = tiles + torch.einsum("tq,tqk->tk", tiles, one)
    whole, *sides = tiles[:, 1:].view(3, 4, 4)
    return rest + spread(base.view(4, 4), 2, 8), torch.cat(sides, dim=1)[1:3] + spread(whole, 2, 8)


def llava_onevision(row: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The whole image, then 4 × 4 tokens, each resampled from 2 × 2 of four tiles' patches."""
    base, rest = row[:16].view(4, 4), row[16:].view(4, 4)
    fine = (rest.flatten() @ pooled(8, 8)).view(2, 4, 2, 4).transpose(1, 2).reshape(4, 16)
    tiles = torch.cat([base.view(1, 16), fine])
    for one in reversed(maps):
        tiles = tiles + torch.einsum("tq,tqk->tk", tiles, one)
    mosaic = tiles[1:].view(2, 2, 4, 4).transpose(1, 2).reshape(8, 8)
    return rest + base, mosaic + spread(tiles[0].view(4, 4), 8, 8)


def qformer(row: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Five learnt queries look at themselves (and at an instruction) and at the image, twice."""
    tower, (_, cross_1, self_2, cross_2) = maps[:3], maps[3:]
    asking = torch.zeros(self_2.shape[-1], dtype=torch.float64)
    asking[:5] = row
    seen = asking[:5] @ cross_2[0]
    asking = through(asking, [self_2[0]])
    seen = seen + asking[:5] @ cross_1[0]
    return row[None], through(seen, [one[0] for one in tower])[1:].view(4, 4)


VISION: dict[str, Vision] = {
    "llava": plain(4, 4, prefix=1, used=2),
    "paligemma": plain(4, 4),
    "paligemma2": plain(4, 4),
    "gemma3": plain(4, 4, merge=pooled(4, 4)),
    "mistral3": plain(4, 6, merge=pooled(4, 6)),
    "pixtral": plain(4, 6),
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "idefics3": tiled(2, 3),
    "smolvlm": tiled(2, 3),
    "internvl": tiled(1, 2, prefix=1),
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "blip_2": qformer,
    "instructblip": qformer,
}


def dense_row(
    name: str, maps: list[Tensor], length: int, position: int, image: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Returns the row at the text model's input, less e_{t−1}; what is given to features added again; the vision part's
    maps.
    """
    layers = 3
    text, vision = [one[0] for one in maps[-layers:]], maps[:-layers]
    row, again = start(length, position), []
    if name != "qwen3_vl":
        return through(row, text) - start(length, position), [], vision
    for number in reversed(range(layers)):
        row = through(row, [text[number]])
        if 1 <= number <= 2:  # in front of it, features are added to the image tokens
            again.insert(0, row[image] / 2)
            row[image] /= 2
    return row - start(length, position), again, vision


def dense_explanation(
    name: str, maps: list[Tensor], length: int, position: int, image: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the scores of the words before a token, and its map by image tokens and by patches."""
    row, again, vision = dense_row(name, maps, length, position, image)
    tokens, patches = qwen3_vl(row[image], vision, again) if again else VISION[name](row[image], vision)
    words = row.clone()
    words[image] = 0
    return words, tokens, patches


def dense_seq2seq(
    name: str, maps: list[Tensor], encoder: int, length: int, position: int, image: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same of an encoder with a decoder, two layers each."""
    first, second, self_1, cross_1, self_2, cross_2 = (one[0] for one in maps[-6:])
    decoder = start(length - encoder, position - encoder)
    begun = decoder
    seen = decoder @ cross_2
    decoder = through(decoder, [self_2])
    seen = seen + decoder @ cross_1
    decoder = through(decoder, [self_1])
    row = torch.cat([through(seen, [first, second]), decoder - begun])
    words = row.clone()
    words[image] = 0
    return words, *(florence2 if name == "florence2" else qformer)(row[image], maps[:-6])


def florence2(row: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of all tokens and then a grid of 2 × 2, of a tower of four stages.

    Windows of 4 × 4 look at themselves (the last stage's is padded to that), attention among channels moves nothing,
    and between the stages a kernel of 3 × 3 makes every other token of those below it.
    """
    grid = row[1:].view(2, 2) + row[0] / 4
    tokens = grid
    for number, windowed in enumerate(reversed(maps[::2])):
        side = len(tokens)
        whole = torch.zeros(max(4, side), max(4, side), dtype=torch.float64)
        whole[:side, :side] = tokens
        count = len(whole) // 4
        windows = whole.view(count, 4, count, 4).transpose(1, 2).reshape(-1, 16)
        windows = windows + torch.einsum("wq,wqk->wk", windows, windowed)
        whole = windows.view(count, count, 4, 4).transpose(1, 2).reshape(whole.shape)
        tokens = whole[:side, :side]
        if number < 3:
            below = torch.zeros(side, 2 * side, dtype=torch.float64)
            for at in range(side):
                support = [one for one in range(2 * at - 1, 2 * at + 2) if one >= 0]
                below[at, support] = 1 / len(support)
            tokens = below.T @ tokens @ below
    return grid, tokens


# --- LibraGrad, written out: what it holds constant is detached by hand in every part ---------------------------------


def libra(model: nn.Module) -> None:
    """Changes a model's parts so that autograd gives LibraGrad's gradient: of norms, activations and gated products."""
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            part.forward = partial(_layer_norm, part)
        elif type(part).__name__.endswith("RMSNorm"):
            part.forward = partial(_rms_norm, part)
        elif type(part).__name__ in ("GELU", "GELUActivation", "QuickGELUActivation", "SiLUActivation", "SiLU"):
            part.forward = partial(_activation, part.forward)
        elif all(hasattr(part, name) for name in ("gate_proj", "up_proj", "down_proj")):
            part.forward = partial(_gated, part)


def _layer_norm(part: nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + part.eps).sqrt().detach()
    return centred / deviation * part.weight + part.bias


def _rms_norm(part: nn.Module, x: Tensor) -> Tensor:
    eps = getattr(part, "variance_epsilon", getattr(part, "eps", None))
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt().detach() * part.weight


def _activation(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x * (act(x) / x).detach()


def _gated(part: nn.Module, x: Tensor) -> Tensor:
    left, right = part.act_fn(part.gate_proj(x)), part.up_proj(x)
    return part.down_proj((left * right.detach() + left.detach() * right) / 2)
