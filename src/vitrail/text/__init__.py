"""Classifiers of text, explained token by token by the same engine as pictures."""

from .explain import explain_text
from .explanation import Piece, TextExplanation

__all__ = ["Piece", "TextExplanation", "explain_text"]
