"""The normalisation that stands before the last attention, found by watching and not by name."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ATTENTION", "NORMS", "NormWatcher"]

NORMS = {F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm}
ATTENTION = {F.scaled_dot_product_attention, F.multi_head_attention_forward}


class NormWatcher(TorchFunctionMode):
    """Keeps the output of the last token norm before the most recent attention.

    Enter it inside the tap's block: what it does not keep goes on to the tap. Norms of queries and keys have four
    dimensions and are skipped. `latest` is the last token norm so far, and `first` the first one since `begin`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest: Tensor | None = None
        self.first: Tensor | None = None
        self._begun = False
        self.before_attention: Tensor | None = None

    def begin(self) -> None:
        """The next norm is the first one: a block begins."""
        self.first, self._begun = None, True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in ATTENTION:
            self.before_attention = self.latest
        result = func(*args, **(kwargs or {}))
        if func in NORMS and result.dim() == 3:
            self.latest = result
            if self._begun and self.first is None:
                self.first = result
        return result
