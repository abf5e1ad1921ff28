"""Traces the token graph of a model: one forward pass of two images whose tokens are followed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import PackedBatchError, UnsupportedAttentionError
from .calls import AnyCall, AttentionCall
from .follow_tokens import TokenFollower
from .tap import Tap, eager
from .token_graph import Attend, Merge, Step, TokenGraph
from .tokens import MIXED, NONE, OF_VALUES, Tokens
from .windows import (
    call_by_windows,
    group_dimensions,
    in_four_dimensions,
    join_windows,
    part_windows,
    scores_in_four_dimensions,
)

__all__ = ["Trace", "as_grid", "end_at_grids", "made_by", "renumbered", "steps_to", "trace_graph"]

AMONG_CHANNELS = "Attention among channels moves nothing between tokens: the map follows the others."


@dataclass(frozen=True, eq=False)
class Trace:
    """A model's token graph, the heads of its first attention, its logits and what is to be said of it."""

    graph: TokenGraph
    heads: int
    classes: int
    notes: tuple[str, ...]


def trace_graph(
    logits_of: Callable[[Tensor], Float[Tensor, "images classes"]],
    images: Float[Tensor, "images channels height width"],
) -> Trace:
    """Returns the token graph for two images of this size.

    Raises:
        UnsupportedAttentionError: naming the operation through which the tokens cannot be followed.
        PackedBatchError: where the images are joined.
    """
    # In inference mode PyTorch shows whole operations (reshape) whose parts have the rules.
    with torch.inference_mode(False), torch.no_grad():
        images = images.clone()
        follower = TokenFollower(images)
        visitor = FollowingVisitor(follower)
        with eager(), Tap(visitor, len(images)), follower:
            logits = logits_of(images)
        found = follower.labels(logits)
        root = int(follower.tokens.merge(found[0][:1])[0]) if found is not None else 0
    if root <= 0:
        raise UnsupportedAttentionError("the logits follow from no token")
    graph = _graph(follower.tokens, root, visitor)
    return Trace(graph, visitor.heads[0], logits.shape[1], tuple(follower.tokens.notes))


def _graph(tokens: Tokens, root: int, visitor: "FollowingVisitor") -> TokenGraph:
    """The part of the steps that leads from one image's tokens to its logits."""
    roots = torch.tensor([root])
    window_major = [step.call for step in tokens.known_steps if isinstance(step, Attend) and _is_window_major(step)]
    steps = steps_to(tokens, roots, image=0)
    if not any(isinstance(step, Attend) for step in steps):
        mixed = ": it mixes channels alone, and moves nothing between tokens" if visitor.among_channels else ""
        raise UnsupportedAttentionError(f"the logits follow from no attention{mixed}")
    grids, steps = end_at_grids(tokens, roots, steps)
    leaves = max(grids.values(), key=lambda grid: grid.numel())
    renamed, number = renumbered(steps, torch.cat([roots, leaves.flatten()]))
    return TokenGraph(
        int(number.max()) + 1,
        int(number[root]),
        renamed,
        number[leaves],
        visitor.calls,
        frozenset(window_major),
        visitor.arrangement,
        visitor.among_channels,
        visitor.joined,
    )


def steps_to(tokens: Tokens, roots: Int[Tensor, " roots"], image: int | None = None) -> list[Step]:
    """Returns the steps that lead to these tokens, and every attention; of one image of the batch where it is named."""
    of = tokens.of("image")
    needed = torch.zeros(tokens.count, dtype=torch.bool)
    needed[roots] = True
    steps: list[Step] = []
    for step in reversed(tokens.known_steps):
        if isinstance(step, Merge):
            used = needed[step.child] if image is None else needed[step.child] & (of[step.child] == image)
            if bool(used.any()):
                steps.append(_some_edges(step, used))
                needed[step.parent[used]] = True
            continue
        if image is not None:
            mine = step.image == image
            step = Attend(step.call, step.written[mine], step.keys[mine], step.image[mine])
        steps.append(step)
        if bool(needed[step.written].any()):
            needed[step.keys.flatten()] = True
    return steps[::-1]


def renumbered(
    steps: Sequence[Step], others: Int[Tensor, " others"]
) -> tuple[tuple[Step, ...], Int[Tensor, " tokens"]]:
    """Returns the steps over as many tokens as they and `others` name, and the new number of each; 0 stays none."""
    named = [torch.cat([step.child, step.parent] if isinstance(step, Merge) else
                       [step.written.flatten(), step.keys.flatten()]) for step in steps]  # fmt: skip
    used = torch.cat([torch.zeros(1, dtype=torch.long), others, *named]).unique()
    number = torch.zeros(int(used[-1]) + 1, dtype=torch.long)
    number[used] = torch.arange(len(used))
    renamed = tuple(
        Merge(number[step.child], number[step.parent], step.weight, step.residual)
        if isinstance(step, Merge)
        else Attend(step.call, number[step.written], number[step.keys], step.image)
        for step in steps
    )
    return renamed, number


