"""Experiments on a model: what a change of its attention or of the photograph does to its answer."""

from .rewrite import classify, rewrite
from .rewritten import Rewrite

__all__ = ["Rewrite", "classify", "rewrite"]
