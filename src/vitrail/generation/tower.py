"""The vision part of a vision-language model: from the tokens that its text model reads of an image to the patches.

The pixels are followed by label (`attention.follow_tokens`) through tower, projector or resampler into the sequence of
embeddings that the text model is given, so pixel shuffle, merging, windows, pooling and learnt queries need no rule of
their own here. What is found is one token graph, with many roots where a classifier has one.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..attention.follow_tokens import TokenFollower
from ..attention.record import RecordedLayer, row_times_attention
from ..attention.tap import Tap, eager
from ..attention.token_graph import Attend, Merge, TokenGraph, carry
from ..attention.tokens import MIXED, NONE, Tokens
from ..attention.trace_graph import FollowingVisitor, as_grid, end_at_grids, made_by, renumbered, steps_to
from ..errors import PackedBatchError, UnsupportedAttentionError, VitrailError
from .views import Grid, Places

__all__ = ["DEEPSTACK", "Tower", "follow_tower", "rollout_through", "text_inputs"]

DEEPSTACK = "deepstack_visual_embeds"  # features that Qwen3-VL adds to the stream again, behind its first layers


@dataclass(frozen=True, eq=False)
class Tower:
    """What stands at each image token of the sequence, and the graph from there back to the patches.

    `positions` are those of the sequence that are made of an image; `tokens` number what stands there in the graph, and
    `again` what is added there behind the text model's first layers. `token_grids` count along `positions`,
    `patch_grids` along the graph's leaves. `graph` is None where the tower could not be followed (`reason` says why)
    or has no attention.
    """

    positions: Int[Tensor, " image_tokens"]
    token_grids: tuple[Grid, ...]
    patch_grids: tuple[Grid, ...] = ()
    tokens: Int[Tensor, " image_tokens"] | None = None
    again: tuple[Int[Tensor, " image_tokens"], ...] = ()
    graph: TokenGraph | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()

    def seed(
        self, row: Float[Tensor, "questions image_tokens"], again: Sequence[Float[Tensor, "questions image_tokens"]]
    ) -> Float[Tensor, "questions tokens"]:
        """Returns the row over all tokens of the graph from that at the image tokens, and at what is added there."""
        assert self.graph is not None
        assert self.tokens is not None
        seeded = row.new_zeros(len(row), self.graph.size)
        for labels, part in ((self.tokens, row), *zip(self.again, again, strict=False)):
            seeded.index_add_(1, labels.to(row.device), part)
        return seeded

    def leaves(self, row: Float[Tensor, "questions tokens"]) -> Float[Tensor, "questions patches"]:
        """Returns the part of a row over all tokens that is at the patches."""
        assert self.graph is not None
        return row[:, self.graph.leaves.flatten().to(row.device)]


class Reached(BaseException):
    """The text model has been reached; the rest of the pass is not needed. No model's `except Exception` holds it."""


_KNOWN: "weakref.WeakKeyDictionary[nn.Module, dict[Any, Tower]]" = weakref.WeakKeyDictionary()
MOST_KNOWN = 32  # sizes of images and prompts that are kept of one model


def follow_tower(
    module: nn.Module,
    entrance: nn.Module,
    run: Callable[[Mapping[str, Any]], object],
    inputs: Mapping[str, Any],
    places: Places,
    positions: Int[Tensor, " image_tokens"] | None,
) -> Tower:
    """Returns the vision part for inputs of this kind, followed once for each.

    Args:
        module: the whole model.
        entrance: the part of it that is given the sequence of embeddings.
        run: runs the model on its inputs.
        inputs: a sequence and its images.
        places: where each of their pixels lies.
        positions: where the image tokens stand, as the model's configuration tells; None where it does not.
    """
    key = _key(inputs, positions)
    known = _KNOWN.setdefault(module, {})
    if key not in known:
        if len(known) >= MOST_KNOWN:
            known.pop(next(iter(known)))
        try:
            try:
                known[key] = _follow(entrance, run, inputs, places)
            except PackedBatchError:  # Pixtral's images are one sequence, of which a mask keeps them apart
                known[key] = _follow(entrance, run, inputs, places, packed=True)
        except VitrailError as error:
            if positions is None or (grids := _unfollowed(positions, places)) is None:
                raise
            known[key] = Tower(positions, grids, reason=str(error))
    return known[key]


