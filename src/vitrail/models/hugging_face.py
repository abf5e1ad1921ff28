"""Image classifiers of Hugging Face: `hf/google/vit-base-patch16-224`, or a folder: `hf/path/to/folder`.

With texts, models of images and texts: CLIP and SigLIP. Also classifiers of text, with their tokenizers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, UnknownModelError
from .checkpoint import fingerprint, name_some, read_checkpoint
from .fitting import head_classes, mismatch, unprefixed
from .loading import Recognised, Request, defined_in, for_channels_of, missing_package, outputs_of, source
from .preprocess import Preprocess
from .preprocess_adapters import read_processor
from .similarity import ImageTextSimilarity, refuse_texts, refuse_too_long
from .text_model import TextModel
from .vision_model import VisionModel

__all__ = ["load_hugging_face", "load_pair", "load_text", "recognise_hugging_face", "text_model"]


def recognise_hugging_face(module: nn.Module) -> Recognised | None:
    """Class names in a module's config, and the processor where its folder or the local cache has it; no network."""
    config = getattr(module, "config", None)
    if not defined_in(module, "transformers") or config is None:
        return None
    origin = getattr(module, "name_or_path", "")
    preprocess = for_channels_of(module, _preprocess(origin, None, local=True) if origin else None)
    return Recognised(
        preprocess, _class_names(module), _forward_options(module, preprocess), output_in_config(config, module)
    )


@source("hf", recognise=recognise_hugging_face, texts=True)
def load_hugging_face(request: Request) -> VisionModel:
    """Builds a classifier by `AutoModelForImageClassification`; options are those of its `from_pretrained`.

    With a checkpoint, the configuration comes from a folder or the local cache, and the weights from the file alone.
    """
    try:
        import transformers
    except ImportError as error:
        raise missing_package("transformers", "hf") from error
    options = dict(request.options)
    pretrained = options.pop("pretrained", True)
    local = request.checkpoint is not None or Path(request.name).is_dir()
    if not request.name:
        raise UnknownModelError("hf/ is followed by a model's id or a folder, as in hf/google/vit-base-patch16-224")
    metadata = {"source": "hugging_face", "transformers": transformers.__version__}
    auto = transformers.AutoModelForImageClassification if request.texts is None else transformers.AutoModel
    kind = "an image classifier" if request.texts is None else "a model of images and texts"
    with quietly(), told(request.name, local, kind):
        if request.texts is not None:
            config = transformers.AutoConfig.from_pretrained(request.name, local_files_only=local)
            if config.model_type not in ("clip", "siglip"):
                raise refuse_texts(
                    f"hf/{request.name}", f"is a model of type {config.model_type!r}, not CLIP or SigLIP"
                )
        if request.checkpoint is not None:
            path = Path(request.checkpoint)
            config = transformers.AutoConfig.from_pretrained(request.name, local_files_only=True)
            tensors = read_checkpoint(path)
            bare = _on_meta(config, auto)
            wanted = {name: tensor.shape for name, tensor in bare.state_dict().items()}
            tensors = unprefixed(tensors, wanted, str(path))
            found = head_classes(wanted, tensors, getattr(config, "num_labels", 0)) if request.texts is None else None
            if (classes := request.classes if request.classes is not None else found) is not None:
                config.num_labels = classes
            loaded = load_whole(type(bare), None, config=config, state_dict=dict(tensors), **options)
            loaded.refuse_gaps(str(path), strict=True)
            metadata |= {"checkpoint": path.name, "checkpoint_sha256": fingerprint(path)}
        elif pretrained:
            options |= {} if request.classes is None else {"num_labels": request.classes}
            loaded = load_whole(auto, request.name, local_files_only=local, use_safetensors=True, **options)
            loaded.refuse_gaps(f"the checkpoint of {request.name}", strict=False)
            metadata["weights"] = getattr(loaded.module.config, "_commit_hash", None) or "pretrained"
        else:
            options |= {} if request.classes is None else {"num_labels": request.classes}
            config = transformers.AutoConfig.from_pretrained(request.name, local_files_only=local, **options)
            loaded = Loaded(auto.from_config(config))
            metadata["weights"] = "random"
        module = loaded.module
        preprocess = for_channels_of(module, _preprocess(request.name, request.size, local))
        class_names, forward_options = _class_names(module), _forward_options(module, preprocess)
        output = output_in_config(module.config, module)
        if request.texts is not None:
            class_names, metadata["class_names"] = request.texts, "texts"
            module = _with_texts(module.eval(), request.name, request.texts, local)
            output = module.output
    return VisionModel(
        module,
        f"hf/{request.name}",
        preprocess,
        class_names,
        forward_options=forward_options,
        metadata=metadata,
        output=output,
    )


