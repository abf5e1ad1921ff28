"""The tokens of a model that moves them, by label: what each is made of, where it lies, and which image it is of."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import PackedBatchError, UnsupportedAttentionError
from .labels import once
from .token_graph import Attend, Merge, Step

__all__ = ["MIXED", "NONE", "OF_VALUES", "Tokens"]

NONE, MIXED = 0.0, -1.0
"""The label of what comes from no token, and of a mixture of many tokens that is no token itself (qᵀk over tokens)."""
MANY = 16  # attentions side by side there are fewer of
OF_VALUES = -2.0
"""The label of keys that will be known by the values: this for attention 0, one less for each later one."""


@dataclass
class Tokens:
    """The tokens found so far, by their labels: parents, where they lie, which image they are of, what they are.

    `y`, `x` are the centre in pixels (NaN: of no place); `branch` marks what an attention has written and nothing has
    been added to; `terms` are the two tokens that one is the sum of (0: it is no sum). `of_values`
    says of attentions whose keys are told by their values which step they are, and `open` of which they are not yet.
    `attended` says whether any attention has been passed, and `notes` are what is to be said of every map.
    """

    y: list[Tensor] = field(default_factory=lambda: [torch.full((1,), torch.nan, dtype=torch.float64)])
    x: list[Tensor] = field(default_factory=lambda: [torch.full((1,), torch.nan, dtype=torch.float64)])
    image: list[Tensor] = field(default_factory=lambda: [torch.full((1,), -1)])
    branch: list[Tensor] = field(default_factory=lambda: [torch.zeros(1, dtype=torch.bool)])
    terms: list[Tensor] = field(default_factory=lambda: [torch.zeros(1, 2, dtype=torch.long)])
    count: int = 1
    known: dict[bytes | tuple[int, int], int] = field(default_factory=dict)
    parts: dict[int, frozenset[int]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    of_values: dict[int, int] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    attended: bool = False
    notes: dict[str, None] = field(default_factory=dict)

    def add(self, y: Tensor, x: Tensor, image: Tensor, branch: bool | Tensor) -> Tensor:
        """Returns the labels of new tokens."""
        labels = torch.arange(self.count, self.count + len(y))
        self.y.append(y)
        self.x.append(x)
        self.image.append(image)
        self.branch.append(branch if isinstance(branch, Tensor) else torch.full((len(y),), branch))
        self.terms.append(torch.zeros(len(y), 2, dtype=torch.long))
        self.count += len(y)
        return labels

    @property
    def known_steps(self) -> list[Step]:
        """Returns the steps without the attentions whose keys have not been told."""
        return [step for step in self.steps if not (isinstance(step, Attend) and step.call in self.open)]

    def settle(self) -> None:
        """Joins what was added to one tensor each."""
        for name in ("y", "x", "image", "branch", "terms"):
            parts = getattr(self, name)
            if len(parts) > 1:
                setattr(self, name, [torch.cat(parts)])

    def of(self, name: str) -> Tensor:
        """Returns one property of all tokens, by label."""
        self.settle()
        return getattr(self, name)[0]

    def make(
        self,
        child: Int[Tensor, " edges"],
        parent: Int[Tensor, " edges"],
        weight: Float[Tensor, " edges"],
        branch: Bool[Tensor, " tokens"],
        residual: Bool[Tensor, " tokens"] | None = None,
    ) -> Int[Tensor, " tokens"]:
        """Returns the labels of new tokens: edge e makes token `child[e]` (from 0) of `parent[e]` by `weight[e]`.

        `branch` and `residual` say of each new token whether attention alone wrote it, and whether it is the sum of
        such a token and others.

        Raises:
            PackedBatchError: where a token would be made of two images.
        """
        count, image = len(branch), self.of("image")[parent]
        of_child = torch.full((count,), -1).scatter_reduce_(0, child, image, "amax")
        if bool(((image != of_child[child]) & (image >= 0)).any()):
            raise PackedBatchError(
                "the model joins tokens of several images of a batch; explain one image at a time, with batch_size=1"
            )
        places = []
        for name in ("y", "x"):
            at = self.of(name)[parent]
            placed = ~at.isnan()
            share = torch.zeros(count, dtype=torch.float64).index_add_(0, child[placed], weight[placed])
            total = torch.zeros(count, dtype=torch.float64).index_add_(0, child[placed], (weight * at)[placed])
            places.append(total / share)  # NaN where no parent has a place
        labels = self.add(places[0], places[1], of_child, branch)
        with_residual = torch.zeros_like(child, dtype=torch.bool) if residual is None else residual[child]
        for flag in with_residual.unique().tolist():
            on = with_residual == flag
            self.steps.append(Merge(labels[child[on]], parent[on], weight[on], flag))
        return labels

    def sums(self, pairs: Int[Tensor, "pairs two"]) -> Int[Tensor, " pairs"]:
        """Returns the tokens that are sums of two: what one attention wrote is added whole, others are averaged.

        A sum with one of its own parts is that sum: what a token was is in it already.
        """
        low, high = pairs.aminmax(dim=1)
        whole = self.of("terms")[:, 0] == 0
        # The later of two is no part of the earlier, and so no part of it is in the other.
        apart = whole[high] & (self.of("branch")[pairs].any(dim=1) | whole[low])
        found = torch.empty(len(pairs), dtype=torch.long)
        found[apart] = self._two(pairs[apart])
        found[~apart] = self._many(pairs[~apart])
        return found

    def _two(self, pairs: Int[Tensor, "pairs two"]) -> Int[Tensor, " pairs"]:
        """Sums of two that have no part in common."""
        keys = list(map(tuple, pairs.sort(dim=1).values.tolist()))
        fresh = [at for at, key in enumerate(keys) if key not in self.known]
        if fresh:
            made = pairs[fresh]
            written = self.of("branch")[made]
            weight = torch.where(written.any(dim=1), 1.0, 0.5).double().repeat_interleave(2)
            child = torch.arange(len(made)).repeat_interleave(2)
            labels = self.make(child, made.flatten(), weight, written.all(dim=1), written.any(dim=1))
            self.of("terms")[labels] = made
            self.known.update((keys[at], label) for at, label in zip(fresh, labels.tolist(), strict=True))
        return torch.tensor([self.known[key] for key in keys], dtype=torch.long)

    def _many(self, pairs: Int[Tensor, "pairs two"]) -> Int[Tensor, " pairs"]:
        """Sums of sums, to which every part belongs once."""
        branch = self.of("branch")
        fresh: dict[bytes, tuple[dict[int, float], tuple[int, int]]] = {}
        found: list[int | bytes] = []
        for a, b in pairs.tolist():
            parts = self._parts(a) | self._parts(b)
            whole = next((one for one in (a, b) if self._parts(one) == parts), None)
            if whole is not None:
                found.append(whole)
                continue
            if branch[a] or branch[b]:
                weights = {a: 1.0, b: 1.0}
            else:
                others = [one for one in parts if not branch[one]]
                weights = {one: 1 / len(others) if one in others else 1.0 for one in parts}
            key = repr(sorted(weights.items())).encode()
            found.append(key)
            if key not in self.known:
                fresh[key] = weights, (a, b)
        if fresh:
            edges = [(row, one, value) for row, (made, _) in enumerate(fresh.values()) for one, value in made.items()]
            child, parent = (torch.tensor([edge[at] for edge in edges]) for at in (0, 1))
            weight = torch.tensor([edge[2] for edge in edges], dtype=torch.float64)
            terms = torch.tensor([one for _, one in fresh.values()])
            of_attention = torch.zeros(len(fresh), dtype=torch.long).index_add_(0, child, branch[parent].long())
            labels = self.make(child, parent, weight, branch[terms].all(dim=1), of_attention > 0)
            self.of("terms")[labels] = terms
            self.known.update(zip(fresh, labels.tolist(), strict=True))
        return torch.tensor([self.known[one] if isinstance(one, bytes) else one for one in found], dtype=torch.long)

    def _parts(self, label: int) -> frozenset[int]:
        """What a token is the sum of; itself where it is no sum."""
        if label not in self.parts:
            one, other = self.of("terms")[label].tolist()
            self.parts[label] = self._parts(one) | self._parts(other) if one else frozenset({label})
        return self.parts[label]

    def products(self, pairs: Int[Tensor, "pairs two"]) -> Int[Tensor, " pairs"]:
        """Returns the tokens that are left of products of two: one of them is a gate, which scales and moves nothing.

        A gate is made of several tokens and stands at several (squeeze and excitation), or is what a token was where
        attention has written to it.

        Raises:
            UnsupportedAttentionError: where tokens are multiplied with others in any other way.
        """
        for kept, gate in (pairs.unbind(1), pairs.flip(1).unbind(1)):
            several = gate.unique(return_counts=True)[1]
            if len(kept.unique()) == len(kept) and bool((several > 1).all()):
                return kept
        places = torch.stack([self.of(name)[pairs] for name in ("y", "x")])
        alike = bool((places[..., 0] == places[..., 1]).logical_or(places.isnan().all(dim=-1)).all())
        written = self.of("branch")[pairs]
        if alike and bool((written[:, 0] != written[:, 1]).all()):
            return torch.where(written[:, 0], pairs[:, 0], pairs[:, 1])
        raise UnsupportedAttentionError("tokens are multiplied with other tokens, which has no rule")

    def side_by_side(self, labels: Float[Tensor, "parts ..."]) -> bool:
        """Returns whether the parts are what several attentions wrote at the same places."""
        if not 1 < len(labels) <= MANY or bool((labels <= NONE).any()):
            return False
        y, x, written = (self.of(name)[labels.long().cpu()] for name in ("y", "x", "branch"))
        alike = all(bool(((one == one[:1]) | (one.isnan() & one[:1].isnan())).all()) for one in (y, x))
        return alike and bool(written.all()) and bool((labels != labels[:1]).any())

    def close(self, call: int, written: Float[Tensor, "windows queries"], keys: Float[Tensor, "windows keys"]) -> None:
        """Says which tokens the keys of an attention are, of each of its windows as often as it has heads.

        Raises:
            UnsupportedAttentionError: where heads differ, or keys were made after the queries looked at them.
            PackedBatchError: where a key is of another image than the window.
        """
        step = self.steps[self.of_values[call]]
        assert isinstance(step, Attend)
        first, (windows, queries) = int(step.written[0, 0]), step.written.shape
        window = (written[:, 0].long() - first).div(queries, rounding_mode="floor").clamp(0, windows - 1)
        found = torch.full((windows, keys.shape[1]), -1).index_copy_(0, window, keys.long())
        same = written.shape[1] == queries and torch.equal(step.written[window], written.long())
        if not same or not torch.equal(found[window], keys.long()) or bool((found < 0).any() or (found >= first).any()):
            raise UnsupportedAttentionError(
                f"the scores of attention {call} are made of queries alone, and the values do not say what its keys are"
            )
        image = self.of("image")[found]
        if bool(((image != step.image[:, None]) & (image >= 0)).any()):
            raise PackedBatchError(f"attention {call} reads values of another image of the batch")
        if call not in self.open and not torch.equal(step.keys, found):
            raise UnsupportedAttentionError(f"attention {call} reads values of several sets of tokens")
        self.steps[self.of_values[call]] = replace(step, keys=found)
        self.open.discard(call)

    def merge(self, labels: Float[Tensor, "*shape parents"]) -> Float[Tensor, "*shape"]:
        """Returns one label for each row: the only one in it, or a new token made of all, each as often as it occurs.

        Example:
            >>> tokens = Tokens()
            >>> nowhere = torch.full((2,), torch.nan, dtype=torch.float64)
            >>> tokens.add(nowhere, nowhere, torch.zeros(2, dtype=torch.long), branch=False)
            tensor([1, 2])
            >>> tokens.merge(torch.tensor([[1.0, 1.0], [1.0, 2.0], [0.0, 2.0]]))
            tensor([1., 3., 2.], dtype=torch.float64)
        """
        shape, labels = labels.shape[:-1], once(labels)
        return self._merge(labels).expand(shape)

    def _merge(self, labels: Float[Tensor, "*shape parents"]) -> Float[Tensor, "*shape"]:
        if labels.shape[-1] == 1:
            return labels[..., 0].double()
        device, rows = labels.device, labels.reshape(-1, labels.shape[-1]).double().cpu()
        low = torch.where(rows == NONE, torch.inf, rows).amin(dim=1)
        high = rows.amax(dim=1)
        mixed = (rows == MIXED).any(dim=1)
        single = torch.where(mixed, MIXED, torch.where(low.isinf(), NONE, high))
        several = (low != high) & ~low.isinf() & ~mixed
        if not bool(several.any()):
            return single.view(labels.shape[:-1]).to(device)
        chosen, often = _columns(rows[several])
        unique, inverse = torch.unique(chosen, dim=0, return_inverse=True)
        prefix = b"" if bool((often == often[0]).all()) else often.numpy().tobytes()
        keys = [prefix + row.tobytes() for row in unique.numpy()]
        new = [at for at, key in enumerate(keys) if key not in self.known]
        if new:
            fresh = unique[new]
            child, at = (fresh != NONE).nonzero(as_tuple=True)
            parent, weight = fresh[child, at].long(), often[at]
            weight = weight / torch.zeros(len(new), dtype=torch.float64).index_add_(0, child, weight)[child]
            other = torch.zeros(len(new), dtype=torch.long).index_add_(0, child, (~self.of("branch")[parent]).long())
            made = self.make(child, parent, weight, other == 0)
            self.known.update((keys[at], label) for at, label in zip(new, made.tolist(), strict=True))
        found = torch.tensor([self.known[key] for key in keys], dtype=torch.float64)
        single = single.clone()
        single[several] = found[inverse]
        return single.view(labels.shape[:-1]).to(device)


def _columns(rows: Float[Tensor, "rows parents"]) -> tuple[Float[Tensor, "rows runs"], Float[Tensor, " runs"]]:
    """Rows without repeats along them (the channels of one token), and how long each run was; sorted if all alike."""
    starts = torch.cat([torch.ones(1, dtype=torch.bool), (rows[:, 1:] != rows[:, :-1]).any(dim=0)]).nonzero()[:, 0]
    often = torch.diff(starts, append=torch.tensor([rows.shape[1]])).double()
    runs = rows[:, starts]
    return (runs.sort(dim=1).values if bool((often == often[0]).all()) else runs), often
