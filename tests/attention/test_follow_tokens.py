"""Rules by which tokens are followed: the same model written in another way gets the same map."""

import pytest
import torch
import torch.nn.functional as F
from families import enliven
from torch import nn

import vitrail
from vitrail.attention.follow_tokens import TokenFollower
from vitrail.errors import UnsupportedAttentionError


class Windows(nn.Module):
    """Attention in two windows of 4 × 4 tokens, then in all; `way` says how windows and heads stand in the call."""

    def __init__(self, way: str, between: nn.Module | None = None) -> None:
        super().__init__()
        self.way, self.between = way, between or nn.Identity()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.mixed = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def attend(self, mixed: nn.Module, x: torch.Tensor) -> torch.Tensor:
        windows, tokens, _ = x.shape
        q, k, v = mixed(x).view(windows, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.way == "heads apart":
            out = F.scaled_dot_product_attention(q, k, v)
        elif self.way == "heads within windows":
            out = F.scaled_dot_product_attention(*(one.flatten(0, 1) for one in (q, k, v))).view_as(q)
        else:  # windows within the heads of an image
            images = 2 if windows == 4 else 1
            q, k, v = (one.unflatten(0, (images, -1)).transpose(1, 2).flatten(0, 1).contiguous() for one in (q, k, v))
            out = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
            out = out.unflatten(0, (images, 2)).transpose(1, 2).flatten(0, 1)
        return out.transpose(1, 2).flatten(2)

    def forward(self, x):
        x = self.embed(x)
        rows = x.unflatten(3, (2, 4)).permute(0, 3, 2, 4, 1).reshape(-1, 16, 8)
        rows = rows + self.attend(self.mixed[0], rows)
        x = self.between(rows.view(-1, 2, 4, 4, 8).permute(0, 4, 2, 1, 3).flatten(3)).flatten(2).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(*self.mixed[1](x).chunk(3, dim=-1))
        return self.head(x.mean(dim=1))


def made(way: str, between: nn.Module | None = None) -> Windows:
    torch.manual_seed(0)
    module = Windows(way, between)
    enliven(module)
    return module.double().eval()


@pytest.mark.parametrize("way", ["heads within windows", "windows within heads"])
def test_windows_that_share_a_dimension_with_heads(way):
    pictures = torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(0)).double()
    for method in ("complete", "rollout"):
        found, right = (
            vitrail.explain(made(one), pictures, 2, method=method, batch_size=2).scores for one in (way, "heads apart")
        )
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "between",
    [
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=(6, 10), mode="bicubic"),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.AdaptiveAvgPool2d((3, 5)),
    ],
    ids=str,
)
def test_between_grids_nothing_is_lost_and_a_mirrored_image_gets_the_mirrored_map(between):
    module = made("heads apart", between)
    module.embed.weight.data += module.embed.weight.data.flip(-1)
    picture = torch.randn(1, 3, 16, 32).double()
    for method in ("rollout", "raw"):
        found = vitrail.explain(module, picture, 2, method=method).scores
        assert float(found.sum()) == pytest.approx(1)
        mirrored = vitrail.explain(module, picture.flip(-1), 2, method=method).scores
        torch.testing.assert_close(mirrored.flip(-1), found, rtol=1e-8, atol=1e-12)


class Gated(Windows):
    """Attention whose output is multiplied with a gate: of its own tokens, of one for all, or of their neighbours."""

    def __init__(self, gate: str) -> None:
        super().__init__("heads apart")
        self.kind, self.gate = gate, nn.Linear(8, 8)

    def attend(self, mixed: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = super().attend(mixed, x)
        if self.kind == "none":
            return out
        if self.kind == "of all":
            return out * self.gate(x.mean(dim=1, keepdim=True)).sigmoid()
        gate = self.gate(x).sigmoid()
        if self.kind == "of neighbours":
            gate = F.pad(gate, (0, 0, 1, 0))[:, :-1]
        return gate * out if self.kind == "in front" else out * gate


def gated(kind: str) -> Gated:
    torch.manual_seed(0)
    module = Gated(kind)
    enliven(module)
    return module.double().eval()


@pytest.mark.parametrize("kind", ["in front", "behind", "of all"])
def test_a_gate_scales_what_attention_wrote_and_moves_nothing(kind):
    pictures = torch.randn(1, 3, 16, 32, generator=torch.Generator().manual_seed(0)).double()
    module = gated(kind)
    assert float(vitrail.explain(module, pictures, 2, method="raw").scores.sum()) == pytest.approx(1)
    both = vitrail.explain(module, pictures, 2, compete=False, gradient="full").scores
    module.gate.weight.data.zero_()
    module.gate.bias.data.fill_(50.0)  # open
    opened = vitrail.explain(module, pictures, 2, compete=False, gradient="full").scores
    plain = gated("none")
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(opened, vitrail.explain(plain, pictures, 2, compete=False, gradient="full").scores)
    assert not torch.equal(both, opened)


def test_tokens_multiplied_with_others_are_refused():
    with pytest.raises(UnsupportedAttentionError, match="tokens are multiplied with other tokens"):
        vitrail.explain(gated("of neighbours"), torch.randn(1, 3, 16, 32).double(), 2)


def test_labels_are_those_of_the_elements_whatever_the_view_and_stored_once():
    follower = TokenFollower(torch.zeros(1, 3, 2, 2))
    tensor = torch.zeros(4, 6, 10).transpose(0, 1)
    by_token = torch.arange(1.0, 25).double().view(6, 4, 1)
    follower.mark(tensor, by_token)
    views = (
        lambda x: x,
        lambda x: x[1::2, 2:, :, None],
        lambda x: x.transpose(0, 1).reshape(4, 6, 5, 2).permute(2, 0, 3, 1),
        lambda x: x.transpose(0, 1).view(2, 2, 60)[:, 1],
        lambda x: x.transpose(0, 1).view(24, 10)[5:, 3],
        lambda x: x.transpose(0, 1).view(-1)[7:150:3],
        lambda x: x[:, :1].expand(6, 5, 10),
    )
    labels = by_token.transpose(0, 1).expand(4, 6, 10).contiguous().transpose(0, 1)
    for view in views:
        (found,) = follower.labels(view(tensor)) or ()
        assert torch.equal(found, view(labels))
    assert (follower.labels(tensor) or ())[0].stride(-1) == 0
    part = tensor[2, 1:3]
    follower.mark(part, torch.tensor(99.0))
    labels[2, 1:3] = 99
    for view in views:
        (found,) = follower.labels(view(tensor)) or ()
        assert torch.equal(found, view(labels))