def _some_edges(step: Merge, some: Bool[Tensor, " edges"]) -> Merge:
    return Merge(step.child[some], step.parent[some], step.weight[some], step.residual)


def _is_window_major(step: Attend) -> bool:
    """Whether the images of a batch alternate from window to window, and do not follow each other.

    Raises:
        UnsupportedAttentionError: where they do neither.
    """
    images = step.image.clamp(min=0)
    windows = len(images) // 2
    if torch.equal(images, torch.arange(2).repeat_interleave(windows)):
        return False
    if torch.equal(images, torch.arange(2).repeat(windows)):
        return True
    raise UnsupportedAttentionError(f"the windows of attention {step.call} are in no order of images")


def made_by(tokens: Tokens) -> Int[Tensor, " tokens"]:
    """Returns the step that made each token, counted from 1; 0 for a pixel."""
    made = torch.zeros(tokens.count, dtype=torch.long)
    for number, step in enumerate(tokens.steps, 1):
        made[step.child if isinstance(step, Merge) else step.written.flatten()] = number
    return made


def end_at_grids(
    tokens: Tokens, roots: Int[Tensor, " roots"], steps: list[Step]
) -> tuple[dict[int, Int[Tensor, "rows cols"]], list[Step]]:
    """Returns the finest grid of tokens in front of the first attention in each image, and the steps that end there.

    Relevance of other tokens in front of it goes to the pixels that they were made of, and with them to the grid.

    Raises:
        UnsupportedAttentionError: where no image has a grid.
    """
    start = next(at for at, step in enumerate(steps) if isinstance(step, Attend))
    first = steps[start]
    assert isinstance(first, Attend)
    read = torch.zeros(tokens.count, dtype=torch.bool)
    read[roots] = True
    for step in steps[start:]:
        read[step.parent if isinstance(step, Merge) else step.keys.flatten()] = True
    read[int(first.written.min()) :], read[0] = False, False
    image, y, x = (tokens.of(name) for name in ("image", "y", "x"))
    made = made_by(tokens)
    grids: dict[int, Tensor] = {}
    for number, step in torch.stack([image, made])[:, read].T.unique(dim=0).tolist():
        members = (read & (image == number) & (made == step)).nonzero()[:, 0]
        grid = as_grid(members[~y[members].isnan()], y, x)
        if grid is not None and (number not in grids or grid.numel() > grids[number].numel()):
            grids[number] = grid
    if not grids:
        raise UnsupportedAttentionError("the tokens in front of the first attention form no grid")
    leaf = torch.zeros(tokens.count, dtype=torch.bool)
    leaf[torch.cat([grid.flatten() for grid in grids.values()])] = True
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Attend):
            kept.append(step)
        elif bool((on := ~leaf[step.child]).any()):
            kept.append(_some_edges(step, on))
    reached = torch.zeros(tokens.count, dtype=torch.bool)
    for step in kept:
        reached[step.parent if isinstance(step, Merge) else step.keys.flatten()] = True
    for number, grid in grids.items():
        pixels = (reached & (made == 0) & ~leaf & (image == number) & ~y.isnan()).nonzero()[:, 0]
        if len(pixels):
            rows, cols = y[grid[:, 0]], x[grid[0]]
            row, col = ((one[pixels][:, None] - axis).abs().argmin(dim=1) for one, axis in ((y, rows), (x, cols)))
            kept.insert(0, Merge(pixels, grid[row, col], torch.ones(len(pixels), dtype=torch.float64)))
    return grids, kept


def as_grid(
    members: Int[Tensor, " members"], y: Float[Tensor, " tokens"], x: Float[Tensor, " tokens"]
) -> Int[Tensor, "rows cols"] | None:
    """Returns tokens as rows and columns by where they lie; None where they form no grid."""
    if len(members) < 2 or bool(y[members].isnan().any()):
        return None
    (rows, row), (cols, col) = (one[members].mul(1e6).round().unique(return_inverse=True) for one in (y, x))
    if len(rows) * len(cols) != len(members):
        return None
    grid = torch.full((len(rows), len(cols)), -1)
    grid[row, col] = members
    return grid if bool((grid >= 0).all()) else None


