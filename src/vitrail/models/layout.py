"""How a model's tokens lie: prefix, grid of patches, and the row that its head reads. Worked out, not asked for."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attention.modules import at_output, find_module
from ..attention.observe import AttentionShape, Observation
from ..attention.tap import OTHER_WAY, eager
from ..attention.token_graph import TokenGraph
from ..attention.trace_graph import trace_graph
from ..errors import (
    LayoutError,
    MovingTokensError,
    NoAttentionError,
    OptionError,
    PackedBatchError,
    UnsupportedAttentionError,
)
from .observation import (
    grid_candidates,
    grid_layers,
    map_in,
    no_chain,
    noise_like,
    observe,
    other_way,
    reads_of_another,
    reads_texts,
    refuse_an_order_of_its_own,
    why_not,
)
from .readiness import model_errors, refuse_replaced
from .vision_model import VisionModel

__all__ = [
    "Readout",
    "TokenLayout",
    "layout_for_features",
    "layout_of",
    "readout_weights",
    "work_out_layout",
]

# The share of a token's gradient that comes from other tokens by another way than attention which is too much. Any
# share is worth a word: how small it is says how a layer scale begins, and not how the model is built.
ALMOST_ALL = 0.9
Readout: TypeAlias = str | int | tuple[int, int] | Sequence[float | int] | Tensor


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Where the patches lie among the tokens, and how the head reads the last attention.

    `readout` holds one weight per query of the last attention and sums to one; `reads` says it in words. `layers` is
    the number of attention calls that the logits depend on, `pools` how many of them, at the end, pool the tokens;
    `classes` is the number of logits. `all_tokens` counts those that may follow the patches too. `order` says which of
    the patch tokens shows each cell of the grid, row after row; None where they stand in that order. `notes` are for
    every map of the model. `calls` is how often the model calls attention for one image in all, where that is known.
    Where tokens do not stay in place, `graph` says how they move; the grid is then the finest, `readout` means nothing.
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
    graph: TokenGraph | None = None

    @property
    def reads_patches(self) -> bool:
        """Returns whether the head reads patches as they leave the blocks, and not through a last attention that pools
        them.
        """
        return not self.pools and bool(self.readout[self.prefix : self.prefix + self.patches].any())

    @property
    def patches(self) -> int:
        return self.rows * self.cols

    @property
    def tokens(self) -> int:
        return self.prefix + self.patches

    @property
    def block_tokens(self) -> int:
        """Returns the number of tokens that enter and leave each block; any that follow the patches are among them."""
        return self.tokens if self.pools else len(self.readout)

    def describe(self) -> str:
        """Returns one line: tokens, layers, readout."""
        if self.graph is not None:
            return (
                f"{self.rows} x {self.cols} patches at the finest; {self.layers} attention layers, "
                f"{self.graph.describe()}; "
                f"the head reads: {self.reads}"
            )
        return (
            f"{self.prefix} token(s) before {self.rows} x {self.cols} patches; {self.layers} attention layers of "
            f"{self.heads} heads; the head reads: {self.reads}"
        )

    def as_grid(self, tokens: Float[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch rows cols"]:
        """Returns the patches' part of a row over all tokens, as the grid that they form in the image."""
        patches = tokens[..., self.prefix : self.prefix + self.patches]
        if self.order is not None:
            patches = patches[..., self.order.to(patches.device)]
        return patches.reshape(*tokens.shape[:-1], self.rows, self.cols)


_LAYOUTS: WeakKeyDictionary[VisionModel, dict[tuple[int, ...], TokenLayout]] = WeakKeyDictionary()
_GRAPHS: WeakKeyDictionary[VisionModel, dict[tuple[int, ...], TokenLayout]] = WeakKeyDictionary()
_OF_LAYERS: WeakKeyDictionary[VisionModel, dict[tuple, tuple[TokenLayout, str | None]]] = WeakKeyDictionary()


