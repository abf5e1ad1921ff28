"""The row of relevance through a text model: from the position that predicted a word to everything before it.

Position t − 1 predicts the word at t, so the row starts as e_{t−1} and streams back through the decoder, whose blocks
are a chain with the identity as residual. Of an encoder with a decoder it also goes through cross-attention into the
encoder's sequence. What has come to the image tokens goes on through the vision part (`tower`), in the same backward
pass.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.calls import AnyCall, AttentionCall
from ..attention.gradient_modes import GradientMode, libra_rules
from ..attention.record import RecordedLayer, row_times_attention
from ..attention.relevance_row import ELEMENTWISE, Collector, RowUpdate
from ..attention.tap import Tap, Visitor
from ..attention.token_graph import GraphRow
from ..attention.windows import GraphVisitor
from ..errors import NoAttentionError, UnsupportedAttentionError
from .tower import DEEPSTACK, Tower, rollout_through, text_inputs

__all__ = ["Calls", "GenerationRow", "GenerationTap", "Relevance", "TextModel", "TextVisitor", "rollout_rows"]


class Relevance(NamedTuple):
    """What one question's row has come to: at the text model's sequence, at the image tokens, and at their patches."""

    text: Float[Tensor, " sequence"]
    image: Float[Tensor, " image_tokens"]
    patches: Float[Tensor, " patches"] | None


@dataclass(frozen=True, eq=False)
class TextModel:
    """The text model inside a vision-language model: a decoder, or an encoder (`encoder` tokens) with a decoder.

    `entrance` is the part that is given the embeddings of the image, `decoder` the last part in front of the logits.
    Positions count the encoder's sequence first.
    """

    entrance: nn.Module
    decoder: nn.Module
    encoder: int
    length: int
    layers: int | None

    def reads(self, call: int) -> tuple[slice, slice]:
        """Returns the positions that ask in a call of the decoder, and those that are asked."""
        own, others = slice(self.encoder, self.length), slice(0, self.encoder)
        # An encoder's decoder looks at itself and at the encoder in turn.
        return own, others if self.encoder and call % 2 else own


@dataclass(eq=False)
class Calls:
    """The attentions of one forward pass: `first` counts those of the vision part that are looked at, `reads` lists
    for each of the text model the positions that ask and those that are asked.
    """

    first: int = 0
    reads: list[tuple[slice, slice]] = field(default_factory=list)


class TextVisitor:
    """Brings attention to `inner`: the vision part's by its graph (not at all without one), the text model's as it is.

    What it meets goes into `calls`.
    """

    def __init__(self, inner: Visitor, text: TextModel, tower: Tower, calls: Calls) -> None:
        self.inner, self.text, self.tower, self.calls = inner, text, tower, calls
        self.vision = None if tower.graph is None else GraphVisitor(inner, tower.graph)
        self.stage = "vision"
        self._decoder_calls = 0

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        if self.stage == "vision":
            return call.output() if self.vision is None else self.vision.attend(call)
        self._note((call.images, call.queries, call.keys))
        return self.inner.attend(call)

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        if self.stage == "vision":
            return torch.softmax(scores, dim=-1) if self.vision is None else self.vision.normalise(scores)
        self._note((scores.shape[0], scores.shape[-2], scores.shape[-1]))
        return self.inner.normalise(scores)

    def attend_any(self, call: AnyCall) -> Tensor:
        """Computes attention over the last two of any number of dimensions, as some vision towers have it."""
        if self.stage != "vision":
            raise UnsupportedAttentionError(
                f"the text model's attention works on tensors of {call.query.dim()} dimensions, which is no sequence"
            )
        return call.output() if self.vision is None else self.vision.attend_any(call)

    def normalise_any(self, scores: Float[Tensor, "*groups queries keys"]) -> Float[Tensor, "*groups queries keys"]:
        """Computes probabilities in more than four dimensions: of the vision tower, and of nothing that is followed."""
        towers = self.vision if self.stage == "vision" else None
        return torch.softmax(scores, dim=-1) if towers is None else towers.normalise_any(scores)

    def _note(self, size: tuple[int, int, int]) -> None:
        encoding = self.stage == "encoder"
        whole = slice(0, self.text.encoder)
        reads = (whole, whole) if encoding else self.text.reads(self._decoder_calls)
        self._decoder_calls += not encoding
        expected = (1, *(part.stop - part.start for part in reads))
        if size != expected:
            raise UnsupportedAttentionError(
                f"attention {len(self.calls.reads)} of the text model joins {size[1]} queries with {size[2]} keys in "
                f"{size[0]} sequence(s), where {expected[1]} with {expected[2]} in one were expected: its map would "
                "be of something else"
            )
        self.calls.reads.append(reads)

    @contextmanager
    def follows(self, tap: "GenerationTap") -> Iterator[None]:
        """Within the block, the visitor knows from which part of the model each attention is called."""

        def enter(embeddings: Tensor, kwargs: Mapping[str, Any]) -> None:
            del embeddings
            self.stage = "encoder" if self.text.encoder else "decoder"
            self.calls.first = 0 if self.vision is None else self.vision.calls
            if self.tower.tokens is not None and len(kwargs.get(DEEPSTACK) or ()) != len(self.tower.again):
                raise UnsupportedAttentionError(f"the vision tower gives other {DEEPSTACK} than when it was followed")

        thread = threading.get_ident()

        def decode(*_: Any) -> None:
            if threading.get_ident() == thread:
                self.stage = "decoder"

        def leave(*_: Any) -> None:
            if threading.get_ident() == thread:
                tap.end()

        handles = [self.text.decoder.register_forward_hook(leave)]
        if self.text.encoder:
            handles.append(self.text.decoder.register_forward_pre_hook(decode))
        try:
            with text_inputs(self.text.entrance, enter):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self) -> None:
        """Refuses a pass in which the map would lack what some layer does.

        Raises:
            NoAttentionError: where the text model called no attention that can be seen.
            UnsupportedAttentionError: where its layers are of several kinds, or the vision part has changed.
        """
        if not self.calls.reads:
            raise NoAttentionError(
                "no attention of the text model was seen: load the model with attn_implementation='sdpa' (or 'eager'); "
                "the kernels of 'flash_attention_2' and 'flex_attention' are called beneath PyTorch's functions"
            )
        graph = self.tower.graph
        if graph is not None and self.calls.first != graph.calls:
            raise UnsupportedAttentionError(
                f"the vision part calls attention {self.calls.first} times, but called it {graph.calls} times when its "
                "tokens were followed"
            )
        if self.text.layers is not None and len(self.calls.reads) != self.text.layers:
            raise UnsupportedAttentionError(
                f"the text model has {self.text.layers} layers but calls attention {len(self.calls.reads)} times: "
                "the rest mixes tokens without an attention matrix (state spaces, linear attention), which maps lack"
            )


class GenerationTap(Tap):
    """The tap for a vision-language model: packed patches are a token stream of two dimensions, and logits are none.

    After `end`, behind the last block, operations are differentiated as they are: a cap on the logits is no gate.
    """

    def __init__(self, visitor: Visitor, gradient: GradientMode = "full") -> None:
        super().__init__(visitor, 1, gradient)
        self._held = libra_rules(2) if gradient == "libra" else {}
        self._rules |= self._held

    def end(self) -> None:
        """Takes the gradient mode's rules out."""
        for function in self._held:
            self._rules.pop(function, None)


