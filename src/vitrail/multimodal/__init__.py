"""Models in which two streams of tokens attend to each other: text and image, or an encoder and its decoder."""

from .explain import explain_pair
from .result import PairExplanation
from .rules import averaged_heads, cross_attention, rescaled, self_attention

__all__ = ["PairExplanation", "averaged_heads", "cross_attention", "explain_pair", "rescaled", "self_attention"]
