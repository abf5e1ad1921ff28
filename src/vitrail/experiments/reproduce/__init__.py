"""The figures of "Transformer Interpretability from Perspective of Attention and Gradient", one module each."""

from . import gradients, methods, pairs, typical
from .registry import EXPERIMENTS, Experiment, Question, find_experiment, register_experiment

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Question",
    "find_experiment",
    "gradients",
    "methods",
    "pairs",
    "register_experiment",
    "typical",
]
