"""How a model's tokens lie: prefix, grid of patches, and the row that its head reads. Worked out, not asked for."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attention.calls import AttentionCall
from ..attention.modules import at_output, find_module
from ..attention.observe import AttentionShape, Observation, ShapeObserver
from ..attention.places import PixelGradient, Places, StemObserver, find_places
from ..attention.tap import OTHER_WAY, Tap, eager
from ..errors import ForwardError, LayoutError, ModelError, NoAttentionError, OptionError, UnsupportedAttentionError
from ..outputs import may_be_probabilities
from .readiness import model_errors, refuse_replaced
from .readout import readout_weights, worked_out_readout
from .unsupported import LARGEST_PREFIX, WINDOWS, map_in, no_attention, no_chain, other_way, reads_texts, why_not
from .vision_model import VisionModel

__all__ = ["TokenLayout", "layout_of", "layout_of_layer", "observe", "work_out_layout"]

# The share of a token's gradient that comes from other tokens by another way than attention which is too much. Any
# share is worth a word: how small it is says how a layer scale begins, and not how the model is built.
ALMOST_ALL = 0.9
# Two passes whose numbers differ by this share of the largest do not do the same.
DIFFERENT = 1e-2
_DRAWN = (
    "Models that shuffle or drop tokens at random (ViTMAE, ViLT) do so also with model.eval(): let them draw the same "
    "for every image, with forward_options= (for ViTMAE {'noise': torch.arange(patches)[None]}), or in a module around "
    "them that seeds the draw before each image and sends one image after the other; then wrap again"
)


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Where the patches lie among the tokens, and how the head reads the last attention.

    `readout` holds one weight per query of the last attention and sums to one; `reads` says it in words. `layers` is
    the number of attention calls that the logits depend on, `pools` how many of them, at the end, pool the tokens;
    `classes` is the number of logits. `all_tokens` counts those that may follow the patches too. `order` says which of
    the patch tokens shows each cell of the grid, row after row; None where they stand in that order. `notes` are for
    every map of the model. `calls` is how often the model calls attention for one image in all, where that is known.
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
    order: Int[Tensor, " patches"] | None = None
    notes: tuple[str, ...] = ()
    calls: int | None = None

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
        if self.order is not None:
            patches = patches[..., self.order.to(patches.device)]
        return patches.reshape(*tokens.shape[:-1], self.rows, self.cols)


_LAYOUTS: WeakKeyDictionary[VisionModel, dict[tuple[int, ...], TokenLayout]] = WeakKeyDictionary()


def layout_of(model: VisionModel, images: Float[Tensor, "batch channels height width"]) -> TokenLayout:
    """The layout for images of this size, looked up after the first time.

    Raises:
        NoAttentionError: when the model calls no attention that PyTorch can show.
        UnsupportedAttentionError: when attention runs within windows or over changing numbers of tokens.
        ModelError: when another library has replaced parts of the model by some with another gradient.
        LayoutError: when the tokens fit no grid; the message names the numbers.
    """
    refuse_replaced(model.module, lambda: model.answer(_noise(images, 1, seed=0)))
    known = _LAYOUTS.setdefault(model, {})
    size = tuple(images.shape[1:])
    if size not in known:
        try:
            with model_errors(model.name, model.module):
                seen = observe(model, images)
            layout = work_out_layout(
                model, seen, (images.shape[-2], images.shape[-1]), partial(_reads_of_another, model, images)
            )
        except (LayoutError, NoAttentionError, UnsupportedAttentionError) as error:
            if OTHER_WAY in str(error):
                error.args = (str(error).replace(OTHER_WAY, other_way(model, _noise(images, 1, seed=0))),)
            raise
        _refuse_an_order_of_its_own(model, images)
        known[size] = layout
    return known[size]


def layout_of_layer(
    model: VisionModel, images: Float[Tensor, "batch channels height width"], layer: str
) -> TokenLayout:
    """The grid that a layer's output forms, for methods that look at nothing else: any network will do.

    Raises:
        OptionError: when the output is no map of features, (images, channels, rows, columns) or channels last.
    """
    shapes: list[tuple[int, ...]] = []
    maps: list[tuple[int, int] | None] = []

    def see(output: Tensor) -> Tensor:
        shapes.append(tuple(output.shape))
        maps.append(map_in(output, images.shape[-2:]))
        return output

    with torch.no_grad(), eager(), at_output(find_module(model.module, layer), see):
        logits = model.logits(images[:1])
    height, width = images.shape[-2:]
    if maps and maps[-1] is not None:
        rows, cols = maps[-1]
        nothing = logits.new_zeros(rows * cols)
        return TokenLayout(rows, cols, 0, nothing, f"layer {layer}", 0, 0, 0, logits.shape[1], rows * cols)
    gives = f"gives a tensor of shape {shapes[-1]}" if shapes else "returns no tensor"
    raise OptionError(
        f"layer={layer!r} {gives} for an image of {height}×{width} pixels, which is no map: in a model whose "
        "tokens Vitrail cannot place, name a layer whose output is (images, channels, rows, columns)"
    )


class _ReachedError(Exception):
    """The first attention is reached, and no more is needed."""


class _FirstTokens:
    """Keeps something of every token at the first attention, and ends the forward pass there."""

    found: Tensor | None = None

    def attend(self, call: AttentionCall) -> Tensor:
        return self.normalise(call.key)

    def normalise(self, scores: Tensor) -> Tensor:
        self.found = scores.detach()
        raise _ReachedError


def _refuse_an_order_of_its_own(model: VisionModel, images: Float[Tensor, "batch channels height width"]) -> None:
    """Refuse a model that places the tokens of each image of a batch anew; only its stem runs, on one image and on two.

    Raises:
        UnsupportedAttentionError: where two copies of an image do not get the tokens of the one.
    """
    image = _noise(images, 1, seed=0).to(model.device, model.dtype)
    tokens = []
    for count in (1, 2):
        keeper = _FirstTokens()
        with suppress(Exception), torch.no_grad(), eager(), Tap(keeper, images=count):
            model.module(image.expand(count, -1, -1, -1).contiguous(), **model.forward_options)
        tokens.append(keeper.found)
    alone, both = tokens
    if alone is None or both is None or both.shape != (2 * len(alone), *alone.shape[1:]):
        return  # images in one sequence are sent one by one
    one, two = alone.float(), both.float().unflatten(0, (2, -1))
    if float((two - one).nan_to_num().abs().max()) > DIFFERENT * float(one.nan_to_num().abs().max()):
        raise UnsupportedAttentionError(
            f"{model.name} does not do the same with every image of a batch: two copies of an image get other tokens "
            f"than the image alone. {_DRAWN}"
        )


def _reads_of_another(
    model: VisionModel, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, " queries"]:
    """What the head reads of another image."""
    observer = ShapeObserver()
    with torch.enable_grad(), eager():
        with Tap(observer, images=1) as tap:
            logits = model.logits(_noise(images, 1, seed=1))
        return observer.observation(logits, tuple(tap.patch_grids)).reads


def observe(model: VisionModel, images: Float[Tensor, "batch channels height width"]) -> Observation:
    """Send an image of noise through the model twice, and look at the attention it calls and the tokens its head reads.

    The first pass shows which pixels each token takes, the second what depends on what.

    Raises:
        NoAttentionError: when the model calls no attention that PyTorch can show, or its logits depend on none.
        UnsupportedAttentionError: when the same image does not give the same tokens twice.
    """
    noise = _noise(images, 1, seed=0)
    size = (images.shape[-2], images.shape[-1])
    places: list[Places | None] = []

    def look(tokens: int, gradient: PixelGradient) -> None:
        grids = _candidates(model, tokens, stem_tap.patch_grids, size)
        # A convolution beside the stem may have a grid that fits by chance; the pixels refute it, and others are tried.
        grids += _possible_grids(tokens, size) if model.grid is None else []
        places.append(find_places(tokens, gradient, grids))

    stem_tap: Tap
    with torch.enable_grad():
        # The sum is no leaf, so the tap takes it for an activation.
        image = noise.clone().requires_grad_() + 0
        stem = StemObserver(image, look)
        stem_tap = Tap(stem, images=1)
        with eager(), stem_tap:
            try:
                first_numbers = model.answer(image).detach()
            except ForwardError as error:
                if not reads_texts(model.module):
                    raise
                raise ModelError(
                    f"{model.name} takes texts as well as images and ran without them ({error.__cause__}): embed the "
                    "texts first, with vitrail.load(…, texts=[…]), or wrap its image tower with a head of its own"
                ) from error
    more = None
    if model.output is not None or may_be_probabilities(first_numbers):
        with eager(), torch.no_grad():
            more = model.answer(_noise(images, 1, seed=1))  # then a second image has to tell the kind of output
    observer = ShapeObserver(mixing=True)
    with torch.enable_grad():
        tap = Tap(observer, images=1)
        with eager(), tap:
            numbers = model.answer(noise)
            logits = model.learn_kind(numbers, more).logits(numbers)
        if not observer.shapes:
            raise NoAttentionError(no_attention(model, stem_tap))
        if stem.windows:
            raise UnsupportedAttentionError(
                f"the heads of attention 0 of {len(observer.shapes)} see different parts of the image: they are "
                f"windows (ViTDet, SAM) that the model joins with its heads; {WINDOWS}; {OTHER_WAY}"
            )
        _refuse_chance(model, stem.first, observer.first, first_numbers, numbers.detach())
        seen = observer.observation(logits, tuple(tap.patch_grids))
    if not seen.shapes:
        raise NoAttentionError(
            f"{model.name} calls attention {len(observer.shapes)} times, but its logits do not depend on any of it: "
            "the output is constant, detached from the graph inside the model or computed in integers (quantized "
            "activations have no gradient), or weights that are zero, as before training, keep the attention out"
        )
    return replace(seen, places=places[0] if places else None)


def _noise(images: Tensor, count: int, seed: int) -> Float[Tensor, "count channels height width"]:
    return torch.randn(count, *images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)


def _refuse_chance(model: VisionModel, *pairs: Tensor | None) -> None:
    """Refuse a model of which two passes over the same image differ; `pairs` are its tokens twice, its logits twice."""
    for what, once, again in (("tokens", *pairs[:2]), ("logits", *pairs[2:])):
        if once is None or again is None:
            continue
        same = once.shape == again.shape
        largest = float(once.float().nan_to_num().abs().max()) if once.numel() else 0.0
        differ = float((once.float() - again.float()).nan_to_num().abs().max()) if same and once.numel() else 0.0
        if not same or differ > DIFFERENT * largest:
            by = f"differ by {differ:.3g} where the largest is {largest:.3g}" if same else "change in number"
            raise UnsupportedAttentionError(
                f"{model.name} does not do the same twice: given the same image again, its {what} {by}. {_DRAWN}"
            )


def work_out_layout(
    model: VisionModel,
    seen: Observation,
    image_size: tuple[int, int],
    again: Callable[[], Float[Tensor, " queries"]] | None = None,
) -> TokenLayout:
    """The layout that an observation shows, with the user's own `grid`, `prefix` and `readout` where given."""
    if seen.broken is not None and (reads_texts(model.module) or all(shape.images == 1 for shape in seen.shapes)):
        raise UnsupportedAttentionError(no_chain(model, seen, seen.broken))
    pools = _pools(seen.shapes)
    notes = _mixing(seen, model.name)
    tokens = seen.shapes[0].keys
    prefix, (rows, cols), order = _grid(model, tokens, seen, image_size)
    places = seen.places
    if places is not None and places.counted and places.carrying > rows * cols:
        notes += (
            f"{places.carrying} tokens carry the image, and the grid of {rows}×{cols} that was given shows "
            f"{rows * cols} of them.",
        )
    if model.readout is None:
        weights, reads = worked_out_readout(seen.reads, prefix, rows * cols, pools, again)
    else:
        weights = readout_weights(model.readout, seen.shapes[-1].queries, prefix, (rows, cols), pools, order)
        reads = f"readout={model.readout!r}" if not isinstance(model.readout, Tensor) else "given weights"
    weights = weights.to(seen.reads)
    heads, layers = seen.shapes[0].heads, len(seen.shapes)
    return TokenLayout(
        *(rows, cols, prefix, weights, reads, layers, pools, heads, seen.classes, tokens, order, notes),
        calls=seen.calls,
    )


