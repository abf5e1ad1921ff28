"""Experiments on a model: what a change of its attention or of the photograph does to its answer."""
