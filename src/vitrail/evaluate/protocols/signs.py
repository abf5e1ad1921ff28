"""Signs in pictures of several classes, as a protocol."""

from itertools import combinations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ...bestiary.measures import correlation, spread
from ...errors import OptionError
from ...metrics.aggregation import Curves, Statistic
from ..case import Case
from ..questions import AttributionQuery, Evaluation, Measured
from ..signs import Signs, sides
from ..signs import signs as shares
from .registry import check_map, register_protocol

__all__ = ["CLASSES", "signs"]

CLASSES = ("all", "target")


def summarise(curves: Curves, *, classes: str = "all", **_: object) -> dict[str, Statistic]:
    """The means over images; the likeness of the classes' maps is better low."""
    found = {name.replace("_", " "): Statistic.mean(curves.single(name), 1) for name in Signs._fields}
    if classes == "all":
        found["likeness of classes"] = Statistic.mean(curves.single("likeness"), -1)
    return found


@register_protocol(
    "signs", summarise=summarise, reference="Vitrail; mosaics: Arias-Duart et al. 2022", needs=("regions",), signed=True
)
def signs(case: Case, scores: Float[Tensor, "rows cols"], *, classes: str = "all") -> Evaluation:
    """How much of the map has the right sign: for the target on its region, against it on those of other classes.

    `classes`: "all" asks for a map of every class that the picture is known to hold, takes the mean over them as the
    picture's one observation, and tells how alike the maps are; "target" takes the target's map alone. A picture where
    fewer than two classes have regions does not count, nor does one without the target's under "target".
    """
    if classes not in CLASSES:
        raise OptionError(f"classes={classes!r} cannot be asked about; choose one of {', '.join(CLASSES)}")
    check_map(case, scores)
    known = [index for index, region in case.regions.items() if bool(region.any())]
    regions = {index: case.regions[index].to(scores.device) for index in known}
    asked = [index for index in known if classes == "all" or index == case.target] if len(known) > 1 else []
    maps = {case.target: scores}
    others = [index for index in asked if index != case.target]
    if others:
        answer = yield AttributionQuery(case.image.expand(len(others), -1, -1, -1), others)
        maps |= {index: found.to(scores) for index, found in zip(others, answer, strict=True)}
    found = [shares(spread(maps[index], case.size), *sides(regions, index)) for index in asked]
    columns = zip(*found, strict=True) if found else [()] * len(Signs._fields)
    measured = [Measured(name, None, _mean(column)) for name, column in zip(Signs._fields, columns, strict=True)]
    if classes == "all":
        pairs = [correlation(maps[one], maps[other]) for one, other in combinations(asked, 2)]
        measured.append(Measured("likeness", None, _mean(pairs)))
    return measured


def _mean(values: "tuple[float, ...] | list[float]") -> float:
    """The mean of what is not NaN, and NaN without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
