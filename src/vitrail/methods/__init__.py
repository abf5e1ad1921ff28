"""How maps are made: one file per family, all in one registry."""

from . import attention_only, gmar, gradient_attention  # noqa: F401  (importing registers)
from .registry import METHODS, MethodInfo, find_method, list_methods, register_method

__all__ = ["METHODS", "MethodInfo", "find_method", "list_methods", "register_method"]
