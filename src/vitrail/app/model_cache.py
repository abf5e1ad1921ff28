"""The models that a page may use: those that its operator named, each loaded when it is first asked for."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import UnknownModelError
from ..models import VisionModel

__all__ = ["BUILT_IN", "Shelf"]

BUILT_IN = ("bestiary", "bestiary/label-errors")


class Shelf:
    """Models by name. `first` is there from the start; of others only those in `allowed` and the built-in ones.

    `load` is called with (name, checkpoint). A visitor can name nothing that is not on the shelf: no file, no address.

    >>> from vitrail.models import load
    >>> shelf = Shelf("bestiary", load=lambda name, checkpoint: load(name))
    >>> shelf.model("bestiary").name, shelf.names
    ('bestiary', ('bestiary', 'bestiary/label-errors'))
    """

    def __init__(
        self,
        first: str,
        *,
        load: Callable[[str, Path | None], VisionModel],
        checkpoint: Path | None = None,
        allowed: tuple[str, ...] = (),
    ) -> None:
        self.names = tuple(dict.fromkeys((first, *BUILT_IN, *allowed)))
        self.checkpoints: Mapping[str, Path | None] = {first: checkpoint}
        self._load = load
        self._loading = {name: threading.Lock() for name in self.names}
        self._models: dict[str, VisionModel] = {}
        self.model(first)

    @property
    def first(self) -> str:
        """The name of the model that a visitor meets."""
        return self.names[0]

    def model(self, name: str) -> VisionModel:
        """The model of that name, "" for the first.

        Raises:
            UnknownModelError: for a name that the operator has not allowed.
            VitrailError: where an allowed model cannot be loaded.
        """
        name = name or self.first
        if name not in self.names:
            raise UnknownModelError(f"this page offers {', '.join(self.names)}; whoever runs it can offer more")
        with self._loading[name]:  # who wants another model does not wait for this one's download
            if name not in self._models:
                self._models[name] = self._load(name, self.checkpoints.get(name))
            return self._models[name]
