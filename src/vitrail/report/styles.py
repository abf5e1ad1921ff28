"""How a method looks in the figures: a colour and a dash, the same on every panel."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .leaderboard import Entry

__all__ = ["Look", "looks"]

# Neither red nor blue, which are the maps'; each has a contrast of 3 : 1 and more to white.
COLOURS = ("#222222", "#b86e00", "#1f8563", "#8e4fa8", "#c2418c", "#5f7a00", "#2b8497", "#8a6a4f")
OWN = {"gae": 0, "complete": 1}
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.4)), (0, (1.2, 1.2)), (0, (6, 1.4, 1.2, 1.4)), (0, (9, 2)))
CSS_DASHES = ("", "7 3", "2 2", "9 3 2 3", "14 4")


class Look(NamedTuple):
    """A colour, Matplotlib's dash and the same dash for a page."""

    colour: str
    dash: Any
    css_dash: str


def looks(entries: Sequence[Entry]) -> Mapping[str, Look]:
    """Returns a look for each entry: methods of a kind share the colour, their modes and runs differ in dash."""
    names = list(dict.fromkeys(entry.method.partition(":")[0] for entry in entries))
    free = [number for number in range(len(COLOURS)) if number not in [OWN[name] for name in names if name in OWN]]
    others = [name for name in names if name not in OWN]
    colours = OWN | {name: free[place % len(free)] for place, name in enumerate(others)}
    later = {name: place // len(free) for place, name in enumerate(others)}  # colours are used up: go on with dashes
    found: dict[str, Look] = {}
    used: dict[int, int] = {}
    for entry in entries:
        name = entry.method.partition(":")[0]
        number = colours[name]
        dash = max(used.get(number, 0), later.get(name, 0)) % len(DASHES)
        used[number] = dash + 1
        found[entry.label] = Look(COLOURS[number], DASHES[dash], CSS_DASHES[dash])
    return found
