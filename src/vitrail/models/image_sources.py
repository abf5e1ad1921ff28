"""Image classifiers that need no optional library.

- timm: `timm/vit_base_patch16_224`, `timm/vit_base_patch16_224.augreg2_in21k_ft_in1k`, `timm/hf_hub:owner/name`.
- torchvision: `torchvision/vit_b_16`, with option `weights="IMAGENET1K_SWAG_E2E_V1"`.
- The built-in models, which need no network: `bestiary` (a ViT), `bestiary/deletion`, `bestiary/pvt`, `bestiary/swin`,
  and `bestiary/label-errors` with planted label errors.
"""

import difflib
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError, UnknownModelError
from .checkpoint import fingerprint
from .fitting import build_and_fill, fill
from .loading import Recognised, Request, defined_in, for_channels_of, outputs_of, refuse_random_head, source
from .preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from .preprocess_adapters import from_timm, from_torchvision
from .vision_model import VisionModel

__all__ = [
    "bestiary_names",
    "load_bestiary",
    "load_timm",
    "load_torchvision",
    "recognise_timm",
    "recognise_torchvision",
    "timm_names",
    "torchvision_names",
]

# timm's files whose models attend from every patch to every patch; load() takes others too, and explain() tells.
_TIMM_FILES = ("beit", "deit", "eva", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos")


def timm_names() -> list[str]:
    """Returns timm's models with global attention, without tags and then with them."""
    import timm

    bare = [name for file in _TIMM_FILES for name in timm.list_models(module=file)]
    tagged = [name for file in _TIMM_FILES for name in timm.list_models(module=file, pretrained=True)]
    return sorted({*bare, *tagged})


def recognise_timm(module: nn.Module) -> Recognised | None:
    """Returns the preprocessing and class names that a timm module carries; None for other modules."""
    if not defined_in(module, "timm"):
        return None
    return Recognised(
        preprocess=_timm_preprocess(module), class_names=_timm_class_names(module), output=_timm_output(module)
    )


@source("timm", names=timm_names, recognise=recognise_timm)
def load_timm(request: Request) -> VisionModel:
    """Builds a model by `timm.create_model`; options are timm's own, such as `drop_path_rate` and `dynamic_img_size`.

    A checkpoint decides how many classes there are, unless `num_classes` does.
    """
    import timm

    options = dict(request.options)
    if request.size is not None:
        options["img_size"] = request.size
    pretrained = options.pop("pretrained", request.checkpoint is None) and request.checkpoint is None
    if not request.name.startswith(("hf_hub:", "hf-hub:", "local-dir:")) and not timm.is_model(request.name):
        raise UnknownModelError(_unknown_to_timm(request.name))

    def build(classes: int | None) -> nn.Module:
        counted = options if classes is None else {**options, "num_classes": classes}
        try:
            return timm.create_model(request.name, pretrained=pretrained, **counted)
        except Exception as error:  # timm raises what its libraries raise: network, hub, arguments
            if "Invalid pretrained tag" in str(error):
                raise UnknownModelError(_unknown_to_timm(request.name)) from error
            remedy = "; give the weights with checkpoint=" if pretrained else ""
            raise ModelError(f"timm could not build {request.name}: {error}{remedy}") from error

    metadata = {"source": "timm", "timm": timm.__version__}
    if request.checkpoint is not None:
        path = Path(request.checkpoint)
        module = build_and_fill(build, path, repairs=_timm_repairs, classes=request.classes)
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
        _timm_preprocess(module),
        _timm_class_names(module),
        metadata=metadata,
        output=_timm_output(module),
    )


def _unknown_to_timm(name: str) -> str:
    import timm

    base, _, tag = name.partition(".")
    if tag and timm.is_model(base):
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
        return f"timm has no weights {tag!r} of {base}; there are {', '.join(tags) or 'none'}"
    near = difflib.get_close_matches(base, timm.list_models(), n=4)
    return f"timm has no model {name!r}; near it: {', '.join(near) or 'none'} (vitrail models lists them)"


def _timm_repairs(module: nn.Module) -> list[Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]]:
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


