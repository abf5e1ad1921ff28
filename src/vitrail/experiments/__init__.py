"""Experiments on a model: what a change of its attention or of the photograph does to its answer and its reasons."""

from .rewrite import classify, rewrite, unresized
from .rewritten import Rewrite
from .transfer import transfer
from .transfer_result import Transfer, TransferFileError

__all__ = ["Rewrite", "Transfer", "TransferFileError", "classify", "rewrite", "transfer", "unresized"]
