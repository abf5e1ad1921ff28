"""How far a map can be trusted, asked in many ways: one file per family of protocols, and a registry."""

from . import confidence, insertion, most_least, perturbation, saco, stitched  # noqa: F401  (each registers itself)
from .registry import PROTOCOLS, ProtocolInfo, find_protocol, list_protocols, register_protocol

__all__ = ["PROTOCOLS", "ProtocolInfo", "find_protocol", "list_protocols", "register_protocol"]
