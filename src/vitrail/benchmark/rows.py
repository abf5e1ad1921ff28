"""The rows of the table: what is timed on a subject, and how far each agrees with the method of ours that it is."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NoSignalError, OptionError
from ..explain import explain
from ..methods import list_methods
from ..methods.registry import METHODS, MethodInfo, choose_methods, passes_of
from ..models import VisionModel
from .measure import available_memory
from .peers import PEERS, STORED, Peer, StoredMaps, bytes_of_maps
from .subject import Subject, forward, limit, sharing_weights

__all__ = ["FORWARD", "LIMIT", "Row", "as_published", "one_backward", "row_named", "rows_of", "stored"]

FORWARD = "plain forward"
LIMIT = "limit: one forward, one backward"


@dataclass(frozen=True, eq=False)
class Row:
    """Work to be timed; or, where it cannot be done here, `why_not`.

    `agreement` compares the map with that of our method of the same formula, as max|Δ| / max|theirs|.
    """

    name: str
    passes: str = ""
    work: Callable[[], object] | None = None
    why_not: str = ""
    agreement: Callable[[], float] | None = None


def one_backward() -> list[MethodInfo]:
    """Returns the methods that the registry says take one forward and one backward pass, by gradients.

    Example:
        >>> {"complete", "gae", "gmar_l1", "gradcam"} <= {info.name for info in one_backward()}
        True
        >>> {"rollout", "tattr", "tam"} & {info.name for info in one_backward()}
        set()
    """
    return [
        info
        for info in list_methods()
        if info.class_specific and info.uses_gradient and passes_of(info) == 2 and "LRP" not in info.passes
    ]


def stored(method: str) -> str:
    """Returns the name of the row that computes our `method` with maps stored.

    Example:
        >>> stored("gae")
        'stored maps: gae'
    """
    return f"stored maps: {method}"


def rows_of(subject: Subject, methods: Sequence[str] | None = None, *, peers: bool = True) -> list[Row]:
    """Returns the plain passes, our methods (default: `one_backward`), the stored-maps form, and the peers.

    Raises:
        OptionError: for a name that is not a method.
    """
    infos = one_backward() if methods is None else [one.info for one in choose_methods(methods)]
    ours = [_ours(subject, info) for info in infos]
    ours += [_competing(subject, info, rivals=rivals) for info in infos if info.competes for rivals in (True, False)]
    if not peers:
        return [*_plain(subject), *ours, _stored(subject, "gae")]
    return [
        *_plain(subject),
        *ours,
        *(_stored(subject, method) for method in STORED),
        *(_peer(subject, peer) for peer in PEERS),
    ]


def row_named(subject: Subject, name: str) -> Row:
    """Returns one row by its name, and nothing of the others: for a process that does nothing else.

    Raises:
        OptionError: for a peer's row, or none.
    """
    for row in _plain(subject):
        if row.name == name:
            return row
    for info in list_methods():
        rows = [_ours(subject, info)]
        rows += [_competing(subject, info, rivals=rivals) for rivals in (True, False) if info.competes]
        for row in rows:
            if row.name == name:
                return row
    for method in STORED:
        if name == stored(method):
            return _stored(subject, method)
    raise OptionError(f"{name!r} is no row whose memory is measured")


def _plain(subject: Subject) -> list[Row]:
    frozen = sharing_weights(subject.module, frozen=True)
    return [
        Row(FORWARD, "1F", lambda: forward(frozen, subject.images)),
        Row(LIMIT, "1F 1B", lambda: limit(frozen, subject.images, subject.targets)),
    ]


def _ours(subject: Subject, info: MethodInfo) -> Row:
    """Returns one method under the full gradient."""
    return Row(f"vitrail {info.name}", info.passes, _asking(subject.model, subject, info, **as_published(info.name)))


def _competing(subject: Subject, info: MethodInfo, *, rivals: bool) -> Row:
    """Returns a method as it is by default where classes compete: with rivals in every image, or with none in any."""
    if rivals:  # random weights leave all logits near each other
        return Row(f"vitrail {info.name}, rivals in every image", "1F 2B", _asking(subject.model, subject, info))
    ahead = sharing_weights(subject.module, frozen=False)
    assert isinstance(ahead.head, nn.Linear)
    with torch.no_grad():
        ahead.head.bias = nn.Parameter(
            ahead.head.bias + 1000 * (torch.arange(ahead.num_classes) == 0).to(subject.device)
        )
    model = replace(subject.model, module=ahead)
    return Row(f"vitrail {info.name}, no rivals", "1F 1B", _asking(model, subject, info, target=0))


def _asking(
    model: VisionModel, subject: Subject, info: MethodInfo, *, target: int | None = None, **question: Any
) -> Callable[[], None]:
    targets = subject.targets.tolist() if target is None else target

    def ask() -> None:
        # Random weights may leave a method no signal, which it finds out at its end: the time is the same.
        with suppress(NoSignalError):
            explain(model, subject.images, targets, method=info.name, **question)

    return ask


def _stored(subject: Subject, method: str) -> Row:
    needed = bytes_of_maps(len(subject.module.blocks), subject.heads, subject.tokens, len(subject.images), method)
    free = available_memory(subject.device)
    passes = "1F" if method == "rollout" else "1F 1B, weights'"
    if free is not None and 1.5 * needed > free:
        why_not = f"not run: its maps alone are {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free"
        return Row(stored(method), passes, why_not=why_not)
    maps = StoredMaps(subject.module)

    def work() -> Tensor:
        return maps(subject.images, subject.targets, method)

    return Row(stored(method), passes, work, agreement=lambda: _difference(_own(subject, method).flatten(1), work()))


def _peer(subject: Subject, peer: Peer) -> Row:
    if not peer.installed:
        return Row(peer.name, why_not=f"not installed: pip install {peer.package}")
    if peer.by_numpy and subject.images.dtype == torch.bfloat16:
        return Row(peer.name, why_not="not run: it computes with NumPy, which has no bfloat16")
    work = peer.make(subject)

    def agreement() -> float:
        height, width = subject.images.shape[-2:]
        return _difference(peer.finish(_own(subject, peer.ours), (width, height)), work())

    return Row(peer.name, "one layer", work, agreement=agreement)


def _own(subject: Subject, method: str) -> Tensor:
    return explain(
        subject.model, subject.images, subject.targets.tolist(), method=method, **as_published(method)
    ).scores


def as_published(method: str) -> dict[str, Any]:
    """Returns the question that leaves a method one backward pass: the full gradient, which every paper has.

    Example:
        >>> as_published("complete"), as_published("rollout")
        ({'gradient': 'full'}, {})
    """
    return {"gradient": "full"} if METHODS[method].uses_gradient else {}


def _difference(ours: Tensor, theirs: Tensor) -> float:
    theirs = theirs.detach().cpu().to(ours.dtype)
    return float((ours - theirs).abs().max() / theirs.abs().max())
