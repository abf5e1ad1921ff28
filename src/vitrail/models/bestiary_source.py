"""The built-in models, which need no network: `bestiary`, and `bestiary/label-errors` with planted label errors."""

import difflib
from pathlib import Path
from typing import Any

from ..errors import ModelError, UnknownModelError
from .checkpoint import fingerprint
from .preprocess import Preprocess
from .sources import Request, source
from .vision_model import VisionModel

__all__ = ["bestiary_names", "load_bestiary"]

_FILES = {"": "bestiary.safetensors", "label-errors": "label-errors.safetensors"}


def bestiary_names() -> list[str]:
    """The models that come with the package; the empty name is the clean one."""
    return list(_FILES)


@source("bestiary", names=bestiary_names)
def load_bestiary(request: Request) -> VisionModel:
    """A small timm ViT trained on the bestiary's creatures, from the package itself or from `checkpoint`.

    With another `size` the position embeddings are resampled; `pretrained=False` gives random weights.
    """
    # Not before: `import vitrail` shall not wait for the libraries that draw.
    from ..bestiary.model import MEAN, SIZE, STD, build_model, load_weights
    from ..bestiary.species import CLASS_NAMES

    if request.name not in _FILES:
        near = difflib.get_close_matches(request.name, _FILES, n=1)
        hint = f"; did you mean bestiary/{near[0]}?" if near else ""
        raise UnknownModelError(f"no model bestiary/{request.name}; there are bestiary and bestiary/label-errors{hint}")
    options: dict[str, Any] = dict(request.options)
    pretrained = options.pop("pretrained", True)
    if options:
        raise ModelError(f"the bestiary's model has no option {', '.join(options)}; it takes pretrained=False only")
    if request.classes not in (None, len(CLASS_NAMES)):
        raise ModelError(
            f"the bestiary's model has {len(CLASS_NAMES)} classes, and not {request.classes}: leave num_classes= out"
        )
    path = Path(__file__).parents[1] / "bestiary" / "weights" / _FILES[request.name]
    path = path if request.checkpoint is None else Path(request.checkpoint)
    metadata = {"source": "bestiary", "weights": "random"}
    if pretrained or request.checkpoint is not None:
        module: Any = load_weights(path)[0]
        metadata |= {"weights": path.name, "checkpoint_sha256": fingerprint(path)}
    else:
        module = build_model()
    size = request.size or (SIZE, SIZE)
    patch = module.patch_embed.patch_size[0]
    if size[0] % patch or size[1] % patch:
        raise ModelError(f"size {size[0]} x {size[1]} is not a whole number of patches of {patch} x {patch} pixels")
    if size != (SIZE, SIZE):
        module.set_input_size(img_size=size)
    preprocess = Preprocess(size, None, "bicubic", MEAN, STD)
    return VisionModel(module, f"bestiary/{request.name}".rstrip("/"), preprocess, CLASS_NAMES, metadata=metadata)
