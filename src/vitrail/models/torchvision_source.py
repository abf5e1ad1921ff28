"""Vision Transformers of torchvision: `torchvision/vit_b_16`; option `weights="IMAGENET1K_SWAG_E2E_V1"`."""

import difflib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ModelError, UnknownModelError
from .checkpoint import fingerprint
from .fitting import build_and_fill, fill
from .preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from .preprocess_adapters import from_torchvision
from .sources import Known, Request, defined_in, for_channels_of, outputs_of, refuse_random_head, source
from .vision_model import VisionModel

__all__ = ["load_torchvision", "recognise_torchvision", "torchvision_names"]


def torchvision_names() -> list[str]:
    """torchvision's Vision Transformers; its other models have no attention between all patches."""
    from torchvision import models

    return models.list_models(include="vit_*")


def recognise_torchvision(module: nn.Module) -> Known | None:
    """What all of torchvision's ViT weights share: normalisation, the crop's share of the picture, ImageNet's names."""
    side = getattr(module, "image_size", None)
    if not defined_in(module, "torchvision") or not isinstance(side, int):
        return None
    preprocess = Preprocess((224, 224), 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD).with_size((side, side))
    return Known(for_channels_of(module, preprocess), _class_names(_weights("vit_b_16", "DEFAULT"), module))


@source("torchvision", names=torchvision_names, recognise=recognise_torchvision)
def load_torchvision(request: Request) -> VisionModel:
    """Build a model by `torchvision.models.get_model`; preprocessing and class names are those of the chosen weights.

    With another `size`, which must be square, the position embeddings are resampled.
    """
    import torchvision

    options = dict(request.options)
    pretrained = options.pop("pretrained", True)
    weights = _weights(request.name, options.pop("weights", "DEFAULT"))
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
        _class_names(weights, module),
        metadata=metadata,
    )


def _weights(name: str, choice: Any) -> Any:
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


def _class_names(weights: Any, module: nn.Module) -> tuple[str, ...] | None:
    """ImageNet's names, where the head gives as many numbers: it tells the truth where a user has replaced it."""
    names = weights.meta.get("categories") or ()
    return tuple(names) if names and outputs_of(_head(module)) == len(names) else None


def _head(module: nn.Module) -> Any:
    return next((part for name in ("heads", "head", "classifier", "fc") if (part := getattr(module, name, None))), None)
