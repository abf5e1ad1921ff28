"""Classifiers of text from Hugging Face, by an id or from a folder, with their tokenizers."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ModelError, UnknownModelError
from .hugging_face import load_whole, names_in_config, output_in_config, quietly, told
from .sources import missing_package
from .text_model import TextModel

__all__ = ["load_text", "text_model"]


def load_text(
    name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Any]:
    """A text classifier and its tokenizer, by an id of Hugging Face's hub or from a folder, for `explain_text`.

    A folder needs no network. The module comes in evaluation mode.

    Raises:
        UnknownModelError: for what is neither a folder with a model nor an id that can be fetched.
        ModelError: for a model that is no text classifier, or whose tokenizer is missing.
        CheckpointMismatchError: for weights without a classifier's.

    Example:
        >>> load_text("no/such-folder/here")
        Traceback (most recent call last):
        ...
        vitrail.errors.UnknownModelError: hf/no/such-folder/here is no folder, nor an id of the form owner/name
    """
    try:
        import transformers
    except ImportError as error:
        raise missing_package("transformers", "hf") from error
    name = name.removeprefix("hf/")
    local = Path(name).is_dir()
    if not local and (not name or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise UnknownModelError(f"hf/{name} is no folder, nor an id of the form owner/name")
    with quietly(), told(name, local, "a text classifier"):
        auto = transformers.AutoModelForSequenceClassification
        loaded = load_whole(auto, name, local_files_only=local, use_safetensors=True)
        loaded.refuse_gaps(f"the checkpoint of {name}", strict=False)
    try:
        with quietly():
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ModelError(f"hf/{name} has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from error
    return loaded.module.to(device, dtype).eval(), tokenizer


def text_model(
    module: nn.Module,
    tokenizer: Any,
    name: str | None = None,
    logits_from: Any = None,
    output: str | None = None,
) -> TextModel:
    """A module and its tokenizer as one model, with the class names and the kind of output of the module's config."""
    config = getattr(module, "config", None)
    origin = getattr(module, "name_or_path", "")
    known = names_in_config(config) if config is not None else None
    if output is None and logits_from is None:
        output = output_in_config(config, module)
    return TextModel(module, tokenizer, name or origin or type(module).__name__, known, logits_from, output)
