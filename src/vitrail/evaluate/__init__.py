"""How far an explanation can be trusted, measured: the scores of the bestiary."""

from vitrail.evaluate.bootstrap import Interval, bootstrap
from vitrail.evaluate.planted import PlantedErrors, planted_errors
from vitrail.evaluate.score import MEASURES, Measure, Score, score

__all__ = ["MEASURES", "Interval", "Measure", "PlantedErrors", "Score", "bootstrap", "planted_errors", "score"]
