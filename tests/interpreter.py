"""A process of its own in which Triton interprets its kernels on the CPU, and what it is asked to do.

Triton decides when it is first imported, from the environment, whether kernels are compiled or interpreted, its own
library's included. In a process apart that decision reaches no other test, whichever of them has imported Triton.
"""

import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

__all__ = ["explain_both_ways", "interpreter", "logsumexps", "sum_over_queries", "sum_over_wrong_statistics"]


def interpreter() -> ProcessPoolExecutor:
    """One process, started anew, that answers one question after the other; close it by `shutdown`."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    from jaxtyping import install_import_hook

    # Only the engine's annotations are checked here; to hook the whole package takes seconds.
    with install_import_hook("vitrail.attention", "beartype.beartype"):
        import torch

        import vitrail.attention.triton_row  # noqa: F401
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("default", category=DeprecationWarning, module="triton")  # of its own older releases


def _call(arrays: dict[str, np.ndarray], dtype: str, scale: float, heads_last: bool) -> tuple[Any, Any]:
    """The call that the arrays stand for and its upstream gradient, in `dtype`, as a model would lay them out."""
    import torch

    from vitrail.attention.calls import AttentionCall

    def lay_out(name: str) -> torch.Tensor:
        tensor = torch.from_numpy(arrays[name]).to(getattr(torch, dtype))
        # As timm does: (images, tokens, heads, width), seen with the heads before the tokens.
        return tensor.transpose(1, 2).contiguous().transpose(1, 2) if heads_last else tensor

    query, key, value = (lay_out(name) for name in ("query", "key", "value"))
    return AttentionCall(query, key, value.requires_grad_(), None, False, scale), lay_out("upstream")


def sum_over_queries(
    arrays: dict[str, np.ndarray],
    dtype: str,
    scale: float,
    function: str,
    centred: bool,
    heads_last: bool = True,
    kept: bool = True,
    tiles: tuple[int, int] = (32, 16),
) -> np.ndarray:
    """What the kernel gives; `kept`: with the logsumexp that the forward pass kept, else with its own."""
    from unittest import mock

    from vitrail.attention import kernels, triton_row
    from vitrail.attention.relevance_row import QuerySum

    call, upstream = _call(arrays, dtype, scale, heads_last)
    output = call.output()
    # With tiles smaller than a GPU wants, small shapes have several.
    tiling = triton_row.Tiling(*tiles, 4, 2)
    wanted = QuerySum(function, None if function.startswith("norm") else _tensor(arrays["row"]), centred)
    with mock.patch.object(triton_row, "tiling", return_value=tiling):
        total = kernels.sum_over_queries(
            call.detached(), wanted, upstream, output if kept else output.detach(), forced=True
        )
    assert total is not None
    return total.numpy()


def logsumexps(arrays: dict[str, np.ndarray], dtype: str, scale: float) -> tuple[np.ndarray | None, np.ndarray]:
    """What the forward pass kept, and what the kernel gives."""
    from vitrail.attention import triton_row
    from vitrail.attention.kernels import kept_logsumexp

    call, _ = _call(arrays, dtype, scale, True)
    kept = kept_logsumexp(call, call.output())
    own = triton_row.logsumexp_of_scores(call.detached(), triton_row.Tiling(32, 16, 4, 2))
    return None if kept is None else kept.numpy(), own.numpy()


def sum_over_wrong_statistics(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, bool]:
    """The sum where the forward pass keeps something else than it is thought to; and whether that was noticed."""
    from unittest import mock

    from vitrail.attention import kernels
    from vitrail.attention.relevance_row import QuerySum

    call, upstream = _call(arrays, "float32", 0.3, True)
    output = call.output()
    kept = kernels._kept(call, output)
    assert kept is not None
    with (
        mock.patch.object(kernels, "_kept", return_value=kept / np.log(2)),
        mock.patch.dict(kernels._AS_MEANT, clear=True),
    ):
        total = kernels.sum_over_queries(
            call.detached(), QuerySum("complete", _tensor(arrays["row"])), upstream, output
        )
        noticed = list(kernels._AS_MEANT.values()) == [False]
    assert total is not None
    return total.numpy(), noticed


def explain_both_ways(
    family: str, method: str, targets: Any, dtype: str = "float32", **options: Any
) -> tuple[np.ndarray, np.ndarray, int]:
    """The maps of a tiny model by blocks and by the kernel, taken as on a GPU; and how often the kernel ran."""
    from functools import partial
    from unittest import mock

    import torch
    from families import FAMILIES

    import vitrail
    from vitrail.attention import differentiate, kernels, record, triton_row

    model = vitrail.wrap(FAMILIES[family].build().to(getattr(torch, dtype)))
    images = FAMILIES[family].images(2)
    blocks = vitrail.explain(model, images, targets, method=method, **options).scores
    fit = partial(differentiate.tiles_fit, forced=True)
    with (
        mock.patch.object(differentiate, "tiles_fit", lambda call, forced: fit(call)),
        mock.patch.object(record, "tiles_fit", fit),
        mock.patch.object(triton_row, "sums_over_queries", wraps=triton_row.sums_over_queries) as launches,
    ):
        tiles = vitrail.explain(model, images, targets, method=method, **options).scores
    assert not kernels._FAILED
    return blocks.numpy(), tiles.numpy(), launches.call_count


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array).float()
