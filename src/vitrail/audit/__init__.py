"""Audits of data sets: labels that are probably wrong, and class pairs whose training labels probably were."""

from .class_pairs import ClassPair
from .decisions import Decision, Decisions
from .examine import LabelledImage
from .result import Audit, read_audit
from .run import audit

__all__ = ["Audit", "ClassPair", "Decision", "Decisions", "LabelledImage", "audit", "read_audit"]