class GenerationRow:
    """Keeps the row up to date while a backward pass runs: through the text model, and on through the vision part.

    Where features of the tower are added to the stream again (Qwen3-VL), each side takes half of what the sum has. The
    identity's own share, which is that of position t − 1, is kept apart and no part of the result.
    """

    def __init__(self, rule: str, tower: Tower, calls: Calls) -> None:
        self.rule = ELEMENTWISE[rule]
        self.only_complete = rule == "complete"
        self.sums_queries = True
        self.tower, self.calls = tower, calls
        self._positions = tower.positions
        self._tower = None if tower.graph is None else GraphRow(tower.graph, rule)
        self._identity: Tensor | None = None

    def begin(self, readout: Float[Tensor, "images sequence"]) -> None:
        """Starts a backward pass from the readout's row."""
        self._positions = self.tower.positions.to(readout.device)
        self._identity, self._added = readout.clone(), torch.zeros_like(readout)
        self._again: dict[int, Tensor] = {}
        self._in_tower = False

    def current_row(self, layer: int) -> Float[Tensor, "windows queries"]:
        if layer < self.calls.first:
            return self._vision().current_row(layer)
        assert self._identity is not None
        asking, _ = self.calls.reads[layer - self.calls.first]
        return (self._identity + self._added)[:, asking]

    def collector(self, layer: int) -> RowUpdate:
        return RowUpdate(self.rule, self.current_row(layer), False)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, RowUpdate)
        self.take_update(layer, collector.result())

    def take_update(self, layer: int, update: Float[Tensor, "windows keys"]) -> None:
        if layer < self.calls.first:
            self._vision().take_update(layer, update)
            return
        number = layer - self.calls.first
        _, asked = self.calls.reads[number]
        self._added[:, asked] += update
        self._split(number - 1)

    def result(self) -> Relevance:
        """Returns what the row has come to; what the identity alone carries is left out."""
        image = self._added[:, self._positions] + sum(self._again.values())
        patches = None if self._tower is None else self._vision().result()[0]
        return Relevance(self._added[0], image[0], patches)

    def _split(self, number: int) -> None:
        """Gives half of the row at the image to what is added behind layer `number`."""
        if self._identity is None or not 0 <= number < len(self.tower.again):
            return
        self._again[number] = self._added[:, self._positions] / 2
        for row in (self._identity, self._added):
            row[:, self._positions] /= 2

    def _vision(self) -> GraphRow:
        """The row in the vision part, which begins when the text model has been passed."""
        assert self._tower is not None
        if not self._in_tower:
            self._in_tower = True
            row = self._added[:, self._positions]
            again = [self._again.get(number, torch.zeros_like(row)) for number in range(len(self.tower.again))]
            self._tower.begin_at(self.tower.seed(row, again))
        return self._tower