def _varies(labels: Tensor, dim: int) -> bool:
    return bool((labels != labels.narrow(dim, 0, 1)).any())


class FollowingVisitor:
    """Gives every attention its output, and notes which tokens it joins.

    Raises:
        UnsupportedAttentionError: where its heads look at other tokens, as where windows and heads are one dimension.
    """

    def __init__(self, follower: TokenFollower) -> None:
        self.follower = follower
        self.calls = 0
        self.heads: list[int] = []
        self.images = 2
        self.arrangement: dict[int, tuple[int, ...]] = {}
        self.among_channels: dict[int, tuple[int, int]] = {}
        self.joined: dict[int, tuple[int, int]] = {}

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        query, key, value = (self.follower.labels(one) for one in (call.query, call.key, call.value))
        if query is not None and value is not None and _varies(query[0], -1) and not _varies(value[0], -2):
            with self.follower.rest():
                output = call.output()
            self._among_channels(call.images, call.queries)
            self.follower.mark(output, value[0][:, :, :1].expand(output.shape))
            return output
        joined = self._joined(*(labels[0].amax(dim=-1) for labels in (query, key) if labels is not None))
        if joined is not None:
            self.joined[self.calls] = joined
            return join_windows(self.attend(call_by_windows(call, *joined)), joined[1], call.query)
        self.heads.append(call.heads)
        with self.follower.rest():
            output = call.output()
        size = (call.images, call.heads)
        keys = self._tokens(key, (*size, call.keys))
        values = self._tokens(value, (*size, call.keys))
        if bool(((values != keys) & (values != NONE) & (keys != NONE)).any()):
            raise UnsupportedAttentionError(f"attention {self.calls} reads its values from other tokens than its keys")
        written = self._note(self._tokens(query, (*size, call.queries)), torch.where(keys == NONE, values, keys))
        self.follower.mark(output, written[:, None, :, None].expand(output.shape))
        return output

    def attend_any(self, call: AnyCall) -> Tensor:
        """Computes attention in five or more dimensions; the labels show which of them are heads."""
        found = self.follower.labels(call.query)
        if found is None:
            raise UnsupportedAttentionError(f"the queries of attention {self.calls} carry no tokens")
        groups = self.arrangement[self.calls] = group_dimensions(found[0][..., 0])
        return in_four_dimensions(self.attend, groups, call)

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        labels = self.follower.labels(scores)
        if labels is not None and len(labels) == 1 and _varies(labels[0], -1) and not _varies(labels[0], -2):
            labels = [torch.zeros_like(labels[0]), labels[0]]  # queries of the model's own, which are no tokens yet
        if labels is not None and len(labels) == 2:
            joined = self._joined(labels[0][..., 0], labels[1][..., 0, :])
            if joined is not None:
                self.joined[self.calls] = joined
                return join_windows(self.normalise(part_windows(scores, *joined)), joined[1], scores)
        self.heads.append(scores.shape[1])
        with self.follower.rest():
            attention = torch.softmax(scores, dim=-1)
        if labels is not None and bool((labels[0] == MIXED).any()):
            self._among_channels(scores.shape[0], scores.shape[-2])
            return attention
        if labels is None or len(labels) != 2:
            return self._of_values(attention, labels)
        query, key = labels[0][..., 0], labels[1][..., 0, :]
        written = self._note(self._by_group(query.cpu()), self._by_group(key.cpu()))
        written = written.to(labels[1].device)
        self.follower.mark(
            attention, written[:, None, :, None].expand(attention.shape), labels[1].expand(attention.shape)
        )
        return attention

    def normalise_any(self, scores: Float[Tensor, "*groups queries keys"]) -> Float[Tensor, "*groups queries keys"]:
        """Computes probabilities in five or more dimensions; the labels show which of them are heads."""
        labels = self.follower.labels(scores)
        if labels is None:
            raise UnsupportedAttentionError(f"the scores of attention {self.calls} carry no tokens")
        tokens = [labels[0][..., 0], *(one[..., 0, :] for one in labels[1:])]
        groups = self.arrangement[self.calls] = tuple(sorted({at for one in tokens for at in group_dimensions(one)}))
        return scores_in_four_dimensions(self.normalise, groups, scores)

    def _of_values(self, attention: Tensor, labels: list[Tensor] | None) -> Tensor:
        """Marks probabilities whose scores were made without keys, of queries or positions alone: the keys are those
        that they are multiplied with, once they are.
        """
        groups, _, queries, keys = attention.shape
        if groups % self.images or (labels is not None and _varies(labels[0], -1)):
            self.calls += 1
            return attention
        query = torch.zeros(groups, queries) if labels is None else self._by_group(labels[0][..., 0].cpu())
        written = self._note(query.double(), torch.zeros(groups, keys), of_values=True).to(attention.device)
        key = torch.tensor(OF_VALUES - (self.calls - 1)).to(written)
        self.follower.mark(attention, written[:, None, :, None].expand(attention.shape), key.expand(attention.shape))
        return attention

    def _joined(self, *labels: Tensor) -> tuple[int, int] | None:
        """The number of heads, and of windows within a head, where windows and heads share dimensions; None where they
        do not.
        """
        if not any(_varies(one, 1) for one in labels):
            return None
        images, joined = labels[0].shape[:2]
        _, window = torch.cat(labels, dim=-1).flatten(0, 1).unique(dim=0, return_inverse=True)
        first = (window == window[0]).nonzero()[:, 0]
        heads = len(first)
        within = int(first[1]) if heads > 1 else 1
        if images * joined % (heads * within):
            return None
        apart = window.view(-1, heads, within)
        alike = bool((apart == apart[:, :1]).all()) and len(apart[:, 0].unique()) == len(window) // heads
        return (heads, within) if alike else None

    def _among_channels(self, groups: int, queries: int) -> None:
        self.among_channels[self.calls] = groups // self.images, queries
        self.follower.tokens.notes[AMONG_CHANNELS] = None
        self.calls += 1

    def _tokens(self, labels: list[Tensor] | None, size: tuple[int, int, int]) -> Tensor:
        """The tokens of queries or keys, (groups, tokens): the same for every head and channel."""
        if labels is None:
            return torch.zeros(size[0], size[2], dtype=torch.float64)
        labels = [labels[0].cpu()]
        low = torch.where(labels[0] == NONE, torch.inf, labels[0]).amin(dim=-1)
        high = labels[0].amax(dim=-1)
        if bool(((low != high) & ~low.isinf()).any()):
            raise UnsupportedAttentionError(
                f"the channels of one query or key of attention {self.calls} are of several tokens"
            )
        return self._by_group(high)

    def _by_group(self, labels: Float[Tensor, "groups heads tokens"]) -> Float[Tensor, "groups tokens"]:
        if bool((labels != labels[:, :1]).any()):
            raise UnsupportedAttentionError(
                f"the heads of attention {self.calls} look at different tokens: windows and heads share a dimension"
            )
        return labels[:, 0]

    def _note(self, query: Tensor, key: Tensor, of_values: bool = False) -> Float[Tensor, "groups queries"]:
        tokens = self.follower.tokens
        image = tokens.of("image")
        groups, count = query.shape
        asked = torch.cat([query, key], dim=1).long()
        if bool((asked < 0).any()):
            raise UnsupportedAttentionError(f"attention {self.calls} looks at mixtures of all tokens")
        of_group = image[asked].amax(dim=1)
        # Queries that are the same for every image (a decoder's own) carry no token yet: images follow each other.
        of_group = torch.where(of_group < 0, torch.arange(groups) * self.images // groups, of_group)
        if bool(((image[asked] != of_group[:, None]) & (asked > 0)).any()):
            raise PackedBatchError(
                f"attention {self.calls} joins the images of a batch in one sequence; explain one image at a time"
            )
        # Queries that carry no token yet (a class token) are tokens of their own from here on.
        nowhere = torch.full((groups * count,), torch.nan, dtype=torch.float64)
        at = query.reshape(-1).long()
        y, x = (torch.where(at > 0, tokens.of(name)[at], nowhere) for name in ("y", "x"))
        written = tokens.add(y, x, of_group.repeat_interleave(count), True).view(groups, count)
        tokens.steps.append(Attend(self.calls, written, key.long(), of_group))
        if of_values:
            tokens.of_values[self.calls] = len(tokens.steps) - 1
            tokens.open.add(self.calls)
            self.calls += 1
            return written.double()
        none, of_key = query == NONE, (key == NONE).sum(dim=1, keepdim=True)
        own = none & (none.sum(dim=1, keepdim=True) == of_key)
        if bool(own.any()):
            # They look at themselves (a class token's first block), so what they were is their residual, and no token.
            y, x = y.view(groups, count)[own], x.view(groups, count)[own]
            summed = tokens.add(y, x, of_group[:, None].expand_as(own)[own], True)
            tokens.steps.append(Merge(summed, written[own], torch.ones(len(summed), dtype=torch.float64), True))
            written = written.masked_scatter(own, summed)
        tokens.attended = True
        self.calls += 1
        return written.double()
