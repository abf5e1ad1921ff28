"""What is asked of a vision-language model: image, prompt and answer as one sequence, and which of its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import ImageError, OptionError, SameClassError, TextError
from ..models.readiness import model_errors
from .loading import VisionLanguageModel

__all__ = ["Against", "Question", "prepare"]

Against = int | str | Sequence[int | str] | None

NO_TOKENIZER = "there is no tokenizer to read words by: give processor=, or token ids"


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
    given = dict(inputs) if inputs is not None else _processed(model, image, prompt or "")
    if isinstance(answer, int) and inputs is None:
        raise OptionError(f"answer={answer} counts tokens at the end of inputs=; with image= give the answer's words")
    seq2seq = bool(getattr(model.module.config, "is_encoder_decoder", False))
    given = {name: _placed(value, model) for name, value in given.items()}
    labels = given.pop("labels", None)
    if not isinstance(given.get("input_ids"), Tensor) or given["input_ids"].dim() != 2:
        raise OptionError("the inputs hold no input_ids (batch, sequence), the tokens of prompt and answer")
    if len(given["input_ids"]) != 1:
        raise OptionError(f"the inputs hold {len(given['input_ids'])} sequences; explain one at a time")
    key = "decoder_input_ids" if seq2seq else "input_ids"
    start = _start(model, given, labels, answer, positions, key, inputs is not None)
    if start is None:
        before = given[key].shape[1] if key in given else 1
        tokens = _answer_tokens(model, given, answer, max_new_tokens, seq2seq, streamer)
        given = _extended(model, given, tokens, seq2seq)
        start = before
    elif not seq2seq:
        given = _lengthened(model, given)
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


# -- the sequence ----------------------------------------------------------------------------------------------------


def _processed(model: VisionLanguageModel, image: Any, prompt: str) -> dict[str, Any]:
    """The processor's mapping of an image and a prompt, in the model's own form of a dialogue."""
    if model.processor is None:
        raise OptionError(
            "image= needs the model's processor: load the model by load_vlm(), give processor=, or give inputs="
        )
    images = [_opened(one) for one in (image if isinstance(image, list | tuple) else [image])]
    if not images:
        raise OptionError("image= is an empty list: give one image or more")
    text = prompt
    marker = str(getattr(model.processor, "image_token", "") or "<image>")
    if marker not in prompt and getattr(model.processor, "chat_template", None):
        parts = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        asked = [{"role": "user", "content": parts}]
        text = model.processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    elif marker not in prompt and _wants_marker(model, marker):
        text = f"{marker * len(images)}\n{prompt}"
    first = getattr(model.tokenizer, "bos_token", None)
    once = {"add_special_tokens": False} if first and text.startswith(first) else {}  # the dialogue's form begins it
    try:
        return dict(model.processor(images=images, text=text, return_tensors="pt", **once))
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImageError(f"the processor cannot prepare {len(images)} image(s) and the prompt: {said}") from error


def _wants_marker(model: VisionLanguageModel, marker: str) -> bool:
    """Whether the prompt must say where the image stands: some processors put it in front by themselves."""
    if type(model.processor).__name__.startswith(("PaliGemma", "Blip2", "InstructBlip", "Florence2")):
        return False
    tokenizer = model.tokenizer
    return tokenizer is not None and marker in tokenizer.get_vocab()


def _opened(image: Any) -> Any:
    from ..images import read_image

    return read_image(image)


def _placed(value: Any, model: VisionLanguageModel) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = (value.clone() if value.is_inference() else value.detach()).to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value


def _start(
    model: VisionLanguageModel,
    given: Mapping[str, Any],
    labels: Tensor | None,
    answer: str | int | None,
    positions: Sequence[int] | int | None,
    key: str,
    whole: bool,
) -> int | None:
    """Where the answer begins in the sequence that is given; None where it is not in it yet."""
    if not whole or isinstance(answer, str):
        return None
    seq2seq = key != "input_ids"
    length = given[key].shape[1] if key in given else 0
    if isinstance(answer, int):
        if not 1 <= answer < length:
            raise OptionError(f"answer={answer} tokens at the end of a sequence of {length}: give 1 to {length - 1}")
        return length - answer
    if seq2seq and length:
        return 1  # behind the decoder's start
    if labels is not None and not seq2seq and bool((labels != -100).any()):
        return int((labels[0] != -100).nonzero()[0])
    mask = given.get("attention_mask")
    if not seq2seq and isinstance(mask, Tensor) and mask.shape[1] < length:
        return mask.shape[1]  # the processor's, of the prompt alone
    if positions is not None and not seq2seq:
        chosen = [positions] if isinstance(positions, int) else list(positions)
        return min((one % length for one in chosen if -length <= one < length), default=length - 1)
    if model.processor is not None:
        return None  # the prompt alone: the model answers
    raise OptionError(
        "nothing tells where the answer begins in input_ids: say by answer= how many tokens at their end are it, or by "
        "positions= which are explained, or give its text by answer="
    )


def _answer_tokens(
    model: VisionLanguageModel,
    given: Mapping[str, Any],
    answer: str | int | None,
    most: int,
    seq2seq: bool,
    streamer: Any,
) -> Int[Tensor, " answer"]:
    """The tokens of the answer that is given, or of the model's own (greedy), which the streamer is given."""
    if isinstance(answer, str):
        return _joined(model, given["input_ids"][0], answer, seq2seq)
    if most < 1:
        raise OptionError(f"max_new_tokens={most} must be 1 or more")
    module: Any = model.module
    beams = (getattr(getattr(module, "generation_config", None), "num_beams", None) or 1) > 1
    words: dict[str, Any] = {} if streamer is None or beams else {"streamer": streamer}  # of several, none is it yet
    with torch.no_grad(), model_errors(model.name or type(module).__name__, module, images=False):
        found = module.generate(
            **given, max_new_tokens=most, do_sample=False, temperature=None, top_p=None, top_k=None, **words
        )
    found = found[0].cpu()
    prompt = given["input_ids"][0].cpu()
    if seq2seq:
        found = found[1:]  # the decoder's start
    elif len(found) >= len(prompt) and torch.equal(found[: len(prompt)], prompt):
        found = found[len(prompt) :]
    ends = torch.isin(found, torch.tensor(sorted(_ends(module))))
    if bool(ends.any()):
        found = found[: int(ends.nonzero()[0]) + 1]
    if streamer is not None and beams:
        for part in (prompt, found):
            streamer.put(part)
        streamer.end()
    if not len(found) or (len(found) == 1 and bool(ends[0])):
        raise TextError("the model answers nothing to this prompt: give another prompt, or the answer by answer=")
    return found


