"""Experiments on a model's attention: what happens to the answer, and to its reasons, when attention is moved."""

from .transfer import transfer
from .transfer_result import Transfer, TransferFileError

__all__ = ["Transfer", "TransferFileError", "transfer"]
