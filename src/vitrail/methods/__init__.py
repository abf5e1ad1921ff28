"""How maps are made: one file per family, all in one registry."""

# Importing registers, and the order of the imports is the order of `list_methods`.
from . import rollout  # noqa: F401  # isort: skip
from . import gmar  # noqa: F401  # isort: skip
from . import lrp, attention_gradcam, attn_lrp  # noqa: F401  # isort: skip
from . import attention_flow  # noqa: F401  # isort: skip
from . import masking  # noqa: F401  # isort: skip
from . import integrated_gradients, dix  # noqa: F401  # isort: skip
from . import cam, grad_eclip, legrad, block_inputs  # noqa: F401  # isort: skip
from . import derived  # noqa: F401  # isort: skip
from .registry import METHODS, MethodInfo, find_method, list_methods, register_method

__all__ = ["METHODS", "MethodInfo", "find_method", "list_methods", "register_method"]
