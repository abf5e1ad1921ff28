"""The LRP family written out slowly for a plain ViT, in float64, image by image. Shares no code with `vitrail`.

Every layer is a formula with its four clamped products, relevance is carried from operation to operation by hand, and
no function is intercepted. Gradients of the attention come from autograd, through the same written-out forward.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-9


@dataclass
class Weights:
    """A ViT of any library in one form."""

    patch: tuple[Tensor, Tensor]
    class_token: Tensor
    position: Tensor
    blocks: list[dict[str, tuple[Tensor, Tensor]]]
    norm: tuple[Tensor, Tensor]
    head: tuple[Tensor, Tensor]
    heads: int
    eps: float


def _pair(module) -> tuple[Tensor, Tensor]:
    return module.weight.detach().double(), module.bias.detach().double()


def _packed(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    return attention.in_proj_weight.detach().double(), attention.in_proj_bias.detach().double()


def read_timm(m) -> Weights:
    blocks = [
        {"norm1": _pair(b.norm1), "qkv": _pair(b.attn.qkv), "proj": _pair(b.attn.proj), "norm2": _pair(b.norm2),
         "fc1": _pair(b.mlp.fc1), "fc2": _pair(b.mlp.fc2)}
        for b in m.blocks
    ]  # fmt: skip
    embed, token, position = m.patch_embed.proj, m.cls_token, m.pos_embed
    return Weights(_pair(embed), token.double().detach(), position.double().detach(), blocks, _pair(m.norm),
                   _pair(m.head), m.blocks[0].attn.num_heads, m.norm.eps)  # fmt: skip


def read_user(m) -> Weights:
    blocks = [
        {"norm1": _pair(b.norm1), "qkv": _pair(b.attention.qkv), "proj": _pair(b.attention.out),
         "norm2": _pair(b.norm2), "fc1": _pair(b.mlp[0]), "fc2": _pair(b.mlp[2])}
        for b in m.blocks
    ]  # fmt: skip
    return Weights(_pair(m.patches), m.class_token.double().detach(), m.position.double().detach(), blocks,
                   _pair(m.norm), _pair(m.head), m.blocks[0].attention.heads, m.norm.eps)  # fmt: skip


def read_torchvision(m) -> Weights:
    blocks = [
        {"norm1": _pair(b.ln_1), "qkv": _packed(b.self_attention), "proj": _pair(b.self_attention.out_proj),
         "norm2": _pair(b.ln_2), "fc1": _pair(b.mlp[0]), "fc2": _pair(b.mlp[3])}
        for b in m.encoder.layers
    ]  # fmt: skip
    return Weights(_pair(m.conv_proj), m.class_token.double().detach(), m.encoder.pos_embedding.double().detach(),
                   blocks, _pair(m.encoder.ln), _pair(m.heads.head), 3, m.encoder.ln.eps)  # fmt: skip


@dataclass
class Trace:
    """What one forward pass of one image left behind."""

    weights: Weights
    image: Tensor
    patches: Tensor = field(init=False)
    start: Tensor = field(init=False)
    blocks: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        w = self.weights
        size = w.patch[0].shape[-1]
        self.patches = F.conv2d(self.image[None], *w.patch, stride=size)[0].flatten(1).T  # P D
        x = torch.cat([w.class_token.reshape(1, -1), self.patches])
        x = x + w.position[0]
        self.embedded = torch.cat([w.class_token.reshape(1, -1), self.patches])
        self.start = x
        for block in w.blocks:
            s: dict[str, Tensor] = {"x": x}
            n, d = x.shape
            s["n1"] = F.layer_norm(x, (d,), *block["norm1"], w.eps)
            q, k, v = F.linear(s["n1"], *block["qkv"]).reshape(n, 3, w.heads, d // w.heads).permute(1, 2, 0, 3)
            scores = q @ k.transpose(1, 2)
            a = (scores * (d // w.heads) ** -0.5).softmax(-1)
            if not a.requires_grad:
                a.requires_grad_()
            s |= {"q": q, "k": k, "v": v, "scores": scores, "a": a, "o": a @ v}
            s["merged"] = s["o"].permute(1, 0, 2).reshape(n, d)
            s["attended"] = F.linear(s["merged"], *block["proj"])
            s["y"] = x + s["attended"]
            s["n2"] = F.layer_norm(s["y"], (d,), *block["norm2"], w.eps)
            s["g"] = F.gelu(F.linear(s["n2"], *block["fc1"]))
            s["m"] = F.linear(s["g"], *block["fc2"])
            x = s["y"] + s["m"]
            s["z"] = x
            self.blocks.append(s)
        self.last = F.layer_norm(x, (x.shape[1],), *w.norm, w.eps)
        self.logits = F.linear(self.last[0], *w.head)


def _over(r: Tensor, z: Tensor) -> Tensor:
    return torch.where(z == 0, 0.0, r / (z + EPS))


def _linear(x: Tensor, weight: Tensor, r: Tensor, original: bool) -> Tensor:
    xp, xn, wp, wn = x.clamp(min=0), x.clamp(max=0), weight.clamp(min=0), weight.clamp(max=0)
    z1, z2 = xp @ wp.T, xn @ wn.T
    s1, s2 = (_over(r, z1), _over(r, z2)) if original else (_over(r, z1 + z2),) * 2
    return xp * (s1 @ wp) + xn * (s2 @ wn)


def _add(a: Tensor, b: Tensor, r: Tensor, original: bool) -> tuple[Tensor, Tensor]:
    ra, rb = a * _over(r, a + b), b * _over(r, a + b)
    if original:
        return ra, rb
    sa, sb = ra.sum(), rb.sum()
    total = sa.abs() + sb.abs()
    return ra * _over(_over(sa.abs(), total) * r.sum(), sa), rb * _over(_over(sb.abs(), total) * r.sum(), sb)


def relevance(trace: Trace, target: int, original: bool) -> tuple[list[Tensor], Tensor]:
    """R_A of every block, and the relevance of the pixels summed over channels."""
    w = trace.weights
    maps: list[Tensor] = []
    r = torch.zeros_like(trace.logits)
    r[target] = 1
    with torch.no_grad():
        first = _linear(trace.last[:1], w.head[0], r[None], original)
        r = torch.zeros_like(trace.last)
        r[0] = trace.last[0] * _over(first[0], trace.last[0])
        for block, s in zip(reversed(w.blocks), reversed(trace.blocks), strict=True):
            to_y, to_m = _add(s["y"], s["m"], r, original)
            to_m = _linear(s["g"], block["fc2"][0], to_m, original)
            to_m = _linear(s["n2"], block["fc1"][0], to_m, original)
            r = s["y"] * _over(to_y + to_m, s["y"])
            to_x, to_attended = _add(s["x"], s["attended"], r, original)
            merged = _linear(s["merged"], block["proj"][0], to_attended, original)
            n, d = merged.shape
            share = _over(merged.reshape(n, w.heads, d // w.heads).permute(1, 0, 2), s["o"])
            to_a = s["a"] * (share @ s["v"].transpose(1, 2)) / 2
            to_v = s["v"] * (s["a"].transpose(1, 2) @ share) / 2
            maps.insert(0, to_a)
            share = _over(to_a, s["scores"])
            to_q, to_k = s["q"] * (share @ s["k"]) / 2, s["k"] * (share.transpose(1, 2) @ s["q"]) / 2
            qkv_out = torch.stack([to_q, to_k, to_v]).permute(2, 0, 1, 3).reshape(n, 3 * d)
            back = _linear(s["n1"], block["qkv"][0], qkv_out, original)
            r = s["x"] * _over(to_x + back, s["x"])
        r, _ = _add(trace.embedded, w.position[0], r, original)
        return maps, _pixels(trace, r[1:])


def _pixels(trace: Trace, r: Tensor) -> Tensor:
    """z^B, patch by patch: bounds are the least and largest value of the image."""
    weight, image = trace.weights.patch[0], trace.image
    size = weight.shape[-1]
    flat = weight.flatten(1)
    low, high = image.min(), image.max()
    result = torch.zeros(image.shape[1:], dtype=torch.float64)
    cols = image.shape[2] // size
    for index, row in enumerate(r):
        at = (
            slice(index // cols * size, index // cols * size + size),
            slice(index % cols * size, (index % cols + 1) * size),
        )
        x = image[:, *at].reshape(-1)
        wp, wn = flat.clamp(min=0), flat.clamp(max=0)
        z = flat @ x - wp.sum(1) * low - wn.sum(1) * high + EPS
        s = row / z
        share = x * (s @ flat) - low * (s @ wp) - high * (s @ wn)
        result[at] = share.reshape(image.shape[0], size, size).sum(0)
    return result


def gradients(trace: Trace, target: int) -> list[Tensor]:
    return list(torch.autograd.grad(trace.logits[target], [s["a"] for s in trace.blocks], retain_graph=True))


def rollout(matrices: list[Tensor], start: int) -> Tensor:
    """The class token's row of ∏ (I + M), at the patches."""
    product = torch.eye(matrices[0].shape[-1], dtype=torch.float64)
    for matrix in matrices[start:]:
        product = (torch.eye(len(matrix), dtype=torch.float64) + matrix) @ product
    return product[0, 1:].detach()


