"""Mosaics of confidently classified pictures: how much of the positive relevance lies in the cell of its class.

score = Σ_cell S⁺ / Σ S⁺, for every cell of the mosaic                  (Rao, Böhle, Schiele 2022, GridPG and DiFull)

A map that is the same for all classes, and nowhere negative, has 1/n² in a mosaic of n × n cells, whatever it shows.
Under GridPG the model sees the mosaic as it is, so that other cells may speak for a class, and no map need have 1.
Under DiFull they cannot: the head is connected with one cell alone, and every map that is true to the model has 1. In
the paper's convolutional networks that is a forward pass of each cell by itself. Here attention connects, and is masked
instead: no patch attends to another cell's, and the class token to one cell's alone.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...attention.fewer_tokens import masked_links
from ...errors import UnsupportedOperationError
from ...models.layout import TokenLayout, layout_of
from ...models.vision_model import VisionModel
from ..aggregation import Curves, Statistic
from ..maps import bilinear, spread
from ..protocol import AttributionQuery, Case, Evaluation, Measured, check_map, check_one_of, register_protocol
from .energy import energy_share

__all__ = ["ENLARGED", "cell_share", "difull", "disconnected", "gridpg"]

ENLARGED = ("patch", "bilinear")


def cell_share(pixels: Float[Tensor, "height width"], cell: Bool[Tensor, "height width"]) -> float:
    """Returns the share of the positive relevance that lies in a cell, in [0, 1]; 0 for a map without any.

    Example:
        >>> cell_share(torch.tensor([[3.0, 1.0, -4.0]]), torch.tensor([[True, False, False]]))
        0.75
    """
    share = energy_share(pixels, cell, "positive")
    return 0.0 if share != share else share


def _summary(name: str, curves: Curves) -> dict[str, Statistic]:
    """Returns the mean share over the mosaics, and what an even map would get."""
    return {
        name: Statistic.mean(curves.single("share"), 1),
        f"{name} of an even map": Statistic.mean(curves.single("area"), 0),
    }


def _measured(
    case: Case, maps: Sequence[Float[Tensor, "rows cols"]], cells: Sequence[Bool[Tensor, "height width"]], enlarge: str
) -> list[Measured]:
    """Returns the mean share over the cells of a mosaic, which is its one observation, and the mean area of a cell."""
    enlarged = bilinear if enlarge == "bilinear" else spread
    shares = [cell_share(enlarged(one, case.size), cell.to(one.device)) for one, cell in zip(maps, cells, strict=True)]
    area = float(torch.stack([cell.double().mean() for cell in cells]).mean()) if cells else float("nan")
    return [
        Measured("share", None, sum(shares) / len(shares) if shares else float("nan")),
        Measured("area", None, area),
    ]


def summarise_gridpg(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the mean over mosaics, and that of an even map."""
    return _summary("GridPG", curves)


@register_protocol(
    "gridpg", summarise=summarise_gridpg, reference="Rao, Böhle, Schiele 2022 (CVPR)", needs=("regions",)
)
def gridpg(case: Case, scores: Float[Tensor, "rows cols"], *, enlarge: str = "patch") -> Evaluation:
    """How much of the positive relevance lies in the cell of its class, in a mosaic of confidently classified pictures.

    Every class of the mosaic is asked about, and the mean over them is the mosaic's one observation. `enlarge`: "patch"
    for maps of patches spread evenly over their pixels, so that a map inside a cell has 1; "bilinear" as in the
    released code, where it leaks over the cell's edge.
    """
    check_one_of("enlarge", enlarge, ENLARGED)
    check_map(scores, case.size)
    classes = [known for known in case.regions if known != case.target]
    maps = {case.target: scores}
    if classes:
        answer = yield AttributionQuery(case.image.expand(len(classes), -1, -1, -1), classes)
        maps |= {known: found.to(scores) for known, found in zip(classes, answer, strict=True)}
    return _measured(case, [maps[known] for known in case.regions], list(case.regions.values()), enlarge)


