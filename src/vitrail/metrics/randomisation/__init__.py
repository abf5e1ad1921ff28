"""Randomisation: does the map change when the model forgets what it learned?"""

from . import cascading  # noqa: F401  (registers itself)
