"""The integrated methods written out slowly, in float64, one image at a time, every matrix whole.

Shares no code with `vitrail`. Attention is captured, and replaced where a method scales it, by putting a Python
function in the place of PyTorch's own for one forward pass.
"""

from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def run(module: nn.Module, image: Tensor, given: dict[int, Tensor] | None = None, held: bool = False):
    """Logits and all A of one image; layer l is `given[l]`; `held` keeps gradients from flowing through A."""
    maps: list[Tensor] = []

    def keep(attention: Tensor) -> Tensor:
        attention = (given or {}).get(len(maps), attention)
        if held:
            attention = attention.detach()
        if not attention.requires_grad:
            attention = attention.detach().requires_grad_()
        maps.append(attention)
        return attention

    def sdpa(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        return keep(plain(scores if attn_mask is None else scores + attn_mask, -1)) @ value

    def softmax(self, dim=None, *args, **kwargs):
        result = tensor_softmax(self, dim, *args, **kwargs)
        return keep(result) if result.dim() == 4 else result

    plain, tensor_softmax = torch.softmax, Tensor.softmax
    with (
        mock.patch.object(F, "scaled_dot_product_attention", sdpa),
        mock.patch.object(Tensor, "softmax", softmax),
    ):
        output = module(image)
    return (output if isinstance(output, Tensor) else output.logits)[0], maps


def gradients(logit: Tensor, maps: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(logit, maps, allow_unused=True)
    return [(torch.zeros_like(a) if g is None else g)[0] for a, g in zip(maps, found, strict=True)]


def feedback(module: nn.Module, image: Tensor, target: int, samples: int) -> Tensor:
    """F = E_h[(mean_α G^L(αx))⁺], (queries, keys)."""
    total = 0
    for alpha in torch.linspace(0, 1, samples, dtype=torch.float64).tolist():
        logits, maps = run(module, alpha * image)
        total = total + gradients(logits[target], maps[-1:])[0]
    return (total / samples).clamp(min=0).mean(0)


def tam(module: nn.Module, image: Tensor, target: int, row: Tensor, samples: int, start: int) -> Tensor:
    _, maps = run(module, image)
    a = [m.detach()[0].mean(0) for m in maps]
    u = a[-1]
    for layer in range(len(a) - 2, start - 1, -1):
        u = u @ a[layer] + u
    return row @ (u * feedback(module, image, target, samples))


def perceive(factors: list[Tensor]) -> Tensor:
    """R ← R + Ā R from I; a pooling layer has no identity."""
    r = torch.eye(factors[0].shape[1], dtype=torch.float64)
    for factor in factors:
        r = r + factor @ r if factor.shape[0] == factor.shape[1] else factor @ r
    return r


def bi_head(module: nn.Module, image: Tensor, target: int, row: Tensor, samples: int, start: int) -> Tensor:
    logits, maps = run(module, image)
    factors = []
    for a, g in zip([m.detach()[0] for m in maps], gradients(logits[target], maps), strict=True):
        importance = torch.stack([(a_h.T @ g_h).abs().mean() for a_h, g_h in zip(a, g, strict=True)])
        theta = importance / importance.sum()
        factors.append(sum(t * a_h for t, a_h in zip(theta, a, strict=True)))
    return row @ (perceive(factors[start:]) * feedback(module, image, target, samples))


def bi_token(
    module: nn.Module, image: Tensor, target: int, row: Tensor, samples: int, start: int, gains: list[Tensor]
) -> Tensor:
    _, maps = run(module, image)
    factors = [m.detach()[0].mean(0) @ torch.diag(gain) for m, gain in zip(maps, gains, strict=True)]
    return row @ (perceive(factors[start:]) * feedback(module, image, target, samples))


def path(
    module: nn.Module,
    image: Tensor,
    target: int,
    block: int,
    source: int,
    steps: int,
    held: bool = False,
) -> list[Tensor]:
    """M^l = E_h[mean_α (A ⊙ G)⁺], block's attention being α times source's."""
    _, own = run(module, image)
    total = [0] * len(own)
    for step in range(steps + 1):
        logits, maps = run(module, image, {block % len(own): own[source].detach() * (step / steps)}, held)
        for layer, (a, g) in enumerate(zip(maps, gradients(logits[target], maps), strict=True)):
            total[layer] = total[layer] + (a.detach()[0] * g).clamp(min=0).mean(0) / (steps + 1)
    return total


def rollout(matrices: list[Tensor], row: Tensor) -> Tensor:
    """The row of ∏ (I + M)/rowsum less the same product with the identities alone; no identity where tokens pool."""
    product = alone = torch.eye(matrices[0].shape[1], dtype=torch.float64)
    for m in matrices:
        if m.shape[0] != m.shape[1]:
            product, alone = m @ product, torch.zeros_like(m)
            continue
        eye = torch.eye(m.shape[0], dtype=torch.float64)
        sums = (eye + m).sum(1, keepdim=True)
        product, alone = (eye + m) / sums @ product, eye / sums @ alone
    return row @ (product - alone)


def dix(module, image, target, row, samples, released=False, held=False) -> Tensor:
    first = path(module, image, target, -1, -1, samples, held)
    second = path(module, image, target, -2, -1 if released else -2, samples, held)
    return rollout(first, row) + rollout(second, row)


def iia(module, image, target, row, samples) -> Tensor:
    outer = [path(module, image * (step / samples), target, -1, -1, samples) for step in range(samples + 1)]
    return rollout([sum(ms) / (samples + 1) for ms in zip(*outer, strict=True)], row)


Parts = list[tuple[nn.Module, nn.Module, Tensor]]  # (norm in front, module that gives the values, W_O) of each layer


def tokens_and_values(module: nn.Module, image: Tensor, parts: Parts) -> list[tuple[Tensor, Tensor]]:
    """The tokens z before the norm and the values z W_V of each layer, (tokens, width)."""
    found: list[tuple[Tensor, Tensor]] = []
    for norm, source, weight in parts:
        seen: dict[str, Tensor] = {}
        width = weight.shape[1]
        handles = [
            norm.register_forward_pre_hook(lambda _m, args, s=seen: s.update(z=args[0])),
            norm.register_forward_hook(lambda _m, _a, out, s=seen: s.update(y=out)),
        ]
        if isinstance(source, nn.MultiheadAttention):

            def values(s=seen, m=source, w=width):
                return s["y"] @ m.in_proj_weight[2 * w :].T + m.in_proj_bias[2 * w :]
        else:
            handles.append(source.register_forward_hook(lambda _m, _a, out, s=seen: s.update(v=out)))

            def values(s=seen, w=width):
                return s["v"][..., -w:]

        with torch.no_grad():
            module(image)
            found.append((seen["z"][0], values()[0]))
        for handle in handles:
            handle.remove()
    return found


def token_gains(module: nn.Module, image: Tensor, parts: Parts) -> list[Tensor]:
    """‖z_j W_V W_O‖ / ‖z_j‖ of each layer."""
    pairs = zip(tokens_and_values(module, image, parts), parts, strict=True)
    return [(v @ weight.T).norm(dim=-1) / z.norm(dim=-1) for (z, v), (_, _, weight) in pairs]


def norm_rollout(module: nn.Module, image: Tensor, row: Tensor, start: int, parts: Parts) -> Tensor:
    """The row of ∏ (I + N) / 2, N_ij = Σ_h ‖A_hij v_hj W_O,h‖ divided by its row's sum; N alone where tokens pool."""
    _, maps = run(module, image)
    for (_, v), (_, _, weight), found in zip(
        reversed(tokens_and_values(module, image, parts)[start:]), reversed(parts[start:]), reversed(maps), strict=False
    ):
        a = found.detach()[0]
        heads, queries, keys = a.shape
        size = v.shape[1] // heads
        n = torch.zeros(queries, keys, dtype=a.dtype)
        for h in range(heads):
            columns = slice(h * size, (h + 1) * size)
            moved = v[:, columns] @ weight[:, columns].T  # f(x_j)
            for i in range(queries):
                n[i] += (a[h, i, :, None] * moved).norm(dim=-1)
        n = n / n.sum(1, keepdim=True)
        row = row @ (n + torch.eye(queries, dtype=a.dtype)) / 2 if queries == keys else row @ n
    return row


def transformation(before: Tensor, after: Tensor) -> Tensor:
    """diag(‖y‖ / ‖x‖ · softmax over tokens of cos(x, y))."""
    cosine = [torch.dot(x, y) / (x.norm() * y.norm()) for x, y in zip(before, after, strict=True)]
    weight = torch.stack(cosine).exp() / torch.stack(cosine).exp().sum()
    return torch.diag(after.norm(dim=-1) / before.norm(dim=-1) * weight)


def tokentm(
    module: nn.Module, image: Tensor, target: int, row: Tensor, parts: list[tuple[nn.Module, nn.Module]], identity: bool
) -> Tensor:
    """The row of U_L … U_1 ‖x_0‖, U = (I + W_mlp)(I + E_h[A] W_attention ⊙ E_h[G⁺]); `parts` are blocks, second norms.

    Attention that pools the tokens is U = E_h[A] ⊙ E_h[G⁺]. Without `identity`, U without attention is subtracted.
    """
    seen: list[list[Tensor]] = []
    handles = []
    for block, norm in parts:
        handles += [
            block.register_forward_pre_hook(lambda _m, args: seen.append([args[0][0].detach().clone()])),
            norm.register_forward_pre_hook(lambda _m, args: seen[-1].append(args[0][0].detach().clone())),
            block.register_forward_hook(lambda _m, _a, out: seen[-1].append(out[0].detach().clone())),
        ]
    logits, maps = run(module, image)
    for handle in handles:
        handle.remove()
    contribution = torch.diag(seen[0][0].norm(dim=-1))
    alone = contribution
    for layer, (a, g) in enumerate(zip([m.detach()[0] for m in maps], gradients(logits[target], maps), strict=True)):
        mixed, kept = a.mean(0), g.clamp(min=0).mean(0)
        if layer == len(parts):
            contribution, alone = (mixed * kept) @ contribution, 0 * (mixed * kept)
            continue
        before, between, after = seen[layer]
        eye = torch.eye(len(before), dtype=torch.float64)
        grown = eye + transformation(between, after)
        contribution = grown @ (eye + mixed @ transformation(before, between) * kept) @ contribution
        alone = grown @ alone
    return row @ contribution if identity else row @ (contribution - alone)
