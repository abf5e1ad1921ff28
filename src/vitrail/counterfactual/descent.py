"""The descent itself: attention maps that follow the slope of one logit, and what was seen on the way.

Each step makes a new `Course` and leaves the old one as it was. So there is always one that is whole, whatever
interrupts a step, and a course that is written down and read again goes on to the very same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import NonFiniteError
from ..models.layout import TokenLayout
from ..models.vision_model import VisionModel
from .attention_parameters import Constraint
from .given_attention import Maps, answer, complete_row
from .optimisers import Moments, Optimiser, Tensors

__all__ = ["Course", "Descent"]


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
        """Before the first step: the parameters that stand for these maps."""
        return Course(tuple(self.constraint.start(attention) for attention in maps))

    def attention(self, course: Course) -> Maps:
        """The maps as they stand, one for each layer."""
        return [self.constraint.attention(parameter) for parameter in course.parameters]

    def step(self, course: Course) -> Course:
        """Look, then go one step down the slope of the first class's logit.

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
        """Look once more, where the last step led.

        Raises:
            NonFiniteError: when the logits are no longer numbers.
        """
        return self._look(course, self.attention(course), ())[0]

    def _look(self, course: Course, attention: Maps, needed: Sequence[int]) -> tuple[Course, Maps]:
        """The course with one more answer, and maps where they are drawn; the first class's gradients, if asked for."""
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
