"""How far an explanation can be trusted, measured: protocols on data sets, and the scores of the bestiary."""

from vitrail.bestiary.benchmark import MEASURES, Measure, Score, score
from vitrail.bestiary.label_errors import PlantedErrors, planted_errors
from vitrail.datasets import open_data
from vitrail.evaluate.run_reader import EvaluationRun, read_run
from vitrail.evaluate.runner import Outcome, evaluate
from vitrail.metrics import find_protocol, list_protocols, register_protocol
from vitrail.metrics.aggregation import Interval, bootstrap

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
