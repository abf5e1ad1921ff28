"""What a model of two streams was found to go by: a score for every token of either stream."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ..outputs import LOGITS, Output

__all__ = ["PairExplanation"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PairExplanation:
    """Scores of the tokens of each stream, by its name, and the question that they answer.

    `scores[name]` is (batch, tokens), or (batch, targets, tokens) for nested targets: raw, signed where the method is,
    not normalised. `read` names the streams that the logits are read from; their tokens' own identity is left out.
    `output` is the kind of the model's output, which says what `logits` are.
    """

    scores: Mapping[str, Float[Tensor, "batch tokens"] | Float[Tensor, "batch targets tokens"]]
    logits: Float[Tensor, "batch classes"]
    target: Int[Tensor, " batch"] | Int[Tensor, "batch targets"]
    against: Int[Tensor, " batch"] | Int[Tensor, "batch targets"] | None
    method: str
    objective: str
    signed: bool
    read: tuple[str, ...]
    output: Output = LOGITS
