"""Tiny models of two streams with lively random weights, and the rules of GAE for them written out slowly in float64.

Shares no code with `vitrail`: the identity stands in the maps, every rule is a loop over items of the batch, and which
attention is which is known from the libraries' own code and not worked out.
"""

from collections.abc import Callable

import reference
import torch
from torch import Tensor, nn


class Given(nn.Module):
    """A model with its inputs, in the form that `reference.capture` calls: the argument is ignored."""

    def __init__(self, module: nn.Module, inputs: dict[str, Tensor], logits_from: Callable):
        super().__init__()
        self.module, self.inputs, self.logits_from = module, inputs, logits_from

    def forward(self, ignored: Tensor) -> Tensor:
        wide = {name: x.double() if x.is_floating_point() else x for name, x in self.inputs.items()}
        return self.logits_from(self.module(**wide))


def lively(module: nn.Module, std: float = 0.5) -> nn.Module:
    """Weights redrawn, so that attention is not uniform and logits are not constant."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(1 + drawn if "norm" in name.lower() and name.endswith("weight") else drawn)
    return module.eval()


def lxmert(text: int = 7, image: int = 5) -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import LxmertConfig, LxmertForQuestionAnswering

    layers = {"l_layers": 2, "r_layers": 1, "x_layers": 3}
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "visual_feat_dim": 6}
    module = LxmertForQuestionAnswering(LxmertConfig(vocab_size=30, num_qa_labels=5, **size, **layers))
    generator = torch.Generator().manual_seed(0)
    return lively(module), {
        "input_ids": torch.randint(1, 30, (2, text), generator=generator),
        "visual_feats": torch.randn(2, image, 6, generator=generator),
        "visual_pos": torch.rand(2, image, 4, generator=generator),
    }


# What each attention of `lxmert` joins, in the order of the library's code.
LXMERT_ORDER = [("text", "text")] * 2 + [("image", "image")]
LXMERT_ORDER += [("text", "image"), ("image", "text"), ("text", "text"), ("image", "image")] * 3


def detr(queries: int = 3) -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    both = {
        f"{part}_{what}": value
        for part in ("encoder", "decoder")
        for what, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 16))
    }
    module = DetrForObjectDetection(
        DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            d_model=16,
            num_queries=queries,
            num_labels=4,
            **both,
        )
    )
    return lively(module), {"pixel_values": torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))}


class Decoder(nn.Module):
    """PyTorch's own encoder and decoder, with learned queries and one set of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(3, 16))
        shape = {"d_model": 16, "nhead": 2, "dim_feedforward": 16, "dropout": 0.0, "batch_first": True}
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**shape), 2)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape), 2)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        asked = self.decoder(self.queries.expand(len(tokens), -1, -1), self.encoder(tokens))
        return self.head(asked)


def pytorch_decoder() -> tuple[nn.Module, dict[str, Tensor]]:
    return lively(Decoder()), {"tokens": torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))}


def captured(
    module: nn.Module, inputs: dict[str, Tensor], logits_from: Callable, targets: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """A and ∇A of every attention in float64, for the sum of each item's own target logit. Changes the module."""
    found = reference.capture(Given(module, inputs, logits_from), torch.zeros(1))
    gradients = found.gradients(sum(found.logits[i, target] for i, target in enumerate(targets)))
    return [a.detach() for a in found.maps], gradients


def averaged(attention: Tensor, gradient: Tensor, method: str) -> Tensor:
    product = gradient * attention
    product = {"gae": product.clamp(min=0), "complete": product, "absolute": product.abs()}[method]
    return product.mean(0)


def rescaled(full: Tensor) -> Tensor:
    hat = full - torch.eye(len(full), dtype=full.dtype)
    rows = []
    for number, row in enumerate(hat):
        total = sum(abs(float(x)) for x in row)
        # The difference of R and the identity leaves rounding where there is nothing: 1e-15 of the identity's one.
        filled = row / total if total > 1e-14 else torch.zeros_like(row)
        rows.append(filled + torch.eye(len(full), dtype=full.dtype)[number])
    return torch.stack(rows)


class Streams:
    """The maps of one item of a batch."""

    def __init__(self, a: list[Tensor], g: list[Tensor], item: int, method: str, sizes: dict[str, int]):
        self.bars = iter([averaged(x[item], y[item], method) for x, y in zip(a, g, strict=True)])
        one, two = sizes
        self.R = {(s, q): torch.zeros(sizes[s], sizes[q], dtype=torch.float64) for s in sizes for q in sizes}
        for name in (one, two):
            self.R[name, name] = torch.eye(sizes[name], dtype=torch.float64)

    def self_attention(self, s: str, q: str) -> None:
        bar = next(self.bars)
        self.R[s, s], self.R[s, q] = self.R[s, s] + bar @ self.R[s, s], self.R[s, q] + bar @ self.R[s, q]

    def crossed(self, s: str, q: str) -> tuple[Tensor, Tensor]:
        bar = next(self.bars)
        return rescaled(self.R[s, s]).T @ bar @ rescaled(self.R[q, q]), bar @ self.R[q, s]


def lxmert_rules(a: list[Tensor], g: list[Tensor], item: int, method: str, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Both directions from the old maps; in the last layer the language alone; then the class token's row."""
    maps = Streams(a, g, item, method, sizes)
    maps.self_attention("text", "image")
    maps.self_attention("text", "image")
    maps.self_attention("image", "text")
    for layer in range(3):
        ti, tt = maps.crossed("text", "image")
        it, ii = maps.crossed("image", "text")
        maps.R["text", "image"], maps.R["text", "text"] = maps.R["text", "image"] + ti, maps.R["text", "text"] + tt
        if layer < 2:
            maps.R["image", "text"], maps.R["image", "image"] = (
                maps.R["image", "text"] + it,
                maps.R["image", "image"] + ii,
            )
        maps.self_attention("text", "image")
        if layer < 2:
            maps.self_attention("image", "text")
    read = maps.R["text", "text"][0].clone()
    read[0] -= 1
    return {"text": read, "image": maps.R["text", "image"][0]}


def decoder_rules(
    a: list[Tensor], g: list[Tensor], item: int, method: str, sizes: dict[str, int], query: int
) -> dict[str, Tensor]:
    """Two encoder blocks, then two decoder blocks without the second cross rule; then the query's row."""
    maps = Streams(a, g, item, method, sizes)
    for _ in range(2):
        bar = next(maps.bars)
        maps.R["image", "image"] = maps.R["image", "image"] + bar @ maps.R["image", "image"]
    for _ in range(2):
        maps.self_attention("queries", "image")
        maps.R["queries", "image"] = maps.R["queries", "image"] + maps.crossed("queries", "image")[0]
    own = maps.R["queries", "queries"][query].clone()
    own[query] -= 1
    return {"image": maps.R["queries", "image"][query], "queries": own}
