"""Attention maps that follow the slope of one logit: what is varied, how it steps, and what was seen on the way.

A map A follows from what is varied, θ, in one of three ways:

    none      A = θ                   neither normalised nor kept positive
    clamp     A = θ, θ ← max(θ, 0)    after each step: no negative attention, rows of any sum
    softmax   A = softmax(θ) by rows  each row stays a distribution; θ starts at log A

and θ steps in one of two, as in `torch.optim`, whose classes load PyTorch's compiler for seconds before the first step:

    sgd       θ ← θ − η g
    adam      m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  θ ← θ − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

Each step makes a new `Course` and leaves the old one as it was. So there is always one that is whole, whatever
interrupts a step, and a course that is written down and read again goes on to the very same numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import Block
from ..attention.relevance_row import RelevanceRow, centre
from ..attention.tap import Tap, eager
from ..attention.visitors import Replacement
from ..errors import NonFiniteError, OptionError, UnsupportedAttentionError
from ..models.layout import TokenLayout
from ..models.vision_model import VisionModel

__all__ = [
    "CONSTRAINTS",
    "OPTIMISERS",
    "Course",
    "Descent",
    "answer",
    "complete_row",
    "find_constraint",
    "find_optimiser",
]

Map: TypeAlias = Float[Tensor, "images heads queries keys"]
# One map (1, heads, queries, keys) a layer; layers that pool the tokens have queries and heads of their own.
Maps: TypeAlias = list[Float[Tensor, "1 _ _ _"]]
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba 2015, and PyTorch's defaults

Tensors: TypeAlias = tuple[Tensor, ...]
# What an optimiser remembers of each parameter, by name: nothing for SGD.
Moments: TypeAlias = dict[str, Tensors]
Optimiser: TypeAlias = Callable[[Tensors, Tensors, Moments, int, float], tuple[Tensors, Moments]]


class Constraint:
    """One way to vary attention; this one leaves it free, A = θ."""

    name = "none"

    def start(self, attention: Map) -> Map:
        """Returns the θ that stands for an attention map."""
        return attention

    def attention(self, parameter: Map) -> Map:
        """Returns the map that θ stands for."""
        return parameter

    def pull_back(self, attention: Map, gradient: Map) -> Map:
        """Returns the gradient with respect to θ, given that with respect to A."""
        del attention
        return gradient

    def project(self, parameter: Map) -> Map:
        """Returns the nearest valid θ."""
        return parameter


class Clamp(Constraint):
    """No negative attention."""

    name = "clamp"

    def project(self, parameter: Map) -> Map:
        return parameter.clamp(min=0)


class Softmax(Constraint):
    """Each row a distribution."""

    name = "softmax"

    def start(self, attention: Map) -> Map:
        """Returns θ = log A, where a zero (a masked key) counts as the smallest positive number.

        Raises `UnsupportedAttentionError` for a row without attention, which no softmax can give.
        """
        empty = int((attention.sum(dim=-1) == 0).sum())
        if empty:
            raise UnsupportedAttentionError(
                f"{empty} of {attention[..., 0].numel()} rows of an attention map are zero (all keys masked), which no "
                'softmax can give: use constraint=None or "clamp"'
            )
        return attention.clamp_min(torch.finfo(attention.dtype).tiny).log()

    def attention(self, parameter: Map) -> Map:
        return parameter.softmax(dim=-1)

    def pull_back(self, attention: Map, gradient: Map) -> Map:
        """Returns A ⊙ (∇A − Σ A ⊙ ∇A), the centred gradient times attention."""
        return attention * centre(attention, gradient)


CONSTRAINTS = {one.name: one for one in (Constraint(), Clamp(), Softmax())}


def find_constraint(name: str | None) -> Constraint:
    """Returns the constraint of that name; None is "none".

    Raises:
        OptionError: for a name that is not one.

    Example:
        >>> softmax = find_constraint("softmax")
        >>> attention = torch.tensor([[[[0.25, 0.75]]]])
        >>> softmax.attention(softmax.start(attention))
        tensor([[[[0.2500, 0.7500]]]])
    """
    known = CONSTRAINTS.get("none" if name is None else name)
    if known is None:
        raise OptionError(f"constraint={name!r} is not known; choose one of {', '.join(CONSTRAINTS)}")
    return known


def sgd(parameters: Tensors, gradients: Tensors, moments: Moments, number: int, rate: float) -> tuple[Tensors, Moments]:
    """Applies a step of plain gradient descent; returns the new parameters, without state."""
    del number
    return tuple(p - rate * g for p, g in zip(parameters, gradients, strict=True)), moments


def adam(
    parameters: Tensors, gradients: Tensors, moments: Moments, number: int, rate: float
) -> tuple[Tensors, Moments]:
    """Applies a step of Adam (Kingma and Ba 2015); returns parameters and moments. `number` counts the steps from 1."""
    zeros = tuple(torch.zeros_like(p) for p in parameters)
    old_first, old_second = moments.get("first", zeros), moments.get("second", zeros)
    first = tuple(torch.lerp(m, g, 1 - BETA_1) for m, g in zip(old_first, gradients, strict=True))
    second = tuple(BETA_2 * v + (1 - BETA_2) * g * g for v, g in zip(old_second, gradients, strict=True))
    step, scale = rate / (1 - BETA_1**number), math.sqrt(1 - BETA_2**number)
    moved = tuple(
        p - step * m / (v.sqrt() / scale + EPSILON) for p, m, v in zip(parameters, first, second, strict=True)
    )
    return moved, {"first": first, "second": second}


OPTIMISERS: dict[str, Optimiser] = {"sgd": sgd, "adam": adam}


def find_optimiser(name: str) -> Optimiser:
    """Returns the optimiser of that name.

    Raises:
        OptionError: for a name that is not one.
    """
    if name not in OPTIMISERS:
        raise OptionError(f"optimiser={name!r} is not known; choose one of {', '.join(OPTIMISERS)}")
    return OPTIMISERS[name]


def answer(
    model: VisionModel, image: Float[Tensor, "1 channels height width"], maps: Maps, classes: Sequence[int]
) -> tuple[Float[Tensor, " classes"], list[Maps]]:
    """Logits when attention l is `maps[l]`, and for each of `classes` the gradient of its logit in every map.

    The maps are leaves: nothing flows to queries and keys, which the model computes to no effect; values and all else
    follow from the running hidden states. One forward pass, one backward pass per class asked for.
    """
    leaves = [attention.detach().requires_grad_() for attention in maps]
    with torch.enable_grad():
        with eager(), Tap(Replacement(dict(enumerate(leaves))), images=1):
            logits = model.logits(image)[0]
        gradients = [
            list(torch.autograd.grad(logits[index], leaves, retain_graph=index != classes[-1], materialize_grads=True))
            for index in classes
        ]
    return logits.detach(), gradients


def complete_row(readout: Float[Tensor, "1 queries"], maps: Maps, gradients: Maps) -> Float[Tensor, "1 tokens"]:
    """Returns the readout's row of Ā^L … Ā^1 less its own, with Ā^l = I + E_h[∇A^l ⊙ A^l] (Cui, Fan, Chen, Eq. 5).

    Example:
        >>> attention = torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]])
        >>> complete_row(torch.tensor([[1.0, 0.0]]), [attention], [torch.ones(1, 1, 2, 2)])
        tensor([[0.2500, 0.7500]])
    """
    row = RelevanceRow("complete")
    row.begin(readout)
    for layer in reversed(range(len(maps))):
        images, heads, queries, keys = maps[layer].shape
        collector = row.collector(layer)
        collector.begin(images, heads, keys, maps[layer])
        collector.add(Block(slice(images), slice(heads), slice(queries)), maps[layer], gradients[layer])
        row.take(layer, collector)
    return row.result()


@dataclass(frozen=True, eq=False)
class Course:
    """How far a descent has come: what is varied (one tensor per layer), what the optimiser remembers, what was seen.

    `logits` are the model's answers before each step taken; `maps` those of all classes at the steps drawn.
    """

    parameters: Tensors
    moments: Moments = field(default_factory=dict)
    taken: int = 0
    logits: tuple[Float[Tensor, " classes"], ...] = ()
    maps: tuple[Float[Tensor, "shown rows cols"], ...] = ()


@dataclass(frozen=True, eq=False)
class Descent:
    """All attention maps of one image as parameters; the logit of `classes[0]` goes down.

    At the steps in `drawn` the complete-gradient maps of all `classes` are made from the maps as they stand.
    """

    model: VisionModel
    image: Float[Tensor, "1 channels height width"]
    layout: TokenLayout
    readout: Float[Tensor, "1 queries"]
    classes: Sequence[int]
    constraint: Constraint
    optimiser: Optimiser
    rate: float
    drawn: frozenset[int]

    def begin(self, maps: Maps) -> Course:
        """Begins the descent with the parameters of these maps."""
        return Course(tuple(self.constraint.start(attention) for attention in maps))

    def attention(self, course: Course) -> Maps:
        """Returns the maps as they stand, one for each layer."""
        return [self.constraint.attention(parameter) for parameter in course.parameters]

    def step(self, course: Course) -> Course:
        """Records the state, then takes one step that lowers the first class's logit.

        Raises:
            NonFiniteError: when the logits are no longer numbers.
        """
        attention = self.attention(course)
        seen, gradients = self._look(course, attention, self.classes[:1])
        slopes = tuple(self.constraint.pull_back(a, g) for a, g in zip(attention, gradients, strict=True))
        moved, moments = self.optimiser(course.parameters, slopes, course.moments, course.taken + 1, self.rate)
        parameters = tuple(self.constraint.project(parameter) for parameter in moved)
        return replace(seen, parameters=parameters, moments=moments, taken=course.taken + 1)

    def finish(self, course: Course) -> Course:
        """Records the state after the last step.

        Raises:
            NonFiniteError: when the logits are no longer numbers.
        """
        return self._look(course, self.attention(course), ())[0]

    def _look(self, course: Course, attention: Maps, needed: Sequence[int]) -> tuple[Course, Maps]:
        """Returns the course with one more answer, and maps where they are drawn; the first class's gradients,
        if asked for.
        """
        drawn = course.taken in self.drawn
        logits, gradients = answer(self.model, self.image, attention, self.classes if drawn else needed)
        if not bool(logits.isfinite().all()):
            raise NonFiniteError(
                f"after {course.taken} steps of size {self.rate:g} the logits hold NaN or infinity: "
                "take smaller steps (lr=) or fewer, and check the image and the weights"
            )
        seen = replace(course, logits=(*course.logits, logits.cpu()))
        if drawn:
            rows = torch.cat([complete_row(self.readout, attention, of_class) for of_class in gradients])
            seen = replace(seen, maps=(*seen.maps, self.layout.as_grid(rows).cpu()))
        return seen, gradients[0] if gradients else []