def _ends(module: Any) -> set[int]:
    end = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    return {-1} if end is None else set(end) if isinstance(end, list | tuple) else {int(end)}


def _joined(model: VisionLanguageModel, prompt: Tensor, answer: str, seq2seq: bool) -> Int[Tensor, " answer"]:
    """The tokens of an answer behind a prompt.

    Raises:
        TextError: where they do not read as the answer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise OptionError(NO_TOKENIZER)
    if not answer.strip():
        raise TextError("the answer is empty: give its words, or none at all for the model's own answer")
    tokens = torch.tensor(tokenizer(answer, add_special_tokens=False)["input_ids"], dtype=torch.long)
    before = torch.zeros(0, dtype=torch.long) if seq2seq else prompt.cpu()
    read = [tokenizer.decode(one, skip_special_tokens=False) for one in (before, torch.cat([before, tokens]))]
    if _letters(read[1]) != _letters(read[0] + answer):
        end = read[1][len(read[0]) :] if read[1].startswith(read[0]) else read[1][-40:]
        raise TextError(
            f"the tokenizer cannot join the answer {answer!r} to the prompt: the sequence then reads …{end!r}; give an "
            "answer of words that it knows, or the tokens themselves by inputs="
        )
    return tokens


def _letters(text: str) -> str:
    return "".join(text.split())


def _extended(model: VisionLanguageModel, given: dict[str, Any], tokens: Tensor, seq2seq: bool) -> dict[str, Any]:
    """The inputs with the answer at their end, and all that goes along with the tokens as long as they are."""
    tokens = tokens.to(model.device)[None]
    if not seq2seq:
        return _lengthened(model, {**given, "input_ids": torch.cat([given["input_ids"], tokens], dim=1)})
    start = given.get("decoder_input_ids")
    if start is None:
        config: Any = model.module.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        first = getattr(config, "decoder_start_token_id", None)
        first = getattr(text, "decoder_start_token_id", None) if first is None else first
        if first is None:
            raise OptionError("the model's configuration names no token that its decoder starts with")
        start = torch.full_like(tokens[:, :1], int(first))
    return {**given, "decoder_input_ids": torch.cat([start, tokens], dim=1)}


def _lengthened(model: VisionLanguageModel, given: dict[str, Any]) -> dict[str, Any]:
    """What goes along with the tokens of the prompt alone, extended over the answer as generation would."""
    length = given["input_ids"].shape[1]
    names = ("attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids")
    short = {n: v for n in names if isinstance(v := given.get(n), Tensor) and v.shape[-1] < length}
    module: Any = model.module
    while short and next(iter(short.values())).shape[-1] < length:
        known = {**short, "cache_position": torch.zeros(1, dtype=torch.long)}  # which earlier releases count on
        longer = module._update_model_kwargs_for_generation({}, known)
        short = {name: longer[name] for name in short}
    wrong = [name for name, value in short.items() if value.shape[-1] != length]
    if wrong:
        raise OptionError(f"{', '.join(wrong)} and input_ids are of different lengths")
    return {**given, **short}


# -- the tokens that are explained -----------------------------------------------------------------------------------


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


def takes(module: Any, name: str, *, anyhow: bool = False) -> bool:
    """Returns whether a model's forward names an argument, or (`anyhow`) takes any by name."""
    parameters = signature(module.forward).parameters
    return name in parameters or (anyhow and any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()))