def layout_of(
    model: VisionModel, images: Float[Tensor, "batch channels height width"], follow: bool = False
) -> TokenLayout:
    """Returns the layout for images of this size, looked up after the first time.

    With `follow`, the tokens of a model in which they do not stay in place are followed instead of refused.

    Raises:
        NoAttentionError: when the model calls no attention that PyTorch can show.
        UnsupportedAttentionError: when attention runs within windows or over changing numbers of tokens.
        ModelError: when another library has replaced parts of the model by some with another gradient.
        LayoutError: when the tokens fit no grid; the message names the numbers.
    """
    refuse_replaced(model.module, lambda: model.answer(noise_like(images, 1, seed=0)))
    known = _LAYOUTS.setdefault(model, {})
    size = tuple(images.shape[1:])
    if follow and size in _GRAPHS.get(model, {}):
        return _GRAPHS[model][size]
    if size not in known:
        try:
            with model_errors(model.name, model.module):
                seen = observe(model, images)
            layout = work_out_layout(
                model, seen, (images.shape[-2], images.shape[-1]), partial(reads_of_another, model, images)
            )
        except (LayoutError, NoAttentionError, UnsupportedAttentionError) as error:
            told = model.grid is not None or model.prefix is not None
            if follow and isinstance(error, MovingTokensError if told else MovingTokensError | LayoutError):
                with suppress(MovingTokensError, LayoutError):  # whose reason the refusal then tells
                    return _followed(model, images, error)
            if OTHER_WAY in str(error):
                error.args = (str(error).replace(OTHER_WAY, other_way(model, noise_like(images, 1, seed=0))),)
            raise
        refuse_an_order_of_its_own(model, images)
        known[size] = layout
    return known[size]


def _followed(model: VisionModel, images: Tensor, refusal: MovingTokensError | LayoutError) -> TokenLayout:
    """The layout of a model whose tokens do not stay in place, by its token graph.

    Raises:
        UnsupportedAttentionError: saying where they cannot be followed.
    """
    try:
        with model_errors(model.name, model.module):
            model.kind_for(images)  # which asks the model in its turn, and must not be followed
            trace = trace_graph(model.logits, noise_like(images, 2, seed=0))
    except (UnsupportedAttentionError, PackedBatchError) as error:
        refusal.args = (f"{refusal}; nor can its tokens be followed: {error}",)
        raise refusal from error
    if isinstance(refusal, LayoutError) and trace.graph.repeats:
        raise refusal
    refuse_an_order_of_its_own(model, images)
    graph, (rows, cols) = trace.graph, trace.graph.leaves.shape
    layout = TokenLayout(
        *(rows, cols, 0, torch.ones(1), graph.reads, graph.calls, 0, trace.heads, trace.classes, rows * cols),
        notes=trace.notes,
        calls=graph.calls,
        graph=graph,
    )
    _GRAPHS.setdefault(model, {})[tuple(images.shape[1:])] = layout
    return layout


def layout_for_features(
    model: VisionModel, images: Float[Tensor, "batch channels height width"], layer: str | None
) -> tuple[TokenLayout, str | None]:
    """Returns the layout for methods that look at the features of one layer alone, and that layer's name.

    Where the tokens have no place, as in pyramids and convolutional networks, the grid is that of the layer's output.
    Without a name this is the last layer that gives a grid, if it is coarser than the first one's and no embedding of
    patches: the end of the last stage.

    Raises:
        OptionError: when the output of the named layer is no map of features.
        VitrailError: as `layout_of`, where no layer is named and none of a last stage is found.
    """
    known, key = _OF_LAYERS.setdefault(model, {}), (tuple(images.shape[1:]), layer)
    if key not in known:
        try:
            known[key] = layout_of(model, images), layer
        except (LayoutError, NoAttentionError, UnsupportedAttentionError) as error:
            if layer is not None:
                known[key] = _layout_of_layer(model, images, layer), layer
                return known[key]
            layers = grid_layers(model, noise_like(images, 1, seed=0))
            last, grid = layers[-1] if layers else ("", (0, 0))
            stages = layers and math.prod(grid) < math.prod(layers[0][1]) and "embed" not in last
            if not stages or not isinstance(error, MovingTokensError | NoAttentionError):
                raise
            note = f"Made of the features of {last!r}, the last layer that gives a grid; layer= names another."
            known[key] = replace(_layout_of_layer(model, images, last), notes=(note,)), last
    return known[key]


