"""Image, prompt and answer as one sequence, which the model then reads in one forward pass (teacher forcing)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import ImageError, OptionError, TextError
from ..models.readiness import model_errors
from .loading import VisionLanguageModel

__all__ = ["NO_TOKENIZER", "answer_start", "answer_tokens", "extended", "lengthened", "placed", "processed"]

NO_TOKENIZER = "there is no tokenizer to read words by: give processor=, or token ids"


def processed(model: VisionLanguageModel, image: Any, prompt: str) -> dict[str, Any]:
    """Returns the processor's mapping of an image and a prompt, in the model's own form of a dialogue.

    Raises:
        OptionError: where there is no processor or no image.
        ImageError: where the processor cannot prepare them.
    """
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


def placed(value: Any, model: VisionLanguageModel) -> Any:
    """Returns a tensor where the model lives, in its type where it is of floating point; others as they are."""
    if not isinstance(value, Tensor):
        return value
    value = (value.clone() if value.is_inference() else value.detach()).to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value


def answer_start(
    model: VisionLanguageModel,
    given: Mapping[str, Any],
    labels: Tensor | None,
    answer: str | int | None,
    positions: Sequence[int] | int | None,
    key: str,
    whole: bool,
) -> int | None:
    """Returns where the answer begins in the sequence that is given; None where it is not in it yet.

    Raises:
        OptionError: where nothing tells.
    """
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


def answer_tokens(
    model: VisionLanguageModel,
    given: Mapping[str, Any],
    answer: str | int | None,
    most: int,
    seq2seq: bool,
    streamer: Any,
) -> Int[Tensor, " answer"]:
    """Returns the tokens of the answer that is given, or of the model's own (greedy), which the streamer is given.

    Raises:
        TextError: for an answer that cannot be joined to the prompt, or none.
        ForwardError: where the model cannot answer.
    """
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


def extended(model: VisionLanguageModel, given: dict[str, Any], tokens: Tensor, seq2seq: bool) -> dict[str, Any]:
    """Returns the inputs with the answer at their end, and all that goes along with the tokens as long as they are."""
    tokens = tokens.to(model.device)[None]
    if not seq2seq:
        return lengthened(model, {**given, "input_ids": torch.cat([given["input_ids"], tokens], dim=1)})
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


def lengthened(model: VisionLanguageModel, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the inputs with what goes along with the prompt's tokens extended over the answer, as generation does."""
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