def _timm_preprocess(module: nn.Module) -> Preprocess | None:
    """timm's data config as a `Preprocess`, for the input size that the module was built for."""
    from timm.data.config import resolve_data_config

    config = getattr(module, "pretrained_cfg", None)
    if not config:
        return None  # a module that timm did not configure
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    options = {} if size is None else {"input_size": (3, *size)}
    return for_channels_of(module, from_timm(resolve_data_config(options, pretrained_cfg=dict(config))))


def _timm_output(module: nn.Module) -> str | None:
    """An embedding where there is no classifier (`num_classes=0`); else what its numbers show."""
    classifier: Any = getattr(module, "get_classifier", lambda: None)
    return "embedding" if isinstance(classifier(), nn.Identity) else None


def _timm_class_names(module: nn.Module) -> tuple[str, ...] | None:
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


def torchvision_names() -> list[str]:
    """Returns torchvision's Vision Transformers; its other models have no attention between all patches."""
    from torchvision import models

    return models.list_models(include="vit_*")


def recognise_torchvision(module: nn.Module) -> Recognised | None:
    """Returns what all of torchvision's ViT weights share: normalisation, crop ratio, ImageNet's names."""
    side = getattr(module, "image_size", None)
    if not defined_in(module, "torchvision") or not isinstance(side, int):
        return None
    preprocess = Preprocess((224, 224), 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD).with_size((side, side))
    return Recognised(
        for_channels_of(module, preprocess), _categories(_torchvision_weights("vit_b_16", "DEFAULT"), module)
    )


@source("torchvision", names=torchvision_names, recognise=recognise_torchvision)
def load_torchvision(request: Request) -> VisionModel:
    """Builds a model by `torchvision.models.get_model`; preprocessing and class names are those of the chosen weights.

    With another `size`, which must be square, the position embeddings are resampled.
    """
    import torchvision

    options = dict(request.options)
    pretrained = options.pop("pretrained", True)
    weights = _torchvision_weights(request.name, options.pop("weights", "DEFAULT"))
    trained = weights.transforms().crop_size[0]
    side = trained if request.size is None else request.size[0]
    if request.size not in (None, (side, side)):
        raise ModelError(f"torchvision's ViT takes square images only, not {request.size[0]} x {request.size[1]}")
    if request.name.startswith("vit_"):
        options.setdefault("image_size", side)

    def build(classes: int | None) -> nn.Module:
        counted = options if classes is None else {**options, "num_classes": classes}
        try:
            return torchvision.models.get_model(request.name, weights=None, **counted)
        except (TypeError, ValueError) as error:
            raise ModelError(f"torchvision could not build {request.name}: {error}") from error

    def repairs(module: nn.Module) -> list[Any]:
        return [_resample(module)] if request.size is not None and hasattr(module, "seq_length") else []

    metadata = {"source": "torchvision", "torchvision": torchvision.__version__, "weights": weights.name}
    if request.checkpoint is not None:
        path = Path(request.checkpoint)
        module = build_and_fill(build, path, repairs=repairs, classes=request.classes)
        metadata |= {"weights": "checkpoint", "checkpoint": path.name, "checkpoint_sha256": fingerprint(path)}
    elif pretrained:
        module = build(None)
        refuse_random_head(request, outputs_of(_head(module)))
        try:
            tensors = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            reason = f"could not fetch the weights of {request.name}: {error}; give them with checkpoint="
            raise ModelError(reason) from error
        fill(module, tensors, f"{weights.name} of {request.name}", repairs=repairs(module))
    else:
        module = build(request.classes)
        metadata["weights"] = "random"
    preprocess = from_torchvision(weights.transforms())
    return VisionModel(
        module,
        f"torchvision/{request.name}",
        preprocess.with_size(request.size) if request.size is not None else preprocess,
        _categories(weights, module),
        metadata=metadata,
    )