def summarise_difull(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the mean over mosaics, and that of an even map."""
    return _summary("DiFull", curves)


@register_protocol(
    "difull", summarise=summarise_difull, reference="Rao, Böhle, Schiele 2022 (CVPR)", needs=("regions",)
)
def difull(case: Case, scores: Float[Tensor, "rows cols"], *, enlarge: str = "patch") -> Evaluation:
    """GridPG where no other cell can influence the class: a map with less than 1 shows what the model does not use.

    For each cell, attention between cells is masked and the class token sees this cell alone. Refused for heads that
    read the patches themselves, and for models whose logits another cell then still reaches. `enlarge` as of `gridpg`.
    """
    check_one_of("enlarge", enlarge, ENLARGED)
    check_map(scores, case.size)
    cells = list(case.regions.values())
    groups = torch.full(case.grid, len(cells), dtype=torch.long)
    for number, cell in enumerate(cells):
        groups[(adaptive_avg_pool2d(cell[None].float(), case.grid)[0] > 0.5).to(groups.device)] = number
    maps = []
    for number, known in enumerate(case.regions):
        # The head reads group 0: the numbers of this cell and of the first one are exchanged.
        swapped = torch.where(groups == number, 0, torch.where(groups == 0, number, groups))
        answer = yield AttributionQuery(case.image[None], [known], apart=tuple(swapped.flatten().tolist()))
        maps.append(answer[0].to(scores))
    return _measured(case, maps, cells, enlarge)


# -- the model whose cells are disconnected ----------------------------------------------------------------------------


def disconnected(model: VisionModel, groups: Sequence[int]) -> VisionModel:
    """Returns the model with attention masked: patches attend to their own group, all other tokens to group 0.

    The weights are the model's own, and the model stays as it is. `groups` has a number for each patch, row by row.

    Raises:
        UnsupportedOperationError: where the head reads patches, tokens do not stay in place, or a patch of another
            group still reaches the logits.

    Example:
        >>> import vitrail
        >>> model = vitrail.load("bestiary")
        >>> left = disconnected(model, [int(place % 12 > 5) for place in range(144)])
        >>> one, other = torch.rand(2, 1, 3, 96, 96)
        >>> mixed = torch.cat([one[..., :48], other[..., 48:]], dim=-1)
        >>> torch.allclose(left.logits(one), left.logits(mixed), atol=1e-5)
        True
    """
    layout = layout_of(model, model.blank())
    if layout.reads_patches or layout.pools or layout.all_tokens < layout.tokens:
        raise UnsupportedOperationError(
            f"{model.name} reads {layout.reads}, which connects all cells of a mosaic: only those of a model that "
            "reads a class token can be disconnected; gridpg asks for nothing of the kind"
        )
    allowed = _links(layout, torch.tensor(groups))
    module = copy.copy(model.module)  # its parts and weights are shared, and only its own call is another
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        images = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
        with masked_links(allowed.to(images.device), len(images)):
            return plain(*args, **kwargs)

    object.__setattr__(module, "forward", forward)
    readout = layout.readout.cpu()
    found = replace(model, module=module, readout=readout, prefix=layout.prefix, grid=(layout.rows, layout.cols))
    _refuse_connected(found, layout, torch.tensor(groups))
    return found


def _links(layout: TokenLayout, groups: Tensor) -> Bool[Tensor, "tokens tokens"]:
    """Returns which token (row) may attend to which (column)."""
    of_token = torch.zeros(layout.all_tokens, dtype=torch.long)
    places = torch.arange(layout.patches) if layout.order is None else layout.order.cpu()
    of_token[layout.prefix + places] = groups
    patch = torch.zeros(layout.all_tokens, dtype=torch.bool)
    patch[layout.prefix : layout.tokens] = True
    same = of_token[:, None] == of_token
    return same & (patch | (of_token == 0)[:, None])  # a patch of another group sees no class token either


def _refuse_connected(model: VisionModel, layout: TokenLayout, groups: Tensor) -> None:
    one, other = torch.randn(2, *model.blank().shape[1:], generator=torch.Generator().manual_seed(0))
    own = (groups == 0).view(layout.rows, layout.cols)
    high, wide = one.shape[-2] // layout.rows, one.shape[-1] // layout.cols
    inside = own.repeat_interleave(high, 0).repeat_interleave(wide, 1)
    images = torch.stack([one, torch.where(inside, one, other)]).to(model.device, model.dtype)
    with torch.no_grad():
        first, second = model.logits(images)
    scale = float(first.abs().max())
    if not torch.allclose(first, second, rtol=0, atol=1e-3 * scale + 1e-6):
        raise UnsupportedOperationError(
            f"{model.name} mixes the cells of a mosaic by more than attention (its logits change by "
            f"{float((first - second).abs().max()):.2g} with another cell), so masking does not disconnect them; "
            "gridpg asks for nothing of the kind"
        )
