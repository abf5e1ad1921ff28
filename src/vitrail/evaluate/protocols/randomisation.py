"""Cascading randomisation as a protocol: maps of a model that forgets, layer by layer."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ...errors import NoSignalError, OptionError
from ...metrics.aggregation import Curves, Statistic
from ..case import Case
from ..questions import AttributionQuery, Evaluation, Measured
from ..randomisation import Likeness, likeness
from .registry import register_protocol

__all__ = ["STAGES", "randomisation"]

# Doubled, since little changes from one layer to the next; 16 is every layer of a ViT of up to fourteen blocks.
STAGES = (1, 2, 4, 8, 16)


def summarise(curves: Curves, **_: object) -> dict[str, Statistic]:
    """The mean likeness over the stages, and that of the last stage alone, by rank and structure; all better low."""
    found = {}
    for measure, name in (("rank", "rank correlation"), ("absolute_rank", "absolute rank"), ("structure", "SSIM")):
        values = curves.values[measure]
        found[f"{name} after randomisation"] = Statistic.mean(values.mean(axis=1), -1)
        found[f"{name} at the last stage"] = Statistic.mean(values[:, -1], -1)
    return found


@register_protocol("randomisation", summarise=summarise, reference="Adebayo et al. 2018 (NeurIPS)")
def randomisation(case: Case, scores: Float[Tensor, "rows cols"], *, stages: Sequence[int] = STAGES) -> Evaluation:
    """How alike the map stays when the model's last layers are drawn anew; one that explains the model must change.

    `stages`: how many of the last layers, ascending: 1 is the head, 2 the head and the last block, and so on (see
    `vitrail.evaluate.randomised`); more than there are means all. A stage at which nothing moves the class any more has
    no map, and counts as no likeness: 0.
    """
    if not stages or any(stage < 1 for stage in stages) or list(stages) != sorted(set(stages)):
        raise OptionError(f"stages={list(stages)!r} must be numbers of layers from 1 on, ascending")
    measured = []
    for stage in stages:
        try:
            answer = yield AttributionQuery(case.image[None], [case.target], randomised=stage)
            found = likeness(scores, answer[0].to(scores))
        except NoSignalError:
            found = Likeness(0.0, 0.0, 0.0)
        measured += [Measured(name, float(stage), value) for name, value in found._asdict().items()]
    return measured
