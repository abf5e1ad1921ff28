"""What a model's numbers are: logits, probabilities, scores … The one place that turns them into each other.

    kind                 what the model gives                        logits l here              probability
    logits               one number a class, classes exclude         as given                   softmax(l)
    multilabel           one number a label, labels do not           as given                   sigmoid(l)
    probabilities        rows that sum to 1                          log p less its mean        softmax(l) = p
                         one probability a label (sigmoids)          log p − log(1 − p)         sigmoid(l) = p
    log_probabilities    rows whose exp sums to 1                    log p less its mean        softmax(l) = p
    scores               one or several free numbers                 as given                   none
    embedding            a vector                                    as given                   none

A softmax keeps the logits' differences and loses their mean. Classifiers that were trained on a cross-entropy have
logits with a mean near zero (the ViT-Ti/16's rows have a mean of 10⁻⁴ of their length), so the logits that are found
again are those of the model without its softmax, and so are the maps.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import OptionError, OutputError, OutputKindError

__all__ = [
    "KINDS", "LOGITS", "Kind", "Output", "check_kind", "may_be_probabilities", "percent", "recognise", "verdict_of",
]  # fmt: skip

Kind: TypeAlias = Literal["logits", "multilabel", "probabilities", "log_probabilities", "scores", "embedding"]
Link: TypeAlias = Literal["softmax", "sigmoid"]
KINDS: tuple[str, ...] = get_args(Kind)

# What PyTorch calls the operations that end a model, and those that only lay the numbers out anew.
LAST = {
    "SoftmaxBackward0": "softmax",
    "LogSoftmaxBackward0": "log_softmax",
    "SigmoidBackward0": "sigmoid",
    "LogSigmoidBackward0": "log_sigmoid",
}
LAYOUT = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "ToCopy", "Clone", "Alias", "Slice", "Select")
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # of a sum of ones


@dataclass(frozen=True)
class Output:
    """The kind of a model's output, how its numbers encode logits, and what makes probabilities of these.

    Example:
        >>> Output("multilabel", link="sigmoid").probabilities(torch.tensor([0.0])).item()
        0.5
        >>> Output("probabilities", "probabilities").logits(torch.tensor([[0.8, 0.2]]).double()).round(decimals=4)
        tensor([[ 0.6931, -0.6931]], dtype=torch.float64)
    """

    kind: Kind = "logits"
    encoding: Literal["logits", "probabilities", "log_probabilities"] = "logits"
    link: Link | None = "softmax"

    def logits(self, numbers: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch classes"]:
        """Returns the logits that the model's numbers stand for, float32 at least; the numbers themselves where they
        are such.

        A probability of 0 or 1 counts as the nearest one that the precision can tell from it.
        """
        if self.encoding == "logits":
            return numbers
        wide = numbers if numbers.dtype == torch.float64 else numbers.float()
        smallest = torch.finfo(wide.dtype).tiny
        logs = wide if self.encoding == "log_probabilities" else wide.clamp(min=smallest).log()
        if self.link == "softmax":
            return logs - logs.mean(dim=-1, keepdim=True)
        below_one = 1 - torch.finfo(wide.dtype).eps / 2
        return logs - torch.log1p(-(wide.exp() if self.encoding == "log_probabilities" else wide).clamp(max=below_one))

    def probabilities(self, logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch classes"]:
        """Returns the probability of every class or label, from the logits.

        Raises:
            OutputKindError: for scores and embeddings, which have none.
        """
        return logits.softmax(dim=-1) if self._link("a probability") == "softmax" else logits.sigmoid()

    def log_probabilities(self, logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch classes"]:
        """Returns their natural logarithms, exact also where a probability rounds to 0.

        Raises:
            OutputKindError: for scores and embeddings, which have none.
        """
        link = self._link("a log-probability")
        return logits.log_softmax(dim=-1) if link == "softmax" else torch.nn.functional.logsigmoid(logits)

    def numbers(self, logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch classes"]:
        """Returns the model's own numbers again, from its logits."""
        if self.encoding == "logits":
            return logits
        return self.probabilities(logits) if self.encoding == "probabilities" else self.log_probabilities(logits)

    def wins(self, logits: Float[Tensor, "*batch classes"], asked: Any) -> Bool[Tensor, "*batch"]:
        """Returns whether class `asked` (an index, or one for each row) has the highest logit, or the label more than
        one half.

        Raises:
            OutputKindError: for scores and embeddings, of which none wins.
        """
        if self._link("a winning class") == "softmax":
            return logits.argmax(dim=-1) == asked
        index = torch.as_tensor(asked, device=logits.device).expand(logits.shape[:-1])
        return logits.gather(-1, index[..., None])[..., 0] > 0

    def record(self) -> dict[str, Any]:
        """Returns the entry of a result's metadata: the kind, and what turns `logits` into probabilities."""
        return {"output": self.kind, "probability": self.link}

    def _link(self, wanted: str) -> Link:
        if self.link is None:
            raise self.refusal(wanted)
        return self.link

    def refusal(self, wanted: str) -> OutputKindError:
        """Returns the error for a question that means nothing to scores and embeddings."""
        return OutputKindError(
            f"the model's output is of the kind {self.kind}, for which {wanted} means nothing: ask about the number "
            'itself (objective="logit", or "difference" of two); if the numbers are logits after all, declare '
            'output="logits" (classes exclude each other) or output="multilabel"'
        )


LOGITS = Output()
SOFTMAX, SIGMOID = Output("probabilities", "probabilities"), Output("probabilities", "probabilities", "sigmoid")
LOG_SOFTMAX = Output("log_probabilities", "log_probabilities")
LOG_SIGMOID = Output("log_probabilities", "log_probabilities", "sigmoid")
SCORES = Output("scores", link=None)


