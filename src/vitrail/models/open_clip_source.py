"""Visual towers of open_clip: `open_clip/ViT-B-16:laion2b_s34b_b88k`, `open_clip/hf-hub:owner/name`,
`open_clip/local-dir:path`.

Without texts, the tower's "logits" are the numbers of its image embedding; they have no class names. With texts, they
are the scaled similarities of the image with each, and the text tower is read from the checkpoint too.
"""

import difflib
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, UnknownModelError
from .checkpoint import fingerprint, read_checkpoint
from .fitting import fill, unprefixed
from .loading import Recognised, Request, missing_package, source
from .preprocess import Preprocess
from .preprocess_adapters import from_open_clip
from .similarity import ImageTextSimilarity, refuse_texts, refuse_too_long
from .vision_model import VisionModel

__all__ = ["load_open_clip", "open_clip_names", "recognise_open_clip"]

_SCHEMAS = ("hf-hub:", "local-dir:")
_OTHER_TOWERS = ("RN", "convnext", "swin", "MobileCLIP", "ViTamin")  # without attention between all patches


def open_clip_names() -> list[str]:
    """Returns NAME:TAG for all published weights of towers with global attention."""
    try:
        import open_clip
    except ImportError:
        return []
    names = [str(name) for name in open_clip.list_pretrained(as_str=True)]
    return sorted(name for name in names if not name.startswith(_OTHER_TOWERS))


def recognise_open_clip(module: nn.Module) -> Recognised | None:
    """Returns the preprocessing that open_clip's factory writes on its visual towers; None for other modules."""
    config = getattr(module, "preprocess_cfg", None)
    return (
        Recognised(_preprocess(module, None), output="embedding")
        if isinstance(config, Mapping) and "resize_mode" in config
        else None
    )


@source("open_clip", names=open_clip_names, recognise=recognise_open_clip, texts=True)
def load_open_clip(request: Request) -> VisionModel:
    """Builds a model by `open_clip.create_model` and keep its visual tower; options are those of `create_model`."""
    try:
        import open_clip
    except ImportError as error:
        raise missing_package("open_clip", "clip") from error
    if request.classes is not None:
        raise ModelError(f"open_clip/{request.name} has no classes of its own: leave num_classes= out, give texts=")
    options = dict(request.options)
    name, tag = _name_and_tag(request.name)
    tag = options.pop("pretrained", tag)
    if request.checkpoint is not None:
        tag = None
    elif tag is None and not name.startswith(_SCHEMAS):
        raise ModelError(_needs_weights(name))
    if request.size is not None:
        _refuse_scrambled(name, request.size)
        options["force_image_size"] = request.size
    load_weights = request.checkpoint is None and tag is not False
    try:
        with _quiet():
            whole = open_clip.create_model(
                name,
                pretrained=tag or None,
                load_weights=load_weights,
                require_pretrained=load_weights,
                **{"pretrained_text": load_weights, **options},
            )
    except Exception as error:  # open_clip raises what its libraries raise: network, hub, files, arguments
        raise ModelError(f"open_clip could not build {request.name}: {str(error).splitlines()[0]}") from error
    tower: Any = whole.visual
    metadata = {"source": "open_clip", "open_clip": open_clip.__version__}
    if request.checkpoint is not None:
        path = Path(request.checkpoint)
        if request.texts is None:
            fill(tower, read_checkpoint(path), str(path), repairs=[_tower_of(tower)])
        else:
            _fill_whole(whole, path, request.name)
        metadata |= {"checkpoint": path.name, "checkpoint_sha256": fingerprint(path)}
    else:
        metadata["weights"] = (tag or "pretrained") if load_weights else "random"
    module: nn.Module = tower
    output: str | None = "embedding"
    if request.texts is not None:
        module = _with_texts(whole, name, request.texts)
        output = module.output
        metadata["class_names"] = "texts"
    preprocess = _preprocess(tower, request.size)
    return VisionModel(module, f"open_clip/{request.name}", preprocess, request.texts, metadata=metadata, output=output)