def _torchvision_weights(name: str, choice: Any) -> Any:
    """The entry of torchvision's table of weights, by its name or as the object itself."""
    from torchvision import models

    if name not in models.list_models():
        near = difflib.get_close_matches(name, models.list_models(), n=4)
        raise UnknownModelError(f"torchvision has no model {name!r}; near it: {', '.join(near) or 'none'}")
    table = models.get_model_weights(name)
    if isinstance(choice, table):
        return choice
    named = str(choice).rpartition(".")[2]
    if named not in table.__members__ and named != "DEFAULT":
        raise UnknownModelError(
            f"torchvision has no weights {named!r} of {name}; there are {', '.join(table.__members__)}"
        )
    return table[named]


def _resample(module: Any) -> Any:
    from torchvision.models.vision_transformer import interpolate_embeddings

    return lambda tensors: interpolate_embeddings(module.image_size, module.patch_size, OrderedDict(tensors))


def _categories(weights: Any, module: nn.Module) -> tuple[str, ...] | None:
    """ImageNet's names, where the head gives as many numbers: it tells the truth where a user has replaced it."""
    names = weights.meta.get("categories") or ()
    return tuple(names) if names and outputs_of(_head(module)) == len(names) else None


def _head(module: nn.Module) -> Any:
    return next((part for name in ("heads", "head", "classifier", "fc") if (part := getattr(module, name, None))), None)


_WEIGHTS = {name: f"{name or 'bestiary'}.safetensors" for name in ("", "deletion", "label-errors", "pvt", "swin")}


def bestiary_names() -> list[str]:
    """Returns the models that come with the package; the empty name is the clean one."""
    return list(_WEIGHTS)


@source("bestiary", names=bestiary_names)
def load_bestiary(request: Request) -> VisionModel:
    """Returns a small timm model trained on the bestiary's creatures, from the package itself or from `checkpoint`.

    With another `size` a ViT's position embeddings are resampled, and a Swin's windows stay; `pretrained=False` gives
    random weights.
    """
    # Not before: `import vitrail` shall not wait for the libraries that draw.
    from ..bestiary.model import ARCHITECTURES, MEAN, SIZE, STD, build_model, load_weights
    from ..bestiary.species import CLASS_NAMES

    if request.name not in _WEIGHTS:
        near = difflib.get_close_matches(request.name, _WEIGHTS, n=1)
        hint = f"; did you mean bestiary/{near[0]}?" if near else ""
        known = ", ".join(f"bestiary/{name}".rstrip("/") for name in _WEIGHTS)
        raise UnknownModelError(f"no model bestiary/{request.name}; there are {known}{hint}")
    options: dict[str, Any] = dict(request.options)
    pretrained = options.pop("pretrained", True)
    if options:
        raise ModelError(f"the bestiary's model has no option {', '.join(options)}; it takes pretrained=False only")
    if request.classes not in (None, len(CLASS_NAMES)):
        raise ModelError(
            f"the bestiary's model has {len(CLASS_NAMES)} classes, and not {request.classes}: leave num_classes= out"
        )
    path = Path(__file__).parents[1] / "bestiary" / "weights" / _WEIGHTS[request.name]
    path = path if request.checkpoint is None else Path(request.checkpoint)
    metadata = {"source": "bestiary", "weights": "random"}
    if pretrained or request.checkpoint is not None:
        module: Any = load_weights(path)[0]
        metadata |= {"weights": path.name, "checkpoint_sha256": fingerprint(path)}
    else:
        module = build_model(request.name if request.name in ARCHITECTURES else "vit")
    size = request.size or (SIZE, SIZE)
    patch = module.feature_info[-1]["reduction"]
    if size[0] % patch or size[1] % patch:
        raise ModelError(f"size {size[0]} x {size[1]} is not a whole number of patches of {patch} x {patch} pixels")
    if size != (SIZE, SIZE) and hasattr(module, "set_input_size"):
        # A Swin keeps the windows that it was trained with, and pads to whole ones.
        windows = {} if not hasattr(module, "layers") else {"window_size": module.layers[0].blocks[0].window_size}
        module.set_input_size(img_size=size, **windows)
    preprocess = Preprocess(size, None, "bicubic", MEAN, STD)
    return VisionModel(module, f"bestiary/{request.name}".rstrip("/"), preprocess, CLASS_NAMES, metadata=metadata)
