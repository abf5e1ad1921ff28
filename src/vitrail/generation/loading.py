"""Vision-language models: loaded with their processors, and where in them the text model begins."""

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..models.hugging_face import load_pair, quietly
from .decoder import TextModel

__all__ = ["VisionLanguageModel", "as_vlm", "load_vlm", "text_model_of"]

_NAMES = ("language_model", "text_model")


@dataclass(frozen=True, eq=False)
class VisionLanguageModel:
    """A vision-language model of Hugging Face as it is, its processor (None where there is none), and its name."""

    module: nn.Module
    processor: Any = None
    name: str = ""

    @property
    def tokenizer(self) -> Any:
        """Returns the processor's tokenizer; None without a processor."""
        return getattr(self.processor, "tokenizer", None)

    @property
    def device(self) -> torch.device:
        """Returns where the inputs go."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Returns the precision of the weights."""
        return next(one.dtype for one in self.module.parameters() if one.is_floating_point())


def load_vlm(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> VisionLanguageModel:
    """Returns a vision-language model and its processor: of Hugging Face's hub, from a folder, or the bestiary's.

    A folder, and "bestiary/captioner", need no network. The model comes in evaluation mode with fused attention on.

    Args:
        name: "hf/owner/name", a local folder, or "bestiary/captioner".
        dtype: the precision of the weights; in bfloat16 relevance is still summed in float32.
        device: where the model lives.

    Raises:
        UnknownModelError: for what is neither a folder with a model nor an id that can be fetched.
        ModelError: for a model that does not turn images and text into text, or whose processor is missing.
        CheckpointMismatchError: where weights are missing, which would be random.

    Example:
        >>> load_vlm("no/such-folder/here")
        Traceback (most recent call last):
        ...
        vitrail.errors.UnknownModelError: hf/no/such-folder/here is no folder, nor an id of the form owner/name
    """
    if name == "bestiary/captioner":
        with quietly():
            module, processor = import_module("vitrail.bestiary.captioner").load()
        return VisionLanguageModel(module.to(device, dtype).eval(), processor, name)
    kind = "a model that turns images and text into text"
    module, processor = load_pair(name, "ImageTextToText", kind, "processor", dtype=dtype)
    return VisionLanguageModel(module.to(device).eval(), processor, name.removeprefix("hf/"))


def as_vlm(model: VisionLanguageModel | nn.Module, processor: Any = None) -> VisionLanguageModel:
    """Returns a model of Hugging Face, with its processor where one is given, as `explain_generation` takes it.

    Raises:
        ModelError: for what is no such model.
    """
    if isinstance(model, VisionLanguageModel):
        return model if processor is None else VisionLanguageModel(model.module, processor, model.name)
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ModelError(
            f"{type(model).__name__} is no vision-language model of Hugging Face (a module with a config): give what "
            "load_vlm() returns, or a model such as LlavaForConditionalGeneration"
        )
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return VisionLanguageModel(model, processor, name)


def text_model_of(module: nn.Module, encoder: int, length: int) -> TextModel:
    """Returns where the text model begins and ends in a vision-language model.

    Args:
        module: the whole model.
        encoder: tokens of the encoder's sequence; 0 for a decoder alone.
        length: tokens of the encoder and the decoder together.

    Raises:
        ModelError: where the model is one of text alone, or its text model cannot be found.
    """
    parts = [getattr(owner, name, None) for owner in (getattr(module, "model", None), module) for name in _NAMES]
    found = next((part for part in parts if isinstance(part, nn.Module)), None)
    config: Any = module.config
    if found is None:
        kind = type(module).__name__
        if getattr(config, "vision_config", None) is None:
            raise ModelError(
                f"{kind} is a model of text alone: it has no vision part, so nothing it writes can be read off an "
                "image; vitrail.explain_text explains classifiers of text"
            )
        raise ModelError(f"{kind} keeps its text model under no name that is known ({', '.join(_NAMES)})")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = getattr(text, "num_hidden_layers", None)
    if not encoder:
        return TextModel(found, found, 0, length, layers)
    inner: Any = found
    ends = []
    for get in ("get_encoder", "get_decoder"):
        with suppress(AttributeError):
            ends.append(getattr(inner, get)())
    if len(ends) != 2:
        raise ModelError(f"the encoder and the decoder of {type(found).__name__} cannot be told apart")
    first, second = (
        next((getattr(text, name) for name in names if getattr(text, name, None) is not None), None)
        for names in (("encoder_layers", "num_layers"), ("decoder_layers", "num_decoder_layers"))
    )
    both = None if first is None or second is None else first + 2 * second
    return TextModel(ends[0], ends[1], encoder, length, both)
