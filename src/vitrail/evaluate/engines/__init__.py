"""Where blocks of images are measured: in this process (or several of torchrun's), or on a Ray cluster."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from ...errors import OptionError
from ..parquet_rows import Done
from .local import run_local
from .ray import run_ray

__all__ = ["ENGINES", "find_engine"]

Engine = Callable[..., Iterator[Done]]

# Each takes a worker, the numbers of the blocks that are wanted, and its own options; blocks come as they are done.
ENGINES: Mapping[str, Engine] = MappingProxyType({"local": run_local, "ray": run_ray})


def find_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        OptionError: for an unknown engine.
    """
    if name not in ENGINES:
        raise OptionError(f"engine={name!r} is unknown; choose one of {', '.join(ENGINES)}")
    return ENGINES[name]