@contextmanager
def _quiet() -> Iterator[None]:
    """No word that the weights are random: whoever asked for that knows, and a checkpoint is read afterwards."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _fill_whole(whole: Any, path: Path, name: str) -> None:
    """Both towers from a checkpoint of the whole model, at this model's resolution."""
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    def repair(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        ready = dict(convert_to_custom_text_state_dict(dict(tensors)) if hasattr(whole, "text") else tensors)
        buffers = {key for key in ready if key.endswith("position_ids") and key not in whole.state_dict()}
        ready = {key: tensor for key, tensor in ready.items() if key not in buffers}
        resize_pos_embed(ready, whole)
        resize_text_pos_embed(ready, whole)
        return ready

    tensors = unprefixed(read_checkpoint(path), whole.state_dict(), str(path))
    if "logit_scale" not in tensors:
        raise refuse_texts(f"the checkpoint {path.name} of open_clip/{name}", "holds no text tower and no logit_scale")
    fill(whole, tensors, str(path), repairs=[repair])


@torch.no_grad()
def _with_texts(whole: Any, name: str, texts: tuple[str, ...]) -> ImageTextSimilarity:
    """The image tower and the texts' embeddings, which the text tower gives once, in float64."""
    import open_clip

    if not hasattr(whole, "encode_text"):
        raise refuse_texts(f"open_clip/{name}", "has no text tower")
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # a tokenizer of Hugging Face that is not in the local cache, and what else that raises
        reason = f"the tokenizer of open_clip/{name} is not at hand: {str(error).splitlines()[0]}"
        raise ModelError(
            f"{reason}; models with open_clip's own tokenizer (ViT-B-32 and its like) need none"
        ) from error
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        for text in texts:  # which it would cut without a word, between the two marks of beginning and end
            refuse_too_long(text, len(tokenizer.encode(text)), int(tokenizer.context_length or 77) - 2)
    tokens = tokenizer(list(texts))
    words = int(getattr(whole, "vocab_size", None) or int(tokens.max()) + 1)
    if int(tokens.max()) >= words:
        raise ModelError(f"the tokenizer of open_clip/{name} knows more than the {words} words of its text tower")
    tower, whole.visual = whole.visual, nn.Identity()  # so that it is not turned to float64 with the text tower
    whole.eval().double()
    embeddings = whole.encode_text(tokens)
    scale, bias = whole.logit_scale.exp(), whole.logit_bias
    return ImageTextSimilarity(tower, embeddings, float(scale), 0.0 if bias is None else float(bias))


def _name_and_tag(full: str) -> tuple[str, str | None]:
    import open_clip

    if full.startswith(_SCHEMAS):
        return full, None
    name, _, tag = full.partition(":")
    known = open_clip.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4)
        raise UnknownModelError(f"open_clip has no model {name!r}; near it: {', '.join(near) or 'none'}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise UnknownModelError(f"open_clip has no weights {tag!r} of {name}; there are {', '.join(tags) or 'none'}")
    return name, tag or None


def _needs_weights(name: str) -> str:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    choice = f"open_clip/{name}:TAG with TAG one of {', '.join(tags)}; or " if tags else ""
    return f"open_clip/{name} names no weights: give {choice}checkpoint=, or pretrained=False for random weights"


def _tower_of(module: nn.Module) -> Any:
    """From the tensors of a whole model, or of its tower, to those of this tower at its own resolution."""
    from open_clip.model import resize_pos_embed

    def repair(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        whole = any(name.startswith("visual.") for name in tensors)
        tower = {k if whole else f"visual.{k}": v for k, v in tensors.items() if k.startswith("visual.") or not whole}
        resize_pos_embed(tower, SimpleNamespace(visual=module))
        return {name.removeprefix("visual."): tensor for name, tensor in tower.items()}

    return repair


def _refuse_scrambled(name: str, size: tuple[int, int]) -> None:
    """open_clip resamples position embeddings when their number changes; 7 x 28 patches would get those of 14 x 14."""
    import open_clip

    patch = ((open_clip.get_model_config(name) or {}).get("vision_cfg") or {}).get("patch_size")
    if isinstance(patch, int) and size[0] != size[1]:
        patches = (size[0] // patch) * (size[1] // patch)
        if math.isqrt(patches) ** 2 == patches:
            raise ModelError(
                f"{size[0]} x {size[1]} pixels are {patches} patches, as many as a square image has, and open_clip "
                "would not resample the position embeddings; choose a size with another number of patches"
            )


def _preprocess(module: Any, size: tuple[int, int] | None) -> Preprocess:
    preprocess = from_open_clip(module.preprocess_cfg)
    return preprocess if size is None else preprocess.with_size(size)
