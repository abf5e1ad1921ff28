"""Reproduces the figures of "Transformer Interpretability from Perspective of Attention and Gradient"."""

# Importing registers, and the order of the imports is the order of the list.
from . import figures, perturbation  # noqa: F401  # isort: skip
from .registry import EXPERIMENTS, Experiment, Question, figure_number, find_experiment, register_experiment

__all__ = ["EXPERIMENTS", "Experiment", "Question", "figure_number", "find_experiment", "register_experiment"]
