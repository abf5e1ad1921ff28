"""Metrics of explanations: faithfulness, localisation, randomisation, robustness and the sign of relevance."""

from . import faithfulness, localisation, randomisation, robustness, signs  # noqa: F401  (each registers its protocols)
from .protocol import PROTOCOLS, ProtocolInfo, find_protocol, list_protocols, register_protocol

__all__ = ["PROTOCOLS", "ProtocolInfo", "find_protocol", "list_protocols", "register_protocol"]