def _key(inputs: Mapping[str, Any], positions: Tensor | None) -> Any:
    """What decides how the tokens move: shapes, small numbers such as sizes, and where the image stands in the text."""
    said = []
    for name, value in sorted(inputs.items()):
        if not isinstance(value, Tensor):
            said.append((name, repr(value)))
        elif value.is_floating_point():
            empty = (value.flatten(-3) == 0).all(dim=-1).flatten().tolist() if value.dim() > 3 else ()
            said.append((name, tuple(value.shape), tuple(empty), value.dtype))
        elif name == "input_ids" and positions is not None:
            said.append((name, tuple(value.shape), tuple(positions.tolist())))
        elif name != "input_ids" and (value.shape == inputs["input_ids"].shape or name.endswith("input_ids")):
            said.append((name, tuple(value.shape)))
        else:
            said.append((name, tuple(value.shape), sha256(value.cpu().numpy().tobytes()).digest()))
    return tuple(said)


@contextmanager
def text_inputs(entrance: nn.Module, see: Callable[[Tensor, Mapping[str, Any]], object]) -> Iterator[None]:
    """Within the block, `see` is told the embeddings that a text model is given in this thread, and its other
    arguments.
    """
    thread = threading.get_ident()

    def hook(_part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != thread:
            return
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is None:
            embeddings = next((one for one in args if isinstance(one, Tensor) and one.is_floating_point()), None)
        if embeddings is None:
            raise UnsupportedAttentionError(
                f"the text model ({type(entrance).__name__}) is given no embeddings, so no image is joined to its text"
            )
        see(embeddings, kwargs)

    handle = entrance.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _follow(
    entrance: nn.Module,
    run: Callable[[Mapping[str, Any]], object],
    inputs: Mapping[str, Any],
    places: Places,
    *,
    packed: bool = False,
) -> Tower:
    found: dict[str, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        pixels = inputs["pixel_values"].clone()
        follower = _PlacedFollower(pixels, places, packed)
        visitor = FollowingVisitor(follower)
        visitor.images = 1 if packed else len(places.views)

        def see(embeddings: Tensor, kwargs: Mapping[str, Any]) -> None:
            found["tokens"] = _labels(follower, embeddings)
            found["again"] = [_labels(follower, one) for one in kwargs.get(DEEPSTACK) or ()]
            others = [
                name
                for name, value in kwargs.items()
                if isinstance(value, Tensor)
                and name != "inputs_embeds"
                and value.is_floating_point()
                and (labels := follower.labels(value)) is not None
                and bool((labels[0] != NONE).any())
            ]
            if others:
                raise UnsupportedAttentionError(
                    f"the text model is given what is made of the image as {', '.join(others)}, beside its sequence of "
                    "embeddings, and nothing tells where it goes from there"
                )
            raise Reached

        try:
            with text_inputs(entrance, see), eager(), Tap(visitor, 1), follower:
                run({**inputs, "pixel_values": pixels})
        except Reached:
            pass
    if "tokens" not in found:
        raise UnsupportedAttentionError(f"the model never called its text model ({type(entrance).__name__})")
    positions = (found["tokens"] != NONE).nonzero()[:, 0]
    if not len(positions):
        raise UnsupportedAttentionError("nothing in the sequence that the text model reads is made of the image")
    roots = found["tokens"][positions]
    again = tuple(labels[labels != NONE] for labels in found["again"])
    if any(len(one) != len(positions) for one in again):
        raise UnsupportedAttentionError(f"{DEEPSTACK} holds other tokens than those of the image in the sequence")
    tokens = follower.tokens
    if packed:
        _unpack(tokens, places)
    token_grids = _grids(roots, tokens, made_by(tokens))
    if not any(isinstance(step, Attend) for step in tokens.steps):
        return Tower(positions, token_grids, reason="the vision tower calls no attention")
    graph, grids, renamed = _graph(tokens, torch.cat([roots, *again]), visitor)
    own, *others = renamed.split(len(positions))
    return Tower(positions, token_grids, grids, own, tuple(others), graph, "", tuple(follower.tokens.notes))


FAR = 2.0**20  # pixels between one view and the next where views are one sequence


class _PlacedFollower(TokenFollower):
    """Follows the pixels of several views, each where it lies on its own canvas.

    Views that are `packed` count as one image, and lie far below each other.
    """

    def __init__(self, pixels: Tensor, places: Places, packed: bool) -> None:
        count = places.view.numel()
        super().__init__(torch.zeros(1, 1, count, 1))
        tokens, belongs = self.tokens, places.view.flatten()
        tokens.y[-1], tokens.x[-1], tokens.image[-1] = places.y.flatten(), places.x.flatten(), belongs
        if packed:
            tokens.y[-1], tokens.image[-1] = tokens.y[-1] + FAR * belongs, belongs.clamp(max=0)
        labels = torch.arange(1, 1 + count, dtype=torch.float64).masked_fill(belongs < 0, NONE).view(places.view.shape)
        self.mark(pixels, labels.to(pixels.device).unsqueeze(1 if pixels.dim() == 2 else -3).expand(pixels.shape))


def _unpack(tokens: Tokens, places: Places) -> None:
    """Gives the tokens of packed views their view and their place in it.

    Raises:
        PackedBatchError: where a token is made of several.
    """
    y, placed = tokens.of("y"), ~tokens.of("y").isnan()
    view = torch.where(placed, y.nan_to_num() // FAR, -1).long()
    y = y - FAR * view.clamp(min=0)
    tallest = max(one.canvas[0] for one in places.views)
    if bool((y[placed] > tallest).any()) or not bool(placed[1:].all()):
        raise PackedBatchError("the model joins tokens of several images; explain one image at a time")
    tokens.y, tokens.image = [y], [view]


def _labels(follower: TokenFollower, embeddings: Tensor) -> Int[Tensor, " sequence"]:
    """The token that stands at each position of a sequence, 0 where none does."""
    found = follower.labels(embeddings)
    if found is None:
        return torch.zeros(embeddings.shape[:-1].numel(), dtype=torch.long)
    if len(found) != 1 or bool((found[0] == MIXED).any()):
        raise UnsupportedAttentionError("the text model is given mixtures of all image tokens, which are none")
    labels = follower.tokens.merge(found[0]).cpu().long()
    if labels.dim() == 2 and len(labels) > 1:
        raise UnsupportedAttentionError(f"the text model is given {len(labels)} sequences; explain one at a time")
    return labels.flatten()


def _unfollowed(positions: Tensor, places: Places) -> tuple[Grid, ...] | None:
    """The grids of image tokens of which nothing is known but their number: squares, or one row without a place.

    None where nothing tells which of them are of which image.
    """
    runs = positions.tensor_split((positions.diff() != 1).nonzero()[:, 0] + 1)
    if len(runs) != places.images and places.images > 1:
        return None
    counts = [len(positions)] if places.images == 1 else [len(run) for run in runs]
    views = {view.image: number for number, view in reversed(list(enumerate(places.views)))}
    found = []
    for image, tokens in enumerate(torch.arange(len(positions)).split(counts)):
        side = round(len(tokens) ** 0.5)
        alone = sum(view.image == image for view in places.views) == 1  # tiles are in no order that is known
        if side**2 != len(tokens) or not alone:
            found.append(Grid(views[image], tokens[None]))
            continue
        rows, cols = places.views[views[image]].canvas
        found.append(Grid(views[image], tokens.view(side, side), (rows / side, cols / side)))
    return tuple(found)


# -- from the labels to a graph --------------------------------------------------------------------------------------


def _grids(labels: Int[Tensor, " some"], tokens: Tokens, made: Int[Tensor, " tokens"]) -> tuple[Grid, ...]:
    """The grids that tokens form by where they lie, view by view; the numbers in them count along `labels`."""
    view, y, x = (tokens.of(name)[labels] for name in ("image", "y", "x"))
    found = []
    for number in view.unique().tolist():
        members = (view == number).nonzero()[:, 0]
        grid = _as_grid(number, members, y, x)
        if grid is not None:
            found.append(grid)
            continue
        for step in made[labels[members]].unique().tolist():  # a mean of all beside its parts (Florence-2)
            some = members[made[labels[members]] == step]
            found.append(_as_grid(number, some, y, x) or Grid(number, some[None]))
    return tuple(found)


def _as_grid(view: int, members: Int[Tensor, " members"], y: Tensor, x: Tensor) -> Grid | None:
    """Tokens as rows and columns; None where they form no grid."""
    grid = as_grid(members, y, x)
    return None if grid is None else _placed(view, grid, y, x)


def _placed(view: int, tokens: Int[Tensor, "rows cols"], y: Tensor, x: Tensor) -> Grid:
    lines = [one[some].mul(1e6).round() for one, some in ((y, tokens[:, 0]), (x, tokens[0]))]
    sizes = [float(one[-1] - one[0]) / 1e6 / max(1, len(one) - 1) for one in lines]
    sizes = [own or other for own, other in zip(sizes, reversed(sizes), strict=True)]  # of one row: square cells
    starts = [float(one[0]) / 1e6 - size / 2 for one, size in zip(lines, sizes, strict=True)]
    return Grid(view, tokens, (sizes[0], sizes[1]), (starts[0], starts[1]))


def _graph(
    tokens: Tokens, roots: Int[Tensor, " roots"], visitor: FollowingVisitor
) -> tuple[TokenGraph, tuple[Grid, ...], Int[Tensor, " roots"]]:
    """The steps that lead from the patches to these tokens, the patches' grids, and the new numbers of the roots."""
    found, steps = end_at_grids(tokens, roots, steps_to(tokens, roots))
    views = sorted(found.items())
    leaves = torch.cat([grid.flatten() for _, grid in views])
    counted = torch.arange(len(leaves)).split([grid.numel() for _, grid in views])
    grids = tuple(
        _placed(view, grid, tokens.of("y"), tokens.of("x"))._replace(tokens=numbers.view(grid.shape))
        for (view, grid), numbers in zip(views, counted, strict=True)
    )
    renamed, number = renumbered(steps, torch.cat([roots, leaves]))
    graph = TokenGraph(
        int(number.max()) + 1,
        0,
        renamed,
        number[leaves][None],
        visitor.calls,
        arrangement=visitor.arrangement,
        # The pass is one batch, whatever the number of views in it.
        among_channels={call: (groups * visitor.images, n) for call, (groups, n) in visitor.among_channels.items()},
        joined=visitor.joined,
    )
    return graph, grids, number[roots]


# -- without a gradient ----------------------------------------------------------------------------------------------


def rollout_through(
    graph: TokenGraph, layers: Sequence[RecordedLayer], rows: Float[Tensor, "questions tokens"], *, attend: bool
) -> Float[Tensor, "questions tokens"]:
    """Returns rows carried back to the patches by attention alone, a residual and what is added to it in equal parts.

    Without `attend` no attention moves anything, and the whole row stays with the residual.
    """
    for step in reversed(graph.steps):
        if isinstance(step, Merge):
            parents = torch.bincount(step.child, minlength=graph.size)[step.child]
            if not step.residual:
                share = torch.ones_like(step.weight)
            elif attend:  # a class token's own is no token: its half stays with it
                share = torch.where(parents == 1, 0.5, 1 / parents)
            else:
                share = torch.ones_like(step.weight)
            carry(rows, step, share.to(rows.device))
        elif attend and step.call not in graph.among_channels and bool(rows[:, step.written.to(rows.device)].any()):
            for question in range(len(rows)):
                row = rows[question : question + 1]
                graph.add_to_keys(row, step, row_times_attention(graph.windows_of(row, step), layers[step.call]))
    return rows
