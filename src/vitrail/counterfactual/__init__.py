"""Counterfactual attention and images: which change of either makes the model name another class."""

from .rewrite import classify, rewrite, unresized
from .rewrite_result import Rewrite
from .transfer import transfer
from .transfer_result import Transfer, TransferFileError

__all__ = ["Rewrite", "Transfer", "TransferFileError", "classify", "rewrite", "transfer", "unresized"]
