"""explain_text(): which tokens of a text argue for a class, and which against it, by the methods for pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.gradient_modes import GradientMode
from ..errors import NonFiniteError, NoSignalError, TextError, UnsupportedOperationError, VitrailError
from ..explain import OnError, check_on_error, failed_of, failure_records, skipping
from ..explanation import Explanation
from ..methods import MethodInfo, find_method, list_methods
from ..methods.registry import settle
from ..models.hugging_face import text_model
from ..models.readiness import refuse_training
from ..models.text_model import Encoded, TextModel
from ..objectives import Objective, default_objective, objective_name
from ..provenance import Provenance
from ..targets import Targets, Wanted, pair_up, parse_targets, predicted, refuse_same, refuse_unpredicted
from .explanation import TextExplanation
from .reading import NAMES, Reading, TextContext, reading_of, readout_rows

__all__ = ["explain_text"]

Texts = str | tuple[str, str] | Sequence[str | tuple[str, str]]


@torch.inference_mode(False)
def explain_text(
    module: nn.Module,
    tokenizer: Any,
    texts: Texts,
    target: Wanted = None,
    *,
    against: Wanted = None,
    method: str = "complete",
    objective: Objective | None = None,
    gradient: GradientMode | str = "full",
    centred: bool = False,
    start_layer: int | None = None,
    readout: str | None = None,
    batch_size: int = 16,
    on_error: OnError | str = "raise",
    name: str | None = None,
    logits_from: Callable[[Any], Tensor] | None = None,
    output: str | None = None,
    **options: Any,
) -> TextExplanation:
    """Explains which tokens of a text argue for a class, and which against it.

    The engine and the methods are those of `vitrail.explain`; tokens stand in the place of patches. Texts of a batch
    are padded to one length: padding gets the score zero and changes no other.

    Args:
        module: a text classifier of Hugging Face (BERT, RoBERTa, DistilBERT …), or any that takes `input_ids` and
            `attention_mask`; it is left exactly as it was.
        tokenizer: its tokenizer.
        texts: a text, a pair of texts as a tuple, or a list of them.
        target: class name or index; a list (one per text); a nested list (several per text); None: the predicted class.
        against: the class to compare with, in the same forms; the objective is then the difference of logits.
        method: a name from `vitrail.list_methods()` whose `text` is true: raw, rollout, gae, complete, absolute, gmar….
        objective: as in `vitrail.explain`.
        gradient: as in `vitrail.explain`.
        centred: as in `vitrail.explain`.
        start_layer: as in `vitrail.explain`.
        readout: which tokens the head reads: "first", "last" or "mean"; default: worked out from the model.
        batch_size: texts per pass.
        on_error: "raise" (default) refuses all where one text is empty, gives NaN or has no signal; "skip" returns the
            others, and lists those in `failures` of the result and in its notes.
        name: what results call the model.
        logits_from: finds the logits in an unusual output.
        output: the kind of the model's output, as in `vitrail.wrap`; default: what its config declares or its numbers
            show, else logits.
        **options: the method's own, see `list_methods()`.

    Raises:
        TextError: for an empty text or list.
        UnsupportedOperationError: for a method made for pictures.
        VitrailError: one subtype per cause, see `vitrail.errors`.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film", "one", "two", "three", "four"]
        >>> tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        >>> size = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 8}
        >>> module = BertForSequenceClassification(BertConfig(vocab_size=12, **size)).eval()
        >>> ex = explain_text(module, tokenizer, "a good film", target=1)
        >>> ex.tokens[0], ex.scores.shape
        (('[CLS]', 'a', 'good', 'film', '[SEP]'), torch.Size([1, 5]))
    """
    check_on_error(on_error)
    if on_error == "skip":
        question = {"method": method, "objective": objective, "gradient": gradient, "centred": centred}
        question |= {"start_layer": start_layer, "readout": readout, "batch_size": batch_size, "name": name}
        ask = partial(explain_text, module, tokenizer, **question, logits_from=logits_from, output=output, **options)
        return _without_failures(ask, texts, target, against)
    info = _method(method, options)
    mode = settle(
        method,
        against=against,
        objective=objective,
        gradient=gradient,
        compete=False,
        centred=centred,
        start_layer=start_layer,
        batch_size=batch_size,
        **options,
    ).gradient
    refuse_training(module)
    model = text_model(module, tokenizer, name, logits_from, output)
    asked = _as_list(texts)
    encoded = [_encode(model, text, number) for number, text in enumerate(asked)]
    reading = reading_of(model, readout)
    wanted, other = pair_up(
        parse_targets(model, target, len(asked), reading.classes),
        parse_targets(model, against, len(asked), reading.classes, "against"),
    )
    refuse_same(model, wanted, other)
    if wanted is None and info.class_specific:
        refuse_unpredicted(reading.output, reading.classes)
    objective = objective or default_objective(other is not None, reading.output)
    label = objective_name(objective, against)
    first = info.first_layer(reading.layers) if start_layer is None else start_layer
    columns = 1 if wanted is None else wanted.index.shape[1]
    scores = torch.zeros(len(asked), columns, max(len(text) for text in encoded), dtype=_wide(model))
    logits = torch.zeros(len(asked), reading.classes, dtype=_wide(model))
    replaced = torch.zeros(len(asked), columns, dtype=torch.bool)
    for some in _groups(encoded, reading, model, batch_size):
        batch = model.batch([encoded[number] for number in some])
        run = TextContext(
            model=model,
            images=batch,
            layout=reading.layout(batch.real.shape[1]),
            target=_of(wanted, some),
            against=_of(other, some),
            objective=objective,
            readout=readout_rows(reading.reads, batch.real),
            gradient=mode,
            start_layer=first,
            centred=centred,
            output=reading.output,
        )
        found = info.function(run, **options).detach().cpu()
        scores[some, :, : found.shape[2]] = found.to(scores.dtype).expand(-1, columns, -1)
        logits[some] = run.logits.cpu().to(logits.dtype)
        if run.replaced:
            replaced[some] = torch.stack(run.replaced, dim=1).cpu()
    targets = predicted(logits) if wanted is None else wanted
    refuse_same(model, targets, other, chosen=wanted is None)
    _check(logits, scores, encoded)
    nested = targets.nested
    answer = Explanation(
        scores=scores[:, :, None] if nested else scores,
        logits=logits,
        target=targets.index if nested else targets.index[:, 0],
        against=None if other is None else (other.index if nested else other.index[:, 0]),
        method=info.name,
        objective=label,
        signed=info.signed,
        class_names=model.class_names,
        provenance=Provenance(
            model=model.name,
            sources=(None,) * len(asked),
            gradient=mode,
            uses_gradient=info.uses_gradient,
            centred=centred,
            start_layer=first,
            readout=NAMES[reading.reads],
            options={option: options.get(option, default) for option, default in info.options.items()},
            versions={package: version(package) for package in ("vitrail", "torch", "transformers")},
            class_specific=info.class_specific,
            output=reading.output,
            image_notes=tuple(_notes(text, row, label) for text, row in zip(encoded, replaced.tolist(), strict=True)),
        ),
    )
    return TextExplanation(
        texts=tuple(asked),
        tokens=tuple(text.tokens for text in encoded),
        special=tuple(text.special for text in encoded),
        spans=tuple(text.spans for text in encoded),
        answer=answer,
    )


def _without_failures(
    ask: Callable[..., TextExplanation], texts: Texts, target: Wanted, against: Wanted
) -> TextExplanation:
    """The explanation of those texts that can be explained; the others are its `failures`."""
    asked = _as_list(texts)
    failed: dict[int, VitrailError] = {}
    ex, kept = skipping(ask, asked, failed, target, against)
    if not failed:
        return ex
    return replace(ex, answer=failed_of(ex.answer, kept, failure_records(failed, [None] * len(asked))))


def _method(name: str, options: dict[str, Any]) -> MethodInfo:
    info = find_method(name, options)
    if not info.text:
        able = ", ".join(other.name for other in list_methods() if other.text)
        raise UnsupportedOperationError(f"method {name!r} is made for pictures; for text there are {able}")
    return info


def _as_list(texts: Texts) -> list[str | tuple[str, str]]:
    asked: list[Any] = [texts] if isinstance(texts, str | tuple) else list(texts)
    if not asked:
        raise TextError("the list holds no text")
    for number, text in enumerate(asked):
        pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
        if not (isinstance(text, str) or pair):
            raise TextError(f"text {number} is {text!r}: give a string, or a tuple of two strings for a pair")
    return asked


def _encode(model: TextModel, text: str | tuple[str, str], number: int) -> Encoded:
    try:
        return model.encode(text)
    except TextError as error:
        named = TextError(f"text {number}: {error}")
        named.images, named.cause = (number,), str(error)
        raise named from error


def _groups(encoded: Sequence[Encoded], reading: Reading, model: TextModel, size: int) -> Iterator[list[int]]:
    """Which texts go into the model together: neighbours, or those of one length where padding would be read.

    Models that read the last token look for it each in its own way, and some take padding for it.
    """
    if reading.reads != "last":
        yield from ([*range(start, min(start + size, len(encoded)))] for start in range(0, len(encoded), size))
        return
    config = getattr(model.module, "config", None)
    if config is not None and getattr(config, "pad_token_id", None) is None:
        size = 1  # such a model cannot tell padding from text, and refuses batches
    for length in dict.fromkeys(len(text) for text in encoded):
        alike = [number for number, text in enumerate(encoded) if len(text) == length]
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _of(targets: Targets | None, some: list[int]) -> Targets | None:
    return None if targets is None else targets.rows(some)


def _wide(model: TextModel) -> torch.dtype:
    return torch.float64 if model.dtype == torch.float64 else torch.float32


def _check(logits: Tensor, scores: Tensor, encoded: Sequence[Encoded]) -> None:
    wrong = ~(logits.isfinite().all(dim=1) & scores.isfinite().flatten(1).all(dim=1))
    silent = [
        len(text) > 1 and bool((own.amax(dim=1) == own.amin(dim=1)).any())
        for text, own in ((text, scores[number, :, : len(text)]) for number, text in enumerate(encoded))
    ]
    for found, kind, start, rest in (
        (
            wrong,
            NonFiniteError,
            "the logits or scores of {}",
            "hold NaN or infinity: check the weights; run the model in float32",
        ),
        (
            torch.tensor(silent, dtype=torch.bool),
            NoSignalError,
            "all tokens of {}",
            "have the same score: nothing in it moves the objective (a constant objective, a saturated probability, or "
            "weights that are zero)",
        ),
    ):
        if bool(found.any()):
            positions = found.nonzero()[:, 0].tolist()
            error = kind(f"{start.format(f'text {positions[0]}')} {rest}")
            error.images, error.cause = tuple(positions), f"{start.format('the text')} {rest}"
            raise error


def _notes(text: Encoded, replaced: list[bool], objective: str) -> tuple[str, ...]:
    notes = []
    if text.cut:
        notes.append(f"The text is longer than the model takes: its last {text.cut} tokens were cut off.")
    if any(replaced):
        notes.append(f"A logit is zero or negative, where {objective} means nothing: the logits' difference is shown.")
    return tuple(notes)
