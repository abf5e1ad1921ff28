"""How a model's tokens lie: prefix, grid of patches, and the row that its head reads. Worked out, not asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..attention.eager import eager
from ..attention.observe import AttentionShape, Observation, ShapeObserver
from ..attention.tap import Tap
from ..errors import LayoutError, NoAttentionError, UnsupportedAttentionError
from .readiness import model_errors
from .readout import readout_weights, worked_out_readout
from .vision_model import VisionModel

__all__ = ["TokenLayout", "layout_of", "observe", "work_out_layout"]

# Class, distillation and register tokens together; more than this is not a prefix but a grid that does not fit.
LARGEST_PREFIX = 32


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Where the patches lie among the tokens, and how the head reads the last attention.

    `readout` holds one weight per query of the last attention and sums to one; `reads` says it in words. `layers` is
    the number of attention calls that the logits depend on, `pools` how many of them, at the end, pool the tokens;
    `classes` is the number of logits. `all_tokens` counts those that may follow the patches too.
    """

    rows: int
    cols: int
    prefix: int
    readout: Float[Tensor, " queries"]
    reads: str
    layers: int
    pools: int
    heads: int
    classes: int
    all_tokens: int

    @property
    def reads_patches(self) -> bool:
        """Whether the head reads patches as they leave the blocks, and not through a last attention that pools them."""
        return not self.pools and bool(self.readout[self.prefix : self.prefix + self.patches].any())

    @property
    def patches(self) -> int:
        return self.rows * self.cols

    @property
    def tokens(self) -> int:
        return self.prefix + self.patches

    def describe(self) -> str:
        """One line: tokens, layers, readout."""
        return (
            f"{self.prefix} token(s) before {self.rows} x {self.cols} patches; {self.layers} attention layers of "
            f"{self.heads} heads; the head reads: {self.reads}"
        )

    def as_grid(self, tokens: Float[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch rows cols"]:
        """The patches' part of a row over all tokens, as the grid that they form in the image."""
        patches = tokens[..., self.prefix : self.prefix + self.patches]
        return patches.reshape(*tokens.shape[:-1], self.rows, self.cols)


_LAYOUTS: WeakKeyDictionary[VisionModel, dict[tuple[int, ...], TokenLayout]] = WeakKeyDictionary()


def layout_of(model: VisionModel, images: Float[Tensor, "batch channels height width"]) -> TokenLayout:
    """The layout for images of this size, looked up after the first time.

    Raises:
        NoAttentionError: when the model calls no attention that PyTorch can show.
        UnsupportedAttentionError: when attention runs within windows or over changing numbers of tokens.
        LayoutError: when the tokens fit no grid; the message names the numbers.
    """
    known = _LAYOUTS.setdefault(model, {})
    size = tuple(images.shape[1:])
    if size not in known:
        with model_errors(model.name, model.module):
            seen = observe(model, images)
        known[size] = work_out_layout(model, seen, (images.shape[-2], images.shape[-1]))
    return known[size]


def observe(model: VisionModel, images: Float[Tensor, "batch channels height width"]) -> Observation:
    """Send images of noise through the model and look at the attention it calls and the tokens its head reads.

    A second image shows which tokens carry anything of the image when they enter the first attention: the patches.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *images.shape[1:], generator=generator).to(images)
    observer = ShapeObserver()
    again = ShapeObserver()
    with eager(), torch.no_grad(), Tap(again, images=1):
        before = model.answer(torch.randn(noise.shape, generator=generator).to(noise))
    with torch.enable_grad():
        tap = Tap(observer, images=1)
        with eager(), tap:
            numbers = model.answer(noise)
            logits = model.learn_kind(numbers, before).logits(numbers)
        if not observer.shapes:
            raise NoAttentionError(_no_attention(model))
        seen = observer.observation(logits, tuple(tap.patch_grids))
    if not seen.shapes:
        raise NoAttentionError(
            f"{model.name} calls attention {len(observer.shapes)} times, but its logits do not depend on any of it: "
            "the output is constant, or detached from the graph inside the model"
        )
    assert observer.first is not None
    assert again.first is not None
    if observer.first.shape == again.first.shape:
        changed = (observer.first - again.first).abs().amax(dim=(0, 1, 3)) > 0
        seen = replace(seen, from_image=changed.cpu())
    return seen


def work_out_layout(model: VisionModel, seen: Observation, image_size: tuple[int, int]) -> TokenLayout:
    """The layout that an observation shows, with the user's own `grid`, `prefix` and `readout` where given."""
    pools = _pools(seen.shapes)
    tokens = seen.shapes[0].keys
    others, (rows, cols) = _grid(model, tokens, seen.patch_grids, image_size)
    prefix = _first_patch(seen.from_image, rows * cols, others)
    if model.readout is None:
        weights, reads = worked_out_readout(seen.reads, prefix, rows * cols, pools)
    else:
        weights = readout_weights(model.readout, seen.shapes[-1].queries, prefix, (rows, cols), pools)
        reads = f"readout={model.readout!r}" if not isinstance(model.readout, Tensor) else "given weights"
    weights = weights.to(seen.reads)
    heads, layers = seen.shapes[0].heads, len(seen.shapes)
    return TokenLayout(rows, cols, prefix, weights, reads, layers, pools, heads, seen.classes, tokens)


def _pools(shapes: Sequence[AttentionShape]) -> int:
    """How many calls at the end pool the tokens; everything before must be global self-attention."""
    pools = 0
    while pools < len(shapes) and shapes[-1 - pools].queries != shapes[-1 - pools].keys:
        pools += 1
    first = shapes[0]
    for index, shape in enumerate(shapes):
        whole = shape.keys == (first.keys if index <= len(shapes) - pools else shapes[index - 1].queries)
        square = shape.queries == shape.keys or index >= len(shapes) - pools
        if shape.images != 1 or not whole or not square or pools == len(shapes):
            raise UnsupportedAttentionError(
                f"attention {index} of {len(shapes)} lets {shape.queries} queries see {shape.keys} keys in "
                f"{shape.images} window(s) per image, where attention 0 has {first.queries} queries and {first.keys} "
                "keys: a relevance row needs global self-attention (ViT, DeiT, BEiT, EVA, DINO, CLIP, SigLIP); window "
                "and pyramid models (Swin, MViT, Hiera) are not supported"
            )
    return pools


def _grid(
    model: VisionModel, tokens: int, patch_grids: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    """Prefix and grid: as the user says, else as the patch embedding's convolution shows, else by arithmetic."""
    if model.grid is not None:
        candidates = [tuple(model.grid)]
    else:
        candidates = list(dict.fromkeys(reversed(patch_grids))) or _possible_grids(tokens, image_size)
    fitting = [
        (tokens - rows * cols, (rows, cols))
        for rows, cols in candidates
        if 0 <= tokens - rows * cols <= LARGEST_PREFIX
        and (model.prefix is None or tokens - rows * cols == model.prefix)
    ]
    if fitting and (patch_grids or model.grid is not None or len(fitting) == 1):
        return fitting[0]
    height, width = image_size
    prefix = "" if model.prefix is None else f" with {model.prefix} token(s) before the patches"
    found = ", ".join(f"{rows}×{cols} = {rows * cols}" for rows, cols in candidates) or "none"
    raise LayoutError(
        f"{tokens} tokens of a {height}×{width} image{prefix} fit no single grid of patches (grids seen: {found}): say "
        "which with wrap(…, grid=(rows, columns)) or prefix="
    )


def _first_patch(from_image: Bool[Tensor, " tokens"] | None, patches: int, others: int) -> int:
    """How many tokens stand before the patches; `others` is how many there are besides them, before or after.

    Raises:
        LayoutError: when the tokens that carry the image are not one run as long as the grid.
    """
    if from_image is None or bool(from_image.all()) or len(from_image) != patches + others:
        # A stem may mix the image into every token; then the usual order is taken.
        return others
    first = int(from_image.int().argmax())
    if bool(from_image[first : first + patches].all()) and int(from_image.sum()) == patches:
        return first
    raise LayoutError(
        f"{int(from_image.sum())} of {len(from_image)} tokens carry the image, not in one run of {patches} as the grid "
        "has: this order of tokens is not supported"
    )


def _possible_grids(tokens: int, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids of square patches that leave a small prefix, for models that embed patches without a convolution."""
    height, width = image_size
    grids = []
    for patch in range(2, min(height, width) + 1):
        if height % patch == 0 and width % patch == 0:
            rows, cols = height // patch, width // patch
            if rows * cols > 1 and 0 <= tokens - rows * cols <= 8:
                grids.append((rows, cols))
    return grids


def _no_attention(model: VisionModel) -> str:
    names = [
        name for name, part in model.module.named_modules() if "attn" in name.lower() or "attention" in name.lower()
    ]
    if not names and any(isinstance(part, nn.Conv2d | nn.Conv1d | nn.Conv3d) for part in model.module.modules()):
        return (
            f"{model.name} ran, but it has no attention: it looks like a convolutional network, and Vitrail explains "
            "models by their attention; take a library for convolutional networks, such as Captum or pytorch-grad-cam"
        )
    like = f"modules that look like attention: {', '.join(names[:3])}" if names else "no module is named like attention"
    return (
        f"{model.name} ran, but no attention reached PyTorch's scaled_dot_product_attention, "
        f"multi_head_attention_forward or a softmax over (images, heads, queries, keys) ({like}): "
        "compiled, scripted or custom kernels hide it; use the plain PyTorch form of the model"
    )
