"""How far an explanation can be trusted, measured: protocols on data sets, and the scores of the bestiary."""

from vitrail.evaluate.bootstrap import Interval, bootstrap
from vitrail.evaluate.data import open_data
from vitrail.evaluate.planted import PlantedErrors, planted_errors
from vitrail.evaluate.protocols import find_protocol, list_protocols, register_protocol
from vitrail.evaluate.reading import EvaluationRun, read_run
from vitrail.evaluate.running import Outcome, evaluate
from vitrail.evaluate.score import MEASURES, Measure, Score, score

__all__ = [
    "MEASURES",
    "EvaluationRun",
    "Interval",
    "Measure",
    "Outcome",
    "PlantedErrors",
    "Score",
    "bootstrap",
    "evaluate",
    "find_protocol",
    "list_protocols",
    "open_data",
    "planted_errors",
    "read_run",
    "register_protocol",
    "score",
]
