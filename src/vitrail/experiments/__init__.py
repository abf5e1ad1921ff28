"""Reproduces the paper's figures and its perturbation experiment with stitched images."""