def check_kind(kind: str | None) -> str | None:
    """Returns the kind, once it is sure that it is one; None, which stands for what is recognised, as it is.

    Raises:
        OptionError: listing the kinds.
    """
    if kind is not None and kind not in KINDS:
        raise OptionError(f"output={kind!r} is no kind of output; there are {', '.join(KINDS)}")
    return kind


def recognise(
    numbers: Float[Tensor, "images classes"],
    declared: str | None,
    name: str,
    more: Float[Tensor, "others classes"] | None = None,
) -> Output:
    """Returns the output of a model that gave `numbers` to some images, its graph attached, and `more` to others.

    The last operation tells a softmax or sigmoid; else rows that sum to 1 are probabilities, rows whose exponentials do
    log-probabilities, and a single number is a score. All others are logits unless `declared` says otherwise.

    Raises:
        OutputError: where what is declared cannot be true of these numbers.

    Example:
        >>> recognise(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), None, "model").kind
        'probabilities'
        >>> recognise(torch.tensor([[3.0], [7.0]]), None, "model").kind
        'scores'
    """
    last = _last_operation(numbers)
    numbers = numbers.detach() if more is None else torch.cat([numbers.detach(), more.detach().to(numbers)])
    seen = _by_operation(last, numbers) or _by_values(numbers)
    if declared is None:
        return seen or (SCORES if numbers.shape[1] == 1 else LOGITS)
    low, high = numbers.min().item(), numbers.max().item()
    wrong = _contradiction(declared, numbers, seen if last is not None else None)
    if wrong:
        fits = f'output="{seen.kind}"' if seen is not None else "another kind, or none"
        raise OutputError(
            f'{name} is declared to give output="{declared}", but {wrong} (numbers seen: {low:.4g} to {high:.4g}): '
            f"declare {fits}"
        )
    if declared == "probabilities":
        return seen if seen is not None and seen.kind == declared else SIGMOID
    if declared == "log_probabilities":
        return seen if seen is not None and seen.kind == declared else LOG_SIGMOID
    if declared == "multilabel":
        return Output("multilabel", seen.encoding if last is not None and seen is not None else "logits", "sigmoid")
    return LOGITS if declared == "logits" else Output("scores" if declared == "scores" else "embedding", link=None)


def may_be_probabilities(numbers: Float[Tensor, "images classes"]) -> bool:
    """Returns whether these numbers alone could be probabilities or their logarithms, so that more of them have
    to tell.
    """
    return _by_values(numbers, near=max(TOLERANCE.values())) is not None


def _contradiction(declared: str, numbers: Tensor, seen: Output | None) -> str | None:
    """Returns why the numbers cannot be of the declared kind; `seen` is the kind that the last operation suggests."""
    if declared == "probabilities" and not bool(((numbers >= -1e-6) & (numbers <= 1 + 1e-2)).all()):
        return "probabilities lie between 0 and 1"
    if declared == "log_probabilities" and not bool((numbers <= 1e-6).all()):
        return "logarithms of probabilities are not above 0"
    if declared == "logits" and numbers.shape[1] == 1:
        return "there is one number, whose softmax is always 1"
    if declared == "logits" and seen is not None:
        return "it ends in a softmax or a sigmoid, so its numbers are no logits"
    if declared == "multilabel" and seen is not None and seen.link == "softmax":
        return "it ends in a softmax, so its classes exclude each other"
    return None


def _by_operation(last: str | None, numbers: Tensor) -> Output | None:
    """Returns the kind that the last operation suggests, if the numbers agree."""
    if last == "sigmoid":
        return SIGMOID
    if last == "log_sigmoid":
        return LOG_SIGMOID
    return _by_values(numbers, near=max(TOLERANCE.values())) if last is not None else None


def _by_values(numbers: Tensor, near: float | None = None) -> Output | None:
    if numbers.shape[1] < 2 or not bool(numbers.isfinite().all()):
        return None
    wide, near = numbers.double(), near or TOLERANCE.get(numbers.dtype, 1e-5)
    if bool((wide >= 0).all()) and bool(((wide.sum(dim=1) - 1).abs() <= near).all()):
        return SOFTMAX
    if bool((wide <= 0).all()) and bool(((wide.exp().sum(dim=1) - 1).abs() <= near).all()):
        return LOG_SOFTMAX
    return None


def _last_operation(numbers: Tensor) -> str | None:
    """Returns the softmax or sigmoid that the numbers come out of, if the last operation that made them is one."""
    node = numbers.grad_fn
    while node is not None and node.name().removesuffix("0").removesuffix("Backward").rstrip("0123456789") in LAYOUT:
        node = node.next_functions[0][0] if node.next_functions else None
    return None if node is None else LAST.get(node.name())


def percent(probability: float) -> str:
    """Returns a probability in words, never rounded to certainty.

    >>> percent(0.8214), percent(0.9999), percent(0.0001)
    ('82.1 %', '>99.9 %', '<0.1 %')
    """
    if 0 < probability < 0.0005:
        return "<0.1 %"
    if 0.9995 <= probability < 1:
        return ">99.9 %"
    return f"{100 * probability:.1f} %"


def verdict_of(probability: float | None, number: float) -> str:
    """Returns a model's score of a class in words: its probability, or the number itself where it has none.

    >>> verdict_of(0.8214, 1.5), verdict_of(None, 1.5)
    ('82.1 %', '= 1.5')
    """
    return f"= {number:.3g}" if probability is None else percent(probability)