class _ImageTower(nn.Module):
    """The part of a CLIP or SigLIP model that embeds images."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.vision_model = whole.vision_model
        self.visual_projection = getattr(whole, "visual_projection", None) or nn.Identity()

    def forward(self, images: Tensor, **options: Any) -> Tensor:
        return self.visual_projection(self.vision_model(pixel_values=images, **options).pooler_output)


@torch.no_grad()
def _with_texts(whole: Any, name: str, texts: tuple[str, ...], local: bool) -> ImageTextSimilarity:
    """The image tower and the texts' embeddings, which the text tower gives once, in float64."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    limit = whole.config.text_config.max_position_embeddings
    for text in texts:
        refuse_too_long(text, len(tokenizer(text)["input_ids"]), limit)
    # SigLIP was trained on texts filled up to their full length, CLIP reads them up to their end.
    filled = (
        {"padding": "max_length", "max_length": limit} if whole.config.model_type == "siglip" else {"padding": True}
    )
    tokens = tokenizer(list(texts), return_tensors="pt", **filled)
    tower = _ImageTower(whole)
    dtype = next(tower.parameters()).dtype
    whole.double()
    found = whole.get_text_features(**tokens)
    embeddings = found if isinstance(found, Tensor) else found.pooler_output
    bias = getattr(whole, "logit_bias", None)
    scale = float(whole.logit_scale.exp())
    return ImageTextSimilarity(tower.to(dtype), embeddings, scale, 0.0 if bias is None else float(bias))


@dataclass(frozen=True)
class Loaded:
    """A module, and what transformers reports instead of failing: it fills gaps with random numbers."""

    module: Any
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, torch.Size, torch.Size], ...] = ()

    def refuse_gaps(self, label: str, strict: bool) -> None:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} tensors are missing ({name_some(self.missing)}) and would be random")
        unexpected = [name for name in self.unexpected if "pooler" not in name]  # which classifiers do not read
        if unexpected and (strict or parts):
            parts.append(f"{len(unexpected)} are unexpected ({name_some(unexpected)})")
        if self.misshapen:
            shapes = [f"{name} is {tuple(a)} in the file and {tuple(b)} in the model" for name, a, b in self.misshapen]
            parts.append(f"{len(shapes)} have another shape ({name_some(shapes)})")
        if parts:
            raise mismatch(label, ", ".join(parts))


def load_whole(model_class: Any, name: str | None, **options: Any) -> Loaded:
    """Returns a module by `from_pretrained`, with what was missing from its weights."""
    module, report = model_class.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    misshapen = tuple(sorted(report["mismatched_keys"]))
    return Loaded(module, tuple(sorted(report["missing_keys"])), tuple(sorted(report["unexpected_keys"])), misshapen)


def _on_meta(config: Any, auto: Any) -> Any:
    """A model of the configuration without weights: the automatic class tells its choice only by building one."""
    with torch.device("meta"):
        return auto.from_config(config)


@contextmanager
def told(name: str, local: bool, kind: str = "an image classifier") -> Iterator[None]:
    """Turns transformers' errors into ours: OSError where nothing is found, ValueError for another kind of model."""
    try:
        yield
    except OSError as error:
        where = "is not a folder with a model, nor in the local cache" if local else "could not be fetched"
        raise UnknownModelError(f"hf/{name} {where}: {_first_line(error)}") from error
    except (ValueError, KeyError, ImportError, TypeError, RuntimeError) as error:
        raise ModelError(f"hf/{name} cannot be loaded as {kind}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def quietly() -> Iterator[None]:
    """Hides progress bars and the table of gaps, which `refuse_gaps` reports; restores both afterwards."""
    from transformers.utils import logging as library

    bars = library.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("transformers", "transformers.modeling_utils")]
    levels = [logger.level for logger in loggers]
    library.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            library.enable_progress_bar()