def _layout_of_layer(
    model: VisionModel, images: Float[Tensor, "batch channels height width"], layer: str
) -> TokenLayout:
    """Returns the grid that a layer's output forms, for methods that look at nothing else: any network will do.

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


def work_out_layout(
    model: VisionModel,
    seen: Observation,
    image_size: tuple[int, int],
    again: Callable[[], Float[Tensor, " queries"]] | None = None,
) -> TokenLayout:
    """Returns the layout that an observation shows, with the user's own `grid`, `prefix` and `readout` where given."""
    if seen.broken is not None and (reads_texts(model.module) or all(shape.images == 1 for shape in seen.shapes)):
        raise MovingTokensError(no_chain(model, seen, seen.broken))
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
    """What to say of a model in which tokens are mixed by more than the attentions.

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
        raise MovingTokensError(
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
            raise MovingTokensError(
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
    candidates = grid_candidates(model, tokens, patch_grids, image_size)
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


def readout_weights(
    readout: Readout,
    queries: int,
    prefix: int,
    grid: tuple[int, int],
    pools: int = 0,
    order: Int[Tensor, " patches"] | None = None,
) -> Float[Tensor, " queries"]:
    """Weights over the queries of the last attention for a readout named by the user.

    "class" is token 0, "mean" the patches, "all" every token; an integer is a token, a pair (row, column) a patch; a
    sequence gives the weights themselves. `order` is that of the layout.

    Raises:
        LayoutError: when the model has no such token.
    """
    rows, cols = grid
    weights = torch.zeros(queries)
    patch = _as_patch(readout)
    if isinstance(readout, Tensor) or (
        isinstance(readout, Sequence) and not isinstance(readout, str) and patch is None
    ):
        weights = torch.as_tensor(readout, dtype=torch.float64)
        if weights.shape != (queries,):
            raise LayoutError(
                f"readout has {tuple(weights.shape)} weights, but the last attention has {queries} queries"
            )
        return weights
    if pools and readout != "all":
        raise LayoutError(
            f"readout={readout!r} names a token, but this model's head pools its tokens by attention with {queries} "
            'query: leave readout out, or give "all"'
        )
    if readout == "class":
        if queries == rows * cols:
            raise LayoutError('readout="class", but this model has no token beside its patches: use "mean"')
        weights[0 if prefix else rows * cols] = 1
    elif readout == "mean":
        weights[prefix : prefix + rows * cols] = 1 / (rows * cols)
    elif readout == "all":
        weights[:] = 1 / queries
    elif patch is not None:
        row, col = patch
        if not (0 <= row < rows and 0 <= col < cols):
            raise LayoutError(f"readout={readout} is no patch of the {rows}×{cols} grid (counted from 0)")
        cell = row * cols + col
        weights[prefix + (cell if order is None else int(order[cell]))] = 1
    elif isinstance(readout, int):
        if not -queries <= readout < queries:
            raise LayoutError(f"readout={readout} is no token: the last attention has {queries} queries")
        weights[readout] = 1
    else:
        raise LayoutError(
            f'readout={readout!r} is none of "class", "mean", "all", a token, a patch (row, column), weights'
        )
    return weights


def _as_patch(readout: Readout) -> tuple[int, int] | None:
    """A pair of whole numbers is a patch; any other sequence holds weights."""
    if isinstance(readout, tuple) and len(readout) == 2:
        row, col = readout
        if isinstance(row, int) and isinstance(col, int):
            return row, col
    return None


def worked_out_readout(
    reads: Float[Tensor, " queries"],
    prefix: int,
    patches: int,
    pools: int,
    again: Callable[[], Float[Tensor, " queries"]] | None = None,
) -> tuple[Float[Tensor, " queries"], str]:
    """Weights over the queries of the last attention, from the gradient that reaches each.

    Only which tokens are read is taken from the gradient, not how strongly: a class token counts as itself, pooled
    patches as their mean. A head that joins the class token with the patches' mean (DINOv2) gives each half.
    """
    seen = reads > reads.max() * 1e-9
    weights = seen.to(torch.float64)
    if pools:
        return weights / weights.sum(), "attention pooling"
    is_patch = torch.zeros_like(seen)
    is_patch[prefix : prefix + patches] = True
    others = int((seen & ~is_patch).sum())
    if not bool((seen & is_patch).any()):
        return weights / weights.sum(), "class token" if others == 1 else f"mean of {others} tokens beside the patches"
    few = seen & is_patch
    if again is not None and not bool(few[is_patch].all()):
        other = again()
        if bool(((other > other.max() * 1e-9) & is_patch == few).all()):
            # The same few patches of any image: one cell of a dense head, or what its interpolation joins.
            weights = ((reads / reads.sum() + other / other.sum()) * seen).double()
            return weights / weights.sum(), f"{int(few.sum())} of the {patches} patches" + (
                f" and {others} token(s) beside them" if others else ""
            )
    # A maximum over tokens shows only where the maxima lie; the head reads all patches nevertheless.
    weights[is_patch] = 1
    if others == 0:
        return weights / weights.sum(), "mean of the patches"
    # A token read by itself gets a gradient as large as all patches of a mean together, about √patches … patches times
    # one patch's; as one of many pooled alike it gets about the same as each of them.
    typical = reads[is_patch].median()
    if bool((reads[seen & ~is_patch] > typical * patches**0.5).all()):
        weights[~is_patch] /= others
        weights[is_patch] /= patches
        return weights / 2, "class token and mean of the patches"
    return weights / weights.sum(), "mean of all tokens"