def _mixing(seen: Observation, name: str) -> tuple[str, ...]:
    """What to say of a model in which tokens are mixed beside the attentions.

    Raises:
        UnsupportedAttentionError: where the attentions stand in a pyramid of convolutions, or have no tokens in common.
    """
    most = max(seen.beside)
    if not most:
        return ()
    at = seen.beside.index(most)
    stages = len(dict.fromkeys(seen.patch_grids))
    share = f"{most:.0%}" if most >= 0.01 else "less than 1%"
    where = f"between attention {at - 1} and attention {at} of {len(seen.beside)}, {share} of the gradient at a token"
    if stages > 2 or most > ALMOST_ALL:
        what = (
            "they may not be the same tokens: attention among channels, or a mixing of all tokens"
            if most > ALMOST_ALL and stages <= 2
            else f"convolutions in {stages} sizes stand in front of the attention and more of them between, as in "
            "FastViT, LowFormer and CPUBone"
        )
        raise UnsupportedAttentionError(
            f"{where} comes from other tokens by another way than attention ({what}), so attention alone does not say "
            f"where the logits of {name} come from; {OTHER_WAY}"
        )
    return (
        f"This model mixes neighbouring tokens between its attentions, too (convolutions): {where} comes from others "
        "that way. The map follows the attentions alone, so it is sharper than what the model really uses.",
    )


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
                f"keys: {why_not(shapes, index, pools)}; {OTHER_WAY}"
            )
    return pools