def _preprocess(name: str, size: tuple[int, int] | None, local: bool) -> Preprocess | None:
    from transformers import AutoImageProcessor

    try:
        preprocess = read_processor(AutoImageProcessor.from_pretrained(name, local_files_only=local))
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError, ModelError):
        return None  # a model without processor, or one that prepares other inputs than pictures
    return preprocess.with_size(size) if preprocess is not None and size is not None else preprocess


def output_in_config(config: Any, module: nn.Module) -> str | None:
    """Returns the kind of output that the config declares for training; "embedding" for a bare encoder.

    Example:
        >>> from types import SimpleNamespace
        >>> output_in_config(SimpleNamespace(problem_type="multi_label_classification"), nn.Identity())
        'multilabel'
    """
    if isinstance(getattr(module, "classifier", None), nn.Identity):
        return "embedding"
    problem = getattr(config, "problem_type", None)
    return {"regression": "scores", "multi_label_classification": "multilabel"}.get(problem or "")


def names_in_config(config: Any) -> tuple[str, ...] | None:
    """Returns the config's names; not the LABEL_0, LABEL_1 … that transformers makes up."""
    labels = getattr(config, "id2label", None) or {}
    names = [str(labels.get(index, labels.get(str(index), ""))) for index in range(len(labels))]
    if not names or not all(names) or all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None
    return tuple(names)


def _class_names(module: nn.Module) -> tuple[str, ...] | None:
    """The config's names, where the head gives as many numbers: it tells the truth where a user has replaced it."""
    names = names_in_config(getattr(module, "config", None))
    head = next(
        (part for name in ("classifier", "cls_classifier", "head") if (part := getattr(module, name, None))), None
    )
    return names if head is None or names is None or outputs_of(head) == len(names) else None


def _forward_options(module: nn.Module, preprocess: Preprocess | None) -> dict[str, Any]:
    """Ask for resampled position embeddings where the pictures differ from the size that the model was built for."""
    built = getattr(getattr(module.config, "vision_config", module.config), "image_size", None)
    if built is None or preprocess is None or "interpolate_pos_encoding" not in signature(module.forward).parameters:
        return {}
    built = (built, built) if isinstance(built, int) else tuple(built)
    return {"interpolate_pos_encoding": True} if preprocess.size != built else {}


def load_text(
    name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Any]:
    """Returns a text classifier and its tokenizer, by an id of Hugging Face's hub or from a folder, for `explain_text`.

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
    module, tokenizer = load_pair(name, "SequenceClassification", "a text classifier", "tokenizer")
    return module.to(device, dtype).eval(), tokenizer


def load_pair(name: str, task: str, kind: str, reader: str, **options: Any) -> tuple[nn.Module, Any]:
    """Returns a model by Hugging Face's auto class for a task, and its "tokenizer" or "processor"."""
    try:
        import transformers
    except ImportError as error:
        raise missing_package("transformers", "hf") from error
    name = name.removeprefix("hf/")
    local = Path(name).is_dir()
    if not local and (not name or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise UnknownModelError(f"hf/{name} is no folder, nor an id of the form owner/name")
    with quietly(), told(name, local, kind):
        auto = getattr(transformers, f"AutoModelFor{task}")
        loaded = load_whole(auto, name, local_files_only=local, use_safetensors=True, **options)
        loaded.refuse_gaps(f"the checkpoint of {name}", strict=False)
    try:
        with quietly():
            read = getattr(transformers, f"Auto{reader.title()}").from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ModelError(f"hf/{name} has no {reader} that can be loaded: {str(error).splitlines()[0]}") from error
    return loaded.module, read


def text_model(
    module: nn.Module,
    tokenizer: Any,
    name: str | None = None,
    logits_from: Any = None,
    output: str | None = None,
) -> TextModel:
    """Returns a module and its tokenizer as one model, with the class names and the kind of output of the module's
    config.
    """
    config = getattr(module, "config", None)
    origin = getattr(module, "name_or_path", "")
    known = names_in_config(config) if config is not None else None
    if output is None and logits_from is None:
        output = output_in_config(config, module)
    return TextModel(module, tokenizer, name or origin or type(module).__name__, known, logits_from, output)