def rollout_rows(
    layers: Sequence[RecordedLayer],
    calls: Calls,
    text: TextModel,
    tower: Tower,
    readout: Float[Tensor, "questions sequence"],
    *,
    only_last: bool,
) -> list[Relevance]:
    """Returns what each question's row comes to by attention alone.

    Every residual counts as much as the attention next to it (rollout); or with `only_last` the last layer's attention
    is all that moves (raw), and the image tokens' share of it goes to the patches that they are made of.
    """
    positions = tower.positions.to(readout.device)
    rows = torch.zeros_like(readout) if only_last else readout.clone()
    again = {number: torch.zeros_like(rows[:, positions]) for number in range(len(tower.again))}
    last = len(calls.reads) - (2 if text.encoder else 1)
    for number in reversed(range(last if only_last else 0, len(calls.reads))):
        asking, asked = calls.reads[number]
        source = (readout if only_last else rows)[:, asking]
        moved = torch.cat([row_times_attention(row[None], layers[calls.first + number]) for row in source])
        if not only_last:
            rows[:, asking] /= 2
            moved = moved / 2
        rows[:, asked] += moved.to(rows.dtype)
        if not only_last and number - 1 in again:
            again[number - 1] = rows[:, positions] / 2
            rows[:, positions] /= 2
    image = rows[:, positions] + sum(again.values())
    patches: list[Tensor | None] = [None] * len(rows)
    if tower.graph is not None:
        seeded = tower.seed(rows[:, positions], list(again.values()))
        patches = list(tower.leaves(rollout_through(tower.graph, layers, seeded, attend=not only_last)))
    return [Relevance(*parts) for parts in zip(rows, image, patches, strict=True)]
