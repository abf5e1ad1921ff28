"""explain_pair(): models in which two streams of tokens attend to each other, such as LXMERT and DETR."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.record import DenseRecorder
from ..attention.tap import Tap, eager
from ..errors import (
    NoAttentionError,
    NonFiniteError,
    NoSignalError,
    OptionError,
    OutputError,
    UnsupportedAttentionError,
)
from ..models.class_names import class_index, short_name
from ..models.readiness import refuse_replaced, refuse_training
from ..models.vision_model import find_logits, logits_of
from ..objectives import Objective, default_objective, evaluate_objective, objective_name
from ..outputs import Output, check_kind, recognise
from ..targets import Wanted, pair_up, parse_targets, predicted
from .dependence import depends_on
from .propagate import Asked, Maps, propagate
from .result import PairExplanation
from .rules import averaged_heads
from .streams import stream_of_each

__all__ = ["explain_pair"]

RULES = {"gae": "positive", "positive": "positive", "complete": "complete", "absolute": "absolute"}


@torch.inference_mode(False)
def explain_pair(
    module: nn.Module,
    inputs: Mapping[str, Any],
    target: Wanted = None,
    *,
    against: Wanted = None,
    method: str = "gae",
    objective: Objective | None = None,
    streams: Sequence[str] = ("first", "second"),
    order: Sequence[tuple[str, str]] | None = None,
    query: int | None = None,
    logits_from: Callable[[Any], Tensor] | None = None,
    class_names: Sequence[str] | None = None,
    output: str | None = None,
) -> PairExplanation:
    """Asks which tokens of two streams argue for a class, and which against it (Chefer, Gur, Wolf, ICCV 2021).

    Serves co-attention (LXMERT), encoder and decoder (DETR), and one stream that holds both kinds (VisualBERT). The
    streams are distinguished by their numbers of tokens. Attentions computed side by side read the maps from before
    both, and an attention that the logits do not depend on adds nothing. Read are the tokens at which the logits'
    gradient enters the last attention: the class token, or the decoder's query. Where both streams are read, scores are
    summed.

    Args:
        module: any model whose attention PyTorch shows; it is left exactly as it was.
        inputs: the keyword arguments of its forward pass, the batch first in every tensor.
        target: class name or index; a list (one per batch item); a nested list (several per item); None: the predicted.
        against: the class to compare with, in the same forms; the objective is then the difference.
        method: "gae", the paper's, which drops negative gradients; "complete" keeps them and is signed; "absolute".
        objective: as in `vitrail.explain`.
        streams: names of the streams, in the order in which the forward pass first asks them.
        order: where both streams have as many tokens, which stream asks which in every attention: (queries, keys).
        query: the decoder's query whose logits are explained, where there are logits for each (DETR).
        logits_from: finds the logits in an unusual output.
        class_names: index i is class i.
        output: the kind of the model's output, as in `vitrail.wrap`.

    Raises:
        VitrailError: one subtype per cause, see `vitrail.errors`.

    Example:
        >>> from transformers import VisualBertConfig, VisualBertForVisualReasoning
        >>> size = dict(hidden_size=8, num_attention_heads=2, intermediate_size=8, visual_embedding_dim=4)
        >>> module = VisualBertForVisualReasoning(VisualBertConfig(vocab_size=9, num_hidden_layers=2, **size)).eval()
        >>> inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "visual_embeds": torch.randn(1, 4, 4)}
        >>> explain_pair(module, inputs, target=1, streams=["text and image"]).scores["text and image"].shape
        torch.Size([1, 7])
    """
    if method not in RULES:
        raise OptionError(f"method={method!r} has no rules for two streams; there are gae, complete and absolute")
    objective_name(objective, against)
    refuse_training(module)
    refuse_replaced(module, lambda: module(**inputs))
    batch = _batch(inputs)
    with torch.enable_grad():
        numbers, recorder = _forward(module, inputs, batch, query, logits_from, class_names)
        kind = recognise(numbers, check_kind(output), type(module).__name__)
        logits = kind.logits(numbers)
        objective = objective or default_objective(against is not None, kind)
        if not recorder.maps:
            raise NoAttentionError(
                f"{type(module).__name__} ran, but no attention reached PyTorch's functions: use its plain PyTorch form"
            )
        after = depends_on(recorder.maps)
        asks, sizes = stream_of_each([tuple(a.shape) for a in recorder.maps], after, batch, streams, order)
        known = _Classes(class_names)
        wanted, other = pair_up(
            parse_targets(known, target, batch, logits.shape[1]),
            parse_targets(known, against, batch, logits.shape[1], "against"),
        )
        wanted = predicted(logits.detach().cpu(), kind) if wanted is None else wanted
        rows: dict[str, list[Tensor]] = {name: [] for name in sizes}
        read: set[str] = set()
        for number in range(wanted.index.shape[1]):
            gradients = recorder.gradients(
                _scalar(
                    logits,
                    objective,
                    kind,
                    wanted.index[:, number],
                    None if other is None else other.index[:, number],
                ),
                keep=True,
            )
            attentions = [
                Asked(*streams_of, averaged_heads(a.detach(), g, RULES[method]), before)
                for streams_of, a, g, before in zip(asks, recorder.maps, gradients, after, strict=True)
            ]
            readouts = _readouts(gradients, asks, after)
            read.update(readouts)
            _refuse_apart(gradients, asks, readouts)
            for name, row in _read(propagate(attentions, sizes), readouts).items():
                rows[name].append(row)
    scores = {name: torch.stack(found, dim=1).detach().cpu() for name, found in rows.items()}
    _check(logits, scores)
    nested = wanted.nested
    return PairExplanation(
        scores={name: found if nested else found[:, 0] for name, found in scores.items()},
        logits=logits.detach().cpu(),
        target=wanted.index if nested else wanted.index[:, 0],
        against=None if other is None else (other.index if nested else other.index[:, 0]),
        method="gae" if method == "positive" else method,
        objective=objective_name(objective, against),
        output=kind,
        signed=method == "complete",
        read=tuple(name for name in sizes if name in read),
    )


@dataclass(frozen=True)
class _Classes:
    names: Sequence[str] | None

    def class_index(self, name_or_index: Any, count: int | None = None) -> int:
        return class_index(name_or_index, self.names, count)

    def class_name(self, index: int) -> str:
        return short_name(index, self.names)


def _batch(inputs: Mapping[str, Any]) -> int:
    for value in inputs.values():
        if isinstance(value, Tensor) and value.dim() > 0:
            return len(value)
    raise OptionError(f"inputs holds no tensor, only {', '.join(inputs) or 'nothing'}: give the forward's arguments")


def _forward(
    module: nn.Module,
    inputs: Mapping[str, Any],
    batch: int,
    query: int | None,
    logits_from: Callable[[Any], Tensor] | None,
    class_names: Sequence[str] | None,
) -> tuple[Float[Tensor, "batch classes"], DenseRecorder]:
    def pick(output: Any) -> Tensor:
        found = find_logits(output, logits_from)
        if found.dim() != 3:
            return found
        if query is None or not -found.shape[1] <= query < found.shape[1]:
            raise OutputError(
                f"the model gives logits for each of {found.shape[1]} queries: "
                f"say query=, from 0 to {found.shape[1] - 1}" + (f", not {query}" if query is not None else "")
            )
        return found[:, query]

    recorder = DenseRecorder()
    with eager(), Tap(recorder, batch):
        output = module(**inputs)
        names = None if class_names is None else tuple(class_names)
        logits = logits_of(output, batch, type(module).__name__, names, pick, "inputs")
    return logits, recorder


def _scalar(
    logits: Tensor, objective: Objective, kind: Output, target: Tensor, against: Tensor | None
) -> Float[Tensor, ""]:
    on_device = None if against is None else against.to(logits.device)
    values, _ = evaluate_objective(objective, logits, target.to(logits.device), on_device, output=kind)
    return values.sum()


def _readouts(
    gradients: Sequence[Tensor], asks: Sequence[tuple[str, str]], after: Sequence[frozenset[int]]
) -> dict[str, Float[Tensor, "batch tokens"]]:
    """Returns the tokens of each stream at which the logits are read, their weights summing to one.

    They are read at the attentions that no other attention stands above: there only the tokens that the head looks at
    have a gradient.
    """
    matters = [bool(g.any()) for g in gradients]
    below = frozenset[int]().union(*(after[i] for i, matter in enumerate(matters) if matter))
    found = {}
    for index, (queries, _) in enumerate(asks):
        if matters[index] and index not in below:
            looked_at = (gradients[index] != 0).any(dim=3).any(dim=1).to(gradients[index].dtype)
            found[queries] = looked_at / looked_at.sum(dim=1, keepdim=True).clamp(min=1)
    return found


def _refuse_apart(
    gradients: Sequence[Tensor],
    asks: Sequence[tuple[str, str]],
    readouts: Mapping[str, Tensor],
) -> None:
    """Refuses a stream that matters, but that no attention leads to from those that are read."""
    reached = set(readouts)
    while more := {keys for queries, keys in asks if queries in reached} - reached:
        reached |= more
    for name in dict.fromkeys(queries for queries, _ in asks):
        if name not in reached and any(
            bool(g.any()) for g, (queries, _) in zip(gradients, asks, strict=True) if queries == name
        ):
            raise UnsupportedAttentionError(
                f"the logits depend on the stream {name!r}, but no stream that is read ({', '.join(readouts)}) asks "
                "it: its tokens join another stream instead (LLaVA puts image tokens into the text), and the rules for "
                "two streams do not follow them there. Give the joined tokens to the model instead, under the name "
                "inputs_embeds, and its one stream gets a score for every token"
            )


def _read(maps: Mapping[str, Maps], readouts: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "batch tokens"]]:
    rows = {name: stood.added.new_zeros(stood.added.shape[0], stood.added.shape[1]) for name, stood in maps.items()}
    for name, weights in readouts.items():
        rows[name] = rows[name] + torch.einsum("bq,bqk->bk", weights, maps[name].added)
        for other in maps:
            if other != name:
                rows[other] = rows[other] + torch.einsum("bq,bqk->bk", weights, maps[name].cross)
    return rows


def _check(logits: Tensor, scores: Mapping[str, Tensor]) -> None:
    if not bool(logits.isfinite().all()) or not all(bool(found.isfinite().all()) for found in scores.values()):
        raise NonFiniteError(
            "the logits or the scores hold NaN or infinity: check the inputs; run the model in float32"
        )
    largest = torch.stack([found.abs().amax(dim=2) for found in scores.values()]).amax(dim=0)
    nothing = (largest == 0).any(dim=1).nonzero()[:, 0].tolist()
    if nothing:
        raise NoSignalError(
            f"every token of input {nothing[0]} has the score zero: nothing in it moves the objective, "
            'or (with method="gae") nothing in it argues for the class'
        )
