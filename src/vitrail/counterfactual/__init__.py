"""Counterfactual attention and images: which change of either makes the model name another class."""

from ..counterfactual.rewrite import classify, rewrite, unresized
from ..counterfactual.rewritten import Rewrite
from ..counterfactual.transfer import transfer
from ..counterfactual.transfer_result import Transfer, TransferFileError

__all__ = ["Rewrite", "Transfer", "TransferFileError", "classify", "rewrite", "transfer", "unresized"]
