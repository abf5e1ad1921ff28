"""Models of timm: `timm/vit_base_patch16_224`, `timm/vit_base_patch16_224.augreg2_in21k_ft_in1k`,
`timm/hf_hub:owner/name`."""

import difflib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError, UnknownModelError
from .checkpoint import fingerprint
from .fitting import build_and_fill
from .preprocess import Preprocess
from .preprocess_adapters import from_timm
from .sources import Known, Request, defined_in, for_channels_of, outputs_of, refuse_random_head, source
from .vision_model import VisionModel

__all__ = ["load_timm", "recognise_timm", "timm_names"]

# timm's files whose models attend from every patch to every patch; load() takes others too, and explain() tells.
_FILES = ("beit", "deit", "eva", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos")


def timm_names() -> list[str]:
    """timm's models with global attention, without tags and then with them."""
    import timm

    bare = [name for file in _FILES for name in timm.list_models(module=file)]
    tagged = [name for file in _FILES for name in timm.list_models(module=file, pretrained=True)]
    return sorted({*bare, *tagged})


def recognise_timm(module: nn.Module) -> Known | None:
    """Preprocessing and class names that a timm module carries with it; None for other modules."""
    if not defined_in(module, "timm"):
        return None
    return Known(preprocess=_preprocess(module), class_names=_class_names(module), output=_output(module))


@source("timm", names=timm_names, recognise=recognise_timm)
def load_timm(request: Request) -> VisionModel:
    """Build a model by `timm.create_model`; options are timm's own, such as `drop_path_rate` and `dynamic_img_size`.

    A checkpoint decides how many classes there are, unless `num_classes` does.
    """
    import timm

    options = dict(request.options)
    if request.size is not None:
        options["img_size"] = request.size
    pretrained = options.pop("pretrained", request.checkpoint is None) and request.checkpoint is None
    if not request.name.startswith(("hf_hub:", "hf-hub:", "local-dir:")) and not timm.is_model(request.name):
        raise UnknownModelError(_unknown(request.name))

    def build(classes: int | None) -> nn.Module:
        counted = options if classes is None else {**options, "num_classes": classes}
        try:
            return timm.create_model(request.name, pretrained=pretrained, **counted)
        except Exception as error:  # timm raises what its libraries raise: network, hub, arguments
            if "Invalid pretrained tag" in str(error):
                raise UnknownModelError(_unknown(request.name)) from error
            remedy = "; give the weights with checkpoint=" if pretrained else ""
            raise ModelError(f"timm could not build {request.name}: {error}{remedy}") from error

    metadata = {"source": "timm", "timm": timm.__version__}
    if request.checkpoint is not None:
        path = Path(request.checkpoint)
        module = build_and_fill(build, path, repairs=_repairs, classes=request.classes)
        metadata |= {"checkpoint": path.name, "checkpoint_sha256": fingerprint(path)}
    else:
        module = build(request.classes)
        config = getattr(module, "pretrained_cfg", None) or {}
        if pretrained and request.classes != 0:
            refuse_random_head(request, config.get("num_classes"))
        metadata["weights"] = (config.get("tag") or "pretrained") if pretrained else "random"
    return VisionModel(
        module,
        f"timm/{request.name}",
        _preprocess(module),
        _class_names(module),
        metadata=metadata,
        output=_output(module),
    )


def _unknown(name: str) -> str:
    import timm

    base, _, tag = name.partition(".")
    if tag and timm.is_model(base):
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
        return f"timm has no weights {tag!r} of {base}; there are {', '.join(tags) or 'none'}"
    near = difflib.get_close_matches(base, timm.list_models(), n=4)
    return f"timm has no model {name!r}; near it: {', '.join(near) or 'none'} (vitrail models lists them)"


def _repairs(module: nn.Module) -> list[Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]]:
    """timm's own translations of checkpoints for this module: original names, other resolutions, layer scales."""
    filters = [getattr(sys.modules[base.__module__], "checkpoint_filter_fn", None) for base in type(module).__mro__]
    found = next((function for function in filters if function is not None), None)
    if found is None:
        return []
    repairs = [partial(_call, found, module)]
    if "adapt_layer_scale" in signature(found).parameters:
        repairs.append(partial(_call, partial(found, adapt_layer_scale=True), module))  # DeiT-3 as its authors saved it
    return repairs


def _call(filter_function: Callable, module: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return filter_function(tensors, module)


def _preprocess(module: nn.Module) -> Preprocess | None:
    """timm's data config as a `Preprocess`, for the input size that the module was built for."""
    from timm.data.config import resolve_data_config

    config = getattr(module, "pretrained_cfg", None)
    if not config:
        return None  # a module that timm did not configure
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    options = {} if size is None else {"input_size": (3, *size)}
    return for_channels_of(module, from_timm(resolve_data_config(options, pretrained_cfg=dict(config))))


def _output(module: nn.Module) -> str | None:
    """An embedding where there is no classifier (`num_classes=0`); else what its numbers show."""
    classifier: Any = getattr(module, "get_classifier", lambda: None)
    return "embedding" if isinstance(classifier(), nn.Identity) else None


def _class_names(module: nn.Module) -> tuple[str, ...] | None:
    """The names in the module's own config, or those of the ImageNet subset with as many classes."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    # The head tells the truth where a user has replaced it; timm's own `num_classes` and config do not.
    classifier: Any = getattr(module, "get_classifier", lambda: None)
    try:
        count = outputs_of(classifier())
    except AttributeError:  # of a head that timm would look into, and that is another now
        count = None
    config = getattr(module, "pretrained_cfg", None) or {}
    labels, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    if labels and len(labels) == count:
        return tuple(descriptions.get(label, label) for label in labels)
    subset = infer_imagenet_subset({"num_classes": count}) if config and count else None
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None
