"""The figures of "Transformer Interpretability from Perspective of Attention and Gradient", one module each."""

# Importing registers, and the order of the imports is the order of the list.
from . import gradients, pairs, stitched, guide, typical, transfer, rewriting  # noqa: F401  # isort: skip
from . import comparison, perturbation  # noqa: F401  # isort: skip
from .registry import EXPERIMENTS, Experiment, Question, find_experiment, register_experiment

__all__ = ["EXPERIMENTS", "Experiment", "Question", "find_experiment", "register_experiment"]
