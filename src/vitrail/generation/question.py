"""What is asked of a vision-language model: which tokens of a sequence of image, prompt and answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import OptionError, SameClassError, TextError
from .loading import VisionLanguageModel
from .sequence import NO_TOKENIZER, answer_start, answer_tokens, extended, lengthened, placed, processed

__all__ = ["Against", "Question", "prepare"]

Against = int | str | Sequence[int | str] | None


@dataclass(frozen=True, eq=False)
class Question:
    """A sequence with its images, and the tokens of it that are explained.

    `ids` are all tokens (of an encoder first, then of its decoder), `answer` the first that belongs to the answer,
    `positions` those that are explained, `against` the token that each is compared with. `encoder` counts the
    encoder's tokens, 0 for a decoder alone. `texts` are the tokens as they read.
    """

    inputs: Mapping[str, Any]
    ids: Int[Tensor, " sequence"]
    answer: int
    encoder: int
    positions: tuple[int, ...]
    against: Int[Tensor, " questions"] | None
    texts: tuple[str, ...]
    prompt: str
    reply: str
    notes: tuple[str, ...] = field(default=())

    def first(self, count: int) -> "Question":
        """Returns the question of the first tokens alone."""
        against = None if self.against is None else self.against[:count]
        return replace(self, positions=self.positions[:count], against=against)

    @property
    def target(self) -> Int[Tensor, " questions"]:
        """Returns the tokens that are explained."""
        return self.ids[list(self.positions)]

    @property
    def predicting(self) -> Int[Tensor, " questions"]:
        """Returns the positions at which they are predicted, within the sequence that the logits follow."""
        return torch.tensor(self.positions) - 1 - self.encoder


def prepare(
    model: VisionLanguageModel,
    image: Any,
    prompt: str | None,
    answer: str | int | None,
    inputs: Mapping[str, Any] | None,
    positions: Sequence[int] | int | None,
    against: Against,
    max_new_tokens: int,
    streamer: Any = None,
) -> Question:
    """Returns the question, its inputs where the model lives.

    Raises:
        OptionError: for arguments that do not go together, and positions outside of the sequence.
        ImageError: for images that cannot be used.
        ForwardError: where the model cannot answer.
        TextError: for an answer or a word that the tokenizer cannot join to the prompt.
        SameClassError: where a token is compared with itself.
    """
    if (image is None) == (inputs is None):
        raise OptionError("give either image= with prompt=, or inputs= as the processor makes them")
    given = dict(inputs) if inputs is not None else processed(model, image, prompt or "")
    if isinstance(answer, int) and inputs is None:
        raise OptionError(f"answer={answer} counts tokens at the end of inputs=; with image= give the answer's words")
    seq2seq = bool(getattr(model.module.config, "is_encoder_decoder", False))
    given = {name: placed(value, model) for name, value in given.items()}
    labels = given.pop("labels", None)
    if not isinstance(given.get("input_ids"), Tensor) or given["input_ids"].dim() != 2:
        raise OptionError("the inputs hold no input_ids (batch, sequence), the tokens of prompt and answer")
    if len(given["input_ids"]) != 1:
        raise OptionError(f"the inputs hold {len(given['input_ids'])} sequences; explain one at a time")
    key = "decoder_input_ids" if seq2seq else "input_ids"
    start = answer_start(model, given, labels, answer, positions, key, inputs is not None)
    if start is None:
        before = given[key].shape[1] if key in given else 1
        tokens = answer_tokens(model, given, answer, max_new_tokens, seq2seq, streamer)
        given = extended(model, given, tokens, seq2seq)
        start = before
    elif not seq2seq:
        given = lengthened(model, given)
    own = given[key][0].cpu()
    encoder = given["input_ids"].shape[1] if seq2seq else 0
    ids = torch.cat([given["input_ids"][0].cpu(), own]) if seq2seq else own
    start += encoder
    notes: list[str] = []
    chosen = _positions(model, positions, ids, start, encoder)
    compared = _against(model, against, ids, chosen, notes)
    texts = _texts(model, ids)
    reply = _decoded(model, ids[start:])
    return Question(
        given, ids, start, encoder, chosen, compared, texts, prompt or _decoded(model, ids[:start]), reply, tuple(notes)
    )


def _positions(
    model: VisionLanguageModel, positions: Sequence[int] | int | None, ids: Tensor, start: int, encoder: int
) -> tuple[int, ...]:
    if positions is None:
        special = _special(model)
        found = tuple(at for at in range(start, len(ids)) if int(ids[at]) not in special)
        if not found:
            raise OptionError("the answer holds no token that is explained: all are special tokens; give positions=")
        return found
    chosen = [positions] if isinstance(positions, int) else [int(one) for one in positions]
    first, end = (encoder + 1, len(ids)) if encoder else (1, len(ids))
    if not chosen:
        raise OptionError("positions= names no token")
    outside = [one for one in chosen if not (first <= one < end or -(end - first) <= one < 0)]
    if outside:
        raise OptionError(
            f"positions={outside} are outside of what the model predicts: of {end} tokens those from "
            f"{first} to {end - 1} (or from -1 back to {first - end}) follow from others"
        )
    return tuple(one % end for one in chosen)


def _special(model: VisionLanguageModel) -> set[int]:
    known: set[int] = set(getattr(model.tokenizer, "all_special_ids", ()) or ())
    config: Any = model.module.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(text, name, None)
        known |= set() if value is None else set(value) if isinstance(value, list | tuple) else {int(value)}
    return known


def _against(
    model: VisionLanguageModel, against: Against, ids: Tensor, positions: Sequence[int], notes: list[str]
) -> Int[Tensor, " questions"] | None:
    if against is None:
        return None
    named = [against] * len(positions) if isinstance(against, int | str) else list(against)
    if len(named) != len(positions):
        raise OptionError(
            f"against= names {len(named)} tokens for {len(positions)} that are explained: give one or each"
        )
    found = [
        _token(model, one, int(ids[at]), notes) if isinstance(one, str) else int(one)
        for one, at in zip(named, positions, strict=True)
    ]
    for one, at in zip(found, positions, strict=True):
        if one == int(ids[at]):
            raise SameClassError(
                f"the token at position {at} ({_decoded(model, ids[at : at + 1])!r}) is held against itself: give "
                "another word by against="
            )
    return torch.tensor(found)


def _token(model: VisionLanguageModel, word: str, beside: int, notes: list[str]) -> int:
    """The token that a word begins with, behind a space where the one it is compared with is behind one."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise OptionError(NO_TOKENIZER)
    spaced = _piece(tokenizer, beside)[:1].isspace()
    forms = [f" {word}", word] if spaced else [word, f" {word}"]
    tried = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
    if not any(tried) or getattr(tokenizer, "unk_token_id", None) in tried[0][:1]:
        raise TextError(f"the tokenizer knows no token for the word {word!r}")
    tokens = min((one for one in tried if one), key=len)
    if len(tokens) > 1:
        first = _piece(tokenizer, tokens[0]).strip()
        notes.append(f"{word!r} is {len(tokens)} tokens: its first, {first!r}, is compared.")
    return int(tokens[0])


def _piece(tokenizer: Any, token: int) -> str:
    """A token as it reads behind another one: its space is kept."""
    mark = tokenizer.convert_ids_to_tokens(token) or ""
    return " " + mark[1:] if mark[:1] in ("▁", "Ġ") else mark


def _texts(model: VisionLanguageModel, ids: Tensor) -> tuple[str, ...]:
    """Each token as it reads behind the one before it."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return tuple(f" [{token}]" for token in ids.tolist())
    known: dict[tuple[int, int], str] = {}
    texts = []
    for before, token in zip([-1, *ids.tolist()[:-1]], ids.tolist(), strict=True):
        if (before, token) not in known:
            pair = [token] if before < 0 else [before, token]
            alone = "" if before < 0 else tokenizer.decode([before])
            read = tokenizer.decode(pair)
            known[before, token] = read[len(alone) :] if read.startswith(alone) else tokenizer.decode([token])
        texts.append(known[before, token])
    return tuple(texts)


def _decoded(model: VisionLanguageModel, ids: Tensor) -> str:
    tokenizer = model.tokenizer
    read = "".join(_texts(model, ids)) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=True)
    return read.strip()