def tattr(trace: Trace, target: int, start: int = 0, original: bool = False) -> Tensor:
    maps, _ = relevance(trace, target, original)
    weighted = [(g * r).clamp(min=0).mean(0) for g, r in zip(gradients(trace, target), maps, strict=True)]
    return rollout(weighted, start)


def attn_gradcam(trace: Trace, target: int) -> Tensor:
    a, g = trace.blocks[-1]["a"].detach(), gradients(trace, target)[-1]
    return (a[:, 0, 1:] * g[:, 0, 1:].mean(dim=1, keepdim=True)).mean(0)


def gamma_linear(x: Tensor, weight: Tensor, bias: Tensor, gamma: float, r: Tensor) -> Tensor:
    """The γ-rule for inputs of either sign (as in zennit), from relevance to relevance, product by product."""
    xp, xn = x.clamp(min=0), x.clamp(max=0)
    up, down = weight + gamma * weight.clamp(min=0), weight + gamma * weight.clamp(max=0)
    y = x @ weight.T + bias
    for_positive = xp @ up.T + xn @ down.T + bias + gamma * bias.clamp(min=0)
    for_negative = xp @ down.T + xn @ up.T + bias + gamma * bias.clamp(max=0)
    sp = torch.where(y > 0, r / (for_positive + 1e-6), 0.0)
    sn = torch.where(y < 0, r / (for_negative - 1e-6), 0.0)
    return xp * (sp @ up + sn @ down) + xn * (sp @ down + sn @ up)