def _grid(
    model: VisionModel, tokens: int, seen: Observation, image_size: tuple[int, int]
) -> tuple[int, tuple[int, int], Int[Tensor, " patches"] | None]:
    """Prefix, grid and the patches' order: as the pixels show, where the user does not say otherwise."""
    places = seen.places
    given = model.grid is not None and model.prefix is not None
    if places is not None and places.problem is None:
        grid = places.grid
        if model.prefix in (None, places.first) and (model.grid is None or tuple(model.grid) == grid):
            return places.first, grid, places.order
    elif not given and (places is not None or model.grid is None):
        if places is None:
            problem = "no gradient leads from them to the pixels, so they cannot be told from each other"
        else:
            problem = f"of them {places.carrying} carry the image, but {places.problem}"
        raise LayoutError(
            f"{tokens} tokens of a {image_size[0]}×{image_size[1]} image enter the first attention; {problem}. If they "
            "are patches that lie row after row, say so with both grid=(rows, columns) and prefix=; otherwise "
            f"{OTHER_WAY}"
        )
    return (*_given_grid(model, tokens, seen.patch_grids, image_size), None)


def _given_grid(
    model: VisionModel, tokens: int, patch_grids: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    """Prefix and grid as the user says."""
    candidates = _candidates(model, tokens, patch_grids, image_size)
    for grid in candidates:
        others = tokens - grid[0] * grid[1]
        if others >= 0 and model.prefix in (None, others):
            return others, grid
    height, width = image_size
    prefix = "" if model.prefix is None else f" with {model.prefix} token(s) before the patches"
    found = ", ".join(f"{rows}×{cols} = {rows * cols}" for rows, cols in candidates) or "none"
    raise LayoutError(
        f"{tokens} tokens of a {height}×{width} image{prefix} fit no single grid of patches (grids seen: {found}): say "
        "which with wrap(…, grid=(rows, columns)) or prefix="
    )


def _candidates(
    model: VisionModel, tokens: int, patch_grids: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Grids that the patches may form: the user's, else those of convolutions at the start, else by arithmetic."""
    if model.grid is not None:
        rows, cols = model.grid
        return [(rows, cols)]
    seen = [grid for grid in dict.fromkeys(reversed(patch_grids)) if 0 <= tokens - grid[0] * grid[1] <= LARGEST_PREFIX]
    return seen or _possible_grids(tokens, image_size)


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
