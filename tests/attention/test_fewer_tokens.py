"""Dropped tokens: cut or masked, the logits are those of the model that never saw the patches."""

import pytest
import torch
from families import CLASSES, FAMILIES, Block, Family, FusedAttention, UserViT
from torch import Tensor, nn

import vitrail
from vitrail.errors import ForwardError, OptionError, UnsupportedOperationError
from vitrail.methods.context import AttributionContext
from vitrail.methods.dropped_tokens import TokenDropper
from vitrail.models import wrap
from vitrail.models.layout import layout_of


def run_of(module: nn.Module, images: Tensor) -> AttributionContext:
    model = wrap(module)
    layout = layout_of(model, images)
    return AttributionContext(model, images, layout, None, None, "logit", layout.readout)


def some_patches(count: int, rows: int) -> Tensor:
    draws = torch.rand(rows, count, generator=torch.Generator().manual_seed(3))
    return draws.argsort(1)[:, : count // 2].sort(1).values


@pytest.mark.parametrize("name", FAMILIES)
def test_cutting_and_masking_agree_in_every_family(name: str):
    family: Family = FAMILIES[name]
    images = family.images(1)
    run = run_of(family.build(), images)
    streams = run.watch()
    patches = some_patches(run.layout.patches, 3)
    cut, masked = (TokenDropper(run, streams, way).logits(0, patches) for way in ("cut", "mask"))
    assert (cut - masked).abs().max() < 1e-5 * cut.abs().max()
    assert (cut - run.logits).abs().max() > 1e-2  # and the dropped patches did say something
    assert all(block is not None and block.shape[0] == family.tokens for block in streams[0].blocks)
    assert streams[0].norm is not None


def by_hand(module: nn.Module, images: Tensor, patches: Tensor) -> Tensor:
    """The hand-written family's forward pass with tokens taken out between positions and blocks."""
    x = module.patches(images).flatten(2).transpose(1, 2)
    x = torch.cat([module.class_token, x], dim=1) + module.position
    kept = torch.stack([x[0, [0, *(row + 1).tolist()]] for row in patches])
    return module.head(module.norm(module.blocks(kept))[:, 0])


@pytest.mark.parametrize("way", ["auto", "cut", "mask"])
@pytest.mark.parametrize("name", ["user_written_out", "user_non_square", "user_encoder"])
@torch.no_grad()
def test_equal_to_tokens_taken_out_by_hand(name: str, way: str):
    module, images = FAMILIES[name].build().double(), FAMILIES[name].images(1).double()
    run = run_of(module, images)
    patches = some_patches(run.layout.patches, 4)
    ours = TokenDropper(run, run.watch(), way).logits(0, patches)
    assert (ours - by_hand(module, images, patches)).abs().max() < 1e-12


class InPlace(UserViT):
    """Positions and branches added in place."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x += self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class MaximumHead(UserViT):
    """Reads each channel's highest patch."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 1:].amax(dim=1))


class FixedTable(nn.Module):
    """Scales every token by its place through a product that fits one number of tokens only."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.places = nn.Parameter(1 + torch.rand(tokens))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bnd,n->bnd", x, self.places)


class Mixing(nn.Module):
    """Mixes the tokens by a matrix, as no attention does."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(tokens, tokens) / tokens)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix @ x


def user_vit(kind: type[UserViT] = UserViT, between: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(1)
    blocks = [
        Block(48, FusedAttention(48, 3)),
        *([] if between is None else [between]),
        Block(48, FusedAttention(48, 3)),
    ]
    module = kind(nn.Sequential(*blocks)).eval()
    nn.init.normal_(module.position)
    assert module.head.out_features == CLASSES
    return module


IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
ROW = torch.arange(0, 16, 2)[None]


def test_sums_in_place_are_seen():
    run = run_of(user_vit(InPlace), IMAGES)
    streams = run.watch()
    cut, masked = (TokenDropper(run, streams, way).logits(0, ROW) for way in ("cut", "mask"))
    assert streams[0].entry is not None
    assert streams[0].entry.function.__name__ in ("__iadd__", "add_")
    assert (cut - masked).abs().max() < 1e-5


def test_a_model_of_one_token_number_is_masked():
    run = run_of(user_vit(between=FixedTable(17)), IMAGES)
    streams = run.watch()
    dropper = TokenDropper(run, streams, "auto")
    dropper.logits(0, ROW)
    assert dropper.drop == "mask"
    with pytest.raises(ForwardError):
        TokenDropper(run, streams, "cut").logits(0, ROW)


def test_a_head_that_takes_maxima_can_only_be_cut():
    run = run_of(user_vit(MaximumHead), IMAGES)
    streams = run.watch()
    dropper = TokenDropper(run, streams, "auto")
    dropper.logits(0, ROW)
    assert dropper.drop == "cut"
    with pytest.raises(UnsupportedOperationError, match="otherwise than by their mean"):
        TokenDropper(run, streams, "mask").logits(0, ROW)


def test_tokens_mixed_outside_attention_are_refused():
    with pytest.raises(UnsupportedOperationError, match="mixes tokens outside attention too.*cannot be cut"):
        vitrail.explain(user_vit(between=Mixing(17)), IMAGES, 1, method="tis", masks=4)


def test_the_model_is_as_it_was_after_a_refusal():
    module = user_vit(between=Mixing(17))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        logits = module(IMAGES)
    with pytest.raises(UnsupportedOperationError):
        vitrail.explain(module, IMAGES, 1, method="tis", masks=4)
    with torch.no_grad():
        assert torch.equal(module(IMAGES), logits)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_unknown_ways_are_refused():
    with pytest.raises(OptionError, match="drop='half' is no way to drop tokens; choose one of auto, cut, mask"):
        vitrail.explain(user_vit(), IMAGES, 1, method="tis", drop="half")