def pa_lrp(trace: Trace, target: int, conv_gamma: float, linear_gamma: float, cp: bool) -> Tensor:
    """AttnLRP of the pixels, and the position's part of what reaches each patch, in even shares."""
    result = attn_lrp(trace, target, conv_gamma, linear_gamma, cp)
    return result + attn_lrp(trace, target, conv_gamma, linear_gamma, cp, positions=True)


def attn_lrp(
    trace: Trace, target: int, conv_gamma: float, linear_gamma: float, cp: bool, positions: bool = False
) -> Tensor:
    """AttnLRP or CP-LRP of the pixels or of the positions, in relevances all the way down (no gradients)."""
    w = trace.weights
    with torch.no_grad():
        r = torch.zeros_like(trace.logits)
        r[target] = trace.logits[target]
        row = gamma_linear(trace.last[:1], *w.head, linear_gamma, r[None])
        r = torch.zeros_like(trace.last)
        r[0] = row[0]
        x_last = trace.blocks[-1]["z"]
        r = _norm(x_last, trace.last, w.norm, w.eps, r)
        for block, s in zip(reversed(w.blocks), reversed(trace.blocks), strict=True):
            g = r / s["z"]
            to_m = gamma_linear(s["g"], *block["fc2"], linear_gamma, g * s["m"])
            to_m = gamma_linear(s["n2"], *block["fc1"], linear_gamma, to_m)
            to_m = _norm(s["y"], s["n2"], block["norm2"], w.eps, to_m)
            r = g * s["y"] + to_m
            g = r / s["y"]
            n, d = s["x"].shape
            g_merged = (g @ block["proj"][0]).reshape(n, w.heads, d // w.heads).permute(1, 0, 2)
            a, q, k, v = s["a"], s["q"], s["k"], s["v"]
            g_v = a.transpose(1, 2) @ g_merged
            if cp:
                flows = torch.stack([torch.zeros_like(q), torch.zeros_like(k), g_v])
            else:
                g_a = g_merged @ v.transpose(1, 2)
                g_s = a * (g_a - (a * g_a).sum(-1, keepdim=True)) * (d // w.heads) ** -0.5
                flows = torch.stack([g_s @ k / 4, g_s.transpose(1, 2) @ q / 4, g_v / 2])
            g_n1 = flows.permute(2, 0, 1, 3).reshape(n, 3 * d) @ block["qkv"][0]
            r = g * s["x"] + _norm(s["x"], s["n1"], block["norm1"], w.eps, g_n1 * s["n1"])
        g = (r / trace.start)[1:]
        weight, bias = w.patch[0].flatten(1), w.patch[1]
        size = w.patch[0].shape[-1]
        if positions:
            # r at z = x + p splits into r x / z and r p / z.
            share = ((r / trace.start) * w.position[0])[1:].sum(-1) / size**2
            return F.fold(share.expand(size**2, -1)[None], trace.image.shape[1:], size, stride=size)[0, 0]
        unfolded = F.unfold(trace.image[None], size, stride=size)[0].T
        pixels = gamma_linear(unfolded, weight, bias, conv_gamma, g * trace.patches)
        return F.fold(pixels.T[None], trace.image.shape[1:], size, stride=size)[0].sum(0)


def _norm(x: Tensor, y: Tensor, affine: tuple[Tensor, Tensor], eps: float, r: Tensor) -> Tensor:
    """(x − mean) / [σ] · weight + bias with σ constant, as a linear map of x by the ε-rule."""
    scale = (x.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    g = r / y * affine[0]
    return x * scale * (g - g.mean(-1, keepdim=True))
