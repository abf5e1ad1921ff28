"""The report of one run or several: a page, figures and tables."""

from .leaderboard import Board, build_board
from .writing import Written, write_report

__all__ = ["Board", "Written", "build_board", "write_report"]
