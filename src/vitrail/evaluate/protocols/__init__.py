"""How far a map can be trusted, asked in many ways: one file per family of protocols, and a registry."""

from . import (  # noqa: F401  (each registers itself)
    confidence,
    energy,
    insertion,
    max_sensitivity,
    most_least,
    perturbation,
    pointing,
    randomisation,
    saco,
    segmentation,
    signs,
    stitched,
)
from .registry import PROTOCOLS, ProtocolInfo, find_protocol, list_protocols, register_protocol

__all__ = ["PROTOCOLS", "ProtocolInfo", "find_protocol", "list_protocols", "register_protocol"]
