"""How a question is steered: a guide beside the original, and what to do where one class dominates."""

from .guide import Guide, as_guide

__all__ = ["Guide", "as_guide"]
