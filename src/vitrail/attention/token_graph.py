"""The token graph: how relevance moves between the token sets of a model whose tokens do not stay in place.

From the logits back to the image, a row of relevance r over all tokens passes

    attention   r[keys] += r[written] · E_h[f(∇A_h) ⊙ A_h]     in every window by itself
    merge       r[parents] += r[child] · weights               patch merging, pooling, sums with the residual

in the opposite order of the forward pass. A token that attention writes and its residual are parents of their sum with
weight 1 each, so that on a chain of plain blocks this is r ← r + r · B, the row of `relevance_row`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UnsupportedAttentionError
from .record import RecordedLayer, row_times_attention
from .relevance_row import ELEMENTWISE, ClampedMeanUpdate, Collector, ElementwiseRule, RowUpdate
from .tap import OTHER_WAY

__all__ = [
    "Attend",
    "GraphRow",
    "Merge",
    "Step",
    "TokenGraph",
    "rollout_row",
]


@dataclass(frozen=True, eq=False)
class Attend:
    """One call of attention: the tokens that its queries write and those that its keys are, window by window."""

    call: int
    written: Int[Tensor, "windows queries"]
    keys: Int[Tensor, "windows keys"]
    image: Int[Tensor, " windows"]


@dataclass(frozen=True, eq=False)
class Merge:
    """Tokens made of others: edge e gives `weight[e]` of the relevance of `child[e]` to `parent[e]`.

    `residual` marks sums of what attention wrote with what it read.
    """

    child: Int[Tensor, " edges"]
    parent: Int[Tensor, " edges"]
    weight: Float[Tensor, " edges"]
    residual: bool = False

    @property
    def total(self) -> Float[Tensor, " edges"]:
        """Returns the sum of the weights of each edge's token where it is above one, else one.

        It is above one where what attention wrote in windows that overlap is added up.
        """
        total = torch.zeros(int(self.child.max()) + 1, dtype=self.weight.dtype)
        total = total.index_add_(0, self.child, self.weight)[self.child]
        return torch.where(total > 1 + 1e-9, total, 1.0)


Step: TypeAlias = Attend | Merge


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """The steps of one image, in the order of the forward pass, over tokens 1 … `size` − 1 (0 stands for none).

    `root` is the token that the logits read; `leaves` are the tokens of the finest grid that attention looks at, row
    after row. `arrangement` says of calls in more than four dimensions which of them tell windows apart, and
    `window_major` in which calls the images of a batch alternate from window to window; `among_channels` are the calls
    that move nothing between tokens, with the number of their groups per image and of their queries. `joined` says of
    calls in which windows and heads share dimensions how many heads there are, and how many windows within each.
    """

    size: int
    root: int
    steps: tuple[Step, ...]
    leaves: Int[Tensor, "rows cols"]
    calls: int
    window_major: frozenset[int] = frozenset()
    arrangement: dict[int, tuple[int, ...]] = field(default_factory=dict)
    among_channels: dict[int, tuple[int, int]] = field(default_factory=dict)
    joined: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def reads(self) -> str:
        """Returns a description of what the logits read."""
        made = [step for step in self.steps if isinstance(step, Merge) and bool((step.child == self.root).any())]
        parents = int((made[-1].child == self.root).sum()) if made and not made[-1].residual else 1
        return "one token" if parents == 1 else f"the mean of {parents} tokens"

    @property
    def repeats(self) -> bool:
        """Returns whether the first attention looks at several tokens of the same pixels, as those of frames are."""
        first = next(step for step in self.steps if isinstance(step, Attend))
        keys = first.keys.sort(dim=1).values
        return bool(((keys[:, 1:] == keys[:, :-1]) & (keys[:, 1:] > 0)).any())

    @property
    def remainder(self) -> Float[Tensor, " patches"]:
        """Returns the row at the leaves if no attention moved anything."""
        return self.identity[self.leaves.flatten()]

    def describe(self) -> str:
        """Returns the sizes of the attentions in words: windows, queries and keys, in the order of the forward pass."""
        sizes = [(*step.written.shape, step.keys.shape[1]) for step in self.steps if isinstance(step, Attend)]
        runs = [(size, len(list(group))) for size, group in groupby(sizes)]
        return ", ".join(f"{count} x {w} windows of {q} queries and {k} keys" for (w, q, k), count in runs)

    @property
    def last_calls(self) -> dict[int, float]:
        """Returns the last call that the logits follow from, and the share (1, or its part of a mean) that it has.$

        The mean is that of all calls whose outputs are joined with its own: heads that a model calls one by one, or
        attentions side by side.
        """
        attends = {step.call: step for step in self.steps if isinstance(step, Attend)}
        call = torch.full((self.size,), -1)
        for step in attends.values():
            call[step.written] = step.call
        last = max(step.call for step in attends.values() if bool(self.identity[step.written].any()))
        for step in self.steps:
            if not isinstance(step, Merge) or not bool((call[step.parent] == last).any()):
                continue
            child = step.child[call[step.parent] == last][0]
            parents, weight = step.parent[step.child == child], step.weight[step.child == child]
            others = set(call[parents].tolist())
            looks = torch.cat([attends[one].keys.flatten() for one in others if one >= 0])
            if -1 not in others and not bool(torch.isin(parents, looks).any()):
                return dict.fromkeys(sorted(others), 1 / float(weight.sum()))
        return {last: 1.0}

    def lines(self) -> list[str]:
        """Returns each step in words, in the order of the forward pass."""
        told = []
        for step in self.steps:
            if isinstance(step, Attend):
                windows, queries, keys = *step.written.shape, step.keys.shape[1]
                told.append(f"attention {step.call}: {windows} window(s) of {queries} queries and {keys} keys")
            elif step.residual:
                told.append(f"residual: {len(step.child.unique())} tokens are sums with what attention wrote")
            else:
                made, parents = step.child.unique(return_counts=True)
                few, many = int(parents.min()), int(parents.max())
                told.append(f"merge: {len(made)} token(s) made of {few if few == many else f'{few} to {many}'} each")
        return told

    def windows_of(self, row: Float[Tensor, "images tokens"], step: Attend) -> Float[Tensor, "windows queries"]:
        """Returns the row at the tokens that a call writes, one per window of every image."""
        found = row[:, step.written.to(row.device)]
        found = found.transpose(0, 1) if step.call in self.window_major else found
        return found.reshape(-1, found.shape[-1])

    def add_to_keys(
        self, row: Float[Tensor, "images tokens"], step: Attend, update: Float[Tensor, "windows keys"]
    ) -> None:
        """Adds to the row, in place, what a call moves to its keys."""
        windows, keys = step.keys.shape
        if step.call in self.window_major:
            by_image = update.view(windows, len(row), keys).transpose(0, 1)
        else:
            by_image = update.view(len(row), windows, keys)
        row.index_add_(1, step.keys.to(row.device).flatten(), by_image.flatten(1).to(row.dtype))

    @cached_property
    def identity(self) -> Float[Tensor, " tokens"]:
        """Returns the row at all tokens that merges alone carry."""
        row = torch.zeros(1, self.size, dtype=torch.float64)
        row[:, self.root] = 1
        for step in reversed(self.steps):
            if isinstance(step, Merge):
                carry(row, step)
        return row[0]


def rollout_row(
    graph: TokenGraph,
    layers: Sequence[RecordedLayer],
    like: Float[Tensor, "images queries"],
    *,
    halve: bool = False,
    first: int = 0,
    only: int | None = None,
) -> Float[Tensor, "images patches"]:
    """Returns the readout's row at the leaves where attention alone moves it: r[keys] += r[written] · E_h[A_h].

    With `halve`, a residual and what is added to it get equal parts of the row. Calls before `first` move nothing; with
    `only`, no call but that one does, and its residual counts for nothing. Even so a call moves what it has written
    without a residual: nothing else leads on from there.
    """
    row = like.new_zeros(len(like), graph.size)
    row[:, graph.root] = 1
    known = {step.call for step in graph.steps if isinstance(step, Attend)} | set(graph.among_channels)
    for layer in sorted(set(range(graph.calls)) - known):
        raise _of_no_tokens(layer)
    counted = {step.call for step in graph.steps if isinstance(step, Attend) and step.call >= first}
    counted = counted if only is None else {only}
    elsewhere = _lead_on(graph, counted).to(row.device)
    for step in reversed(graph.steps):
        if isinstance(step, Merge):
            kept = elsewhere[step.parent] | ~elsewhere[step.child]
            if step.residual:
                carry(row, step, _equal_parts(step, kept, graph.size) if halve else kept.double())
            else:
                carry(row, step, kept / step.total.to(row.device))
        elif bool(row[:, step.written.to(row.device)].any()):
            update = row_times_attention(graph.windows_of(row, step), layers[step.call])
            row = torch.zeros_like(row) if step.call == only else row
            graph.add_to_keys(row, step, update)
    return row[:, graph.leaves.to(row.device).flatten()]


def _lead_on(graph: TokenGraph, counted: set[int]) -> Bool[Tensor, " tokens"]:
    """Which tokens are led on from by more than calls that do not count, such as a residual."""
    found = torch.zeros(graph.size, dtype=torch.bool)
    found[graph.leaves] = True
    call = torch.full((graph.size,), -1)
    looked_at: dict[int, Tensor] = {}
    for step in graph.steps:
        if isinstance(step, Attend):
            found[step.written.flatten()] = step.call in counted
            call[step.written] = step.call
            looked_at[step.call] = step.keys
            continue
        found[step.child[found[step.parent]]] = True
        if not step.residual:
            continue
        found[step.child[torch.bincount(step.child)[step.child] == 1]] = True  # a class token's own, which is no token
        # Behind a call that writes without a residual, its tokens are the residual of those that look at them.
        left = ~found[step.child]
        for number in call[step.parent[left]].unique().tolist():
            if number >= 0:
                child = torch.zeros(graph.size, dtype=torch.bool)
                child[step.child[left & (call[step.parent] == number)]] = True
                seen = torch.zeros(graph.size, dtype=torch.bool)
                seen[looked_at[number].flatten()] = True
                before = left & child[step.child] & seen[step.parent]
                found[step.parent[before]] = True
                found[step.child[before]] = True
    return found


def _equal_parts(merge: Merge, kept: Bool[Tensor, " edges"], size: int) -> Float[Tensor, " edges"]:
    """What brings the kept weights of every token to a sum of one; a class token keeps half of its first to itself."""
    child, weight = merge.child.to(kept.device), merge.weight.to(kept.device)
    total = torch.zeros(size, dtype=weight.dtype, device=kept.device).index_add_(0, child, weight * kept)
    alone = torch.bincount(child, minlength=size) == 1
    return torch.where(alone, 0.5, 1 / total)[child].nan_to_num(posinf=0) * kept


def carry(row: Float[Tensor, "images tokens"], merge: Merge, share: float | Float[Tensor, " edges"] = 1.0) -> None:
    """Adds r[child] · weights · share to r[parents], in place."""
    child, parent, weight = (one.to(row.device) for one in (merge.child, merge.parent, merge.weight))
    row.index_add_(1, parent, row[:, child] * (share * weight).to(row.dtype))


class GraphRow:
    """The relevance row over a token graph, kept up to date while the backward pass runs, as `RelevanceRow` on a chain.

    What merges alone carry from the readout is kept apart and no part of the result.
    """

    def __init__(
        self,
        graph: TokenGraph,
        rule: str | ElementwiseRule,
        centred: bool = False,
        clamp_mean: bool = False,
    ) -> None:
        self.graph = graph
        self.rule = ELEMENTWISE[rule] if isinstance(rule, str) else rule
        self.only_complete = rule == "complete" and not centred and not clamp_mean
        self.sums_queries = self.rule in ELEMENTWISE.values() and not clamp_mean
        self.centred, self.clamp_mean = centred, clamp_mean
        self._at = {step.call: number for number, step in enumerate(graph.steps) if isinstance(step, Attend)}
        self._next = 0
        self._row: Tensor | None = None

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        """Starts a backward pass; of the readout only the number of images, device and precision are taken."""
        self._row = readout.new_zeros(len(readout), self.graph.size)
        self._next = len(self.graph.steps)

    def begin_at(self, row: Float[Tensor, "images tokens"]) -> None:
        """Starts a backward pass from a row over all tokens of the graph, as where another model reads its tokens."""
        self._row, self._next = row, len(self.graph.steps)

    def current_row(self, layer: int) -> Float[Tensor, "windows queries"]:
        """Returns the row at the tokens that call `layer` writes, one per window of every image."""
        if layer in self.graph.among_channels and self._row is not None:
            groups, queries = self.graph.among_channels[layer]
            return self._row.new_zeros(len(self._row) * groups, queries)
        row, step = self._reach(layer)
        identity = self.graph.windows_of(self.graph.identity.to(row).expand(len(row), -1), step)
        return self.graph.windows_of(row, step) + identity

    def collector(self, layer: int) -> RowUpdate | ClampedMeanUpdate:
        if self.clamp_mean:
            return ClampedMeanUpdate(self.current_row(layer), self.centred)
        return RowUpdate(self.rule, self.current_row(layer), self.centred)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, RowUpdate | ClampedMeanUpdate)
        self.take_update(layer, collector.result())

    def take_update(self, layer: int, update: Float[Tensor, "windows keys"]) -> None:
        """Adds what a call moves to the tokens that are its keys."""
        if layer in self.graph.among_channels:
            return
        row, step = self._reach(layer)
        self.graph.add_to_keys(row, step, update)
        self._next = self._at[layer]

    def result(self) -> Float[Tensor, "images patches"]:
        """Returns the sum of all attentions' additions at the leaves, row by row."""
        if self._row is None:
            raise RuntimeError("no backward pass has begun")
        self._carry(0)
        return self._row[:, self.graph.leaves.to(self._row.device).flatten()]

    def _reach(self, layer: int) -> tuple[Tensor, Attend]:
        """The row once everything behind a call has been passed, and the call."""
        if self._row is None:
            raise RuntimeError("begin() comes before a backward pass")
        if layer not in self._at:
            raise _of_no_tokens(layer)
        self._carry(self._at[layer] + 1)
        step = self.graph.steps[self._at[layer]]
        assert isinstance(step, Attend)
        return self._row, step

    def _carry(self, down_to: int) -> None:
        assert self._row is not None
        for step in reversed(self.graph.steps[down_to : self._next]):
            if isinstance(step, Merge):
                carry(self._row, step)
        self._next = min(self._next, down_to)


def _of_no_tokens(layer: int) -> UnsupportedAttentionError:
    return UnsupportedAttentionError(
        f"the logits may depend on attention {layer}, a softmax over scores that are not made of queries and keys of "
        f"tokens, so the map would lack it; {OTHER_WAY}"
    )
