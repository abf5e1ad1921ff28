"""CAM, Grad-ECLIP, LeGrad, AttCAT and FullGrad+ written out literally in float64, layers found by their known names.

Shares no code with `vitrail`; attention and gradient modes come from `reference.capture`.
"""

from collections.abc import Callable

import reference
import torch
from families import FAMILIES
from torch import Tensor, nn

# (last block's first norm, blocks, what turns a token into logits)
NORM = {
    "timm_vit": "blocks.2.norm1",
    "timm_vit_average": "blocks.2.norm1",
    "timm_vit_non_square": "blocks.2.norm1",
    "timm_deit_distilled": "blocks.2.norm1",
    "timm_dinov2_registers": "blocks.2.norm1",
    "timm_eva02": "blocks.2.norm1",
    "timm_siglip": "blocks.2.norm1",
    "torchvision_vit": "encoder.layers.encoder_layer_2.ln_1",
    "open_clip": "transformer.resblocks.2.ln_1",
    "user_written_out": "blocks.2.norm1",
    "user_encoder": "blocks.layers.2.norm1",
}
BLOCKS = {
    "timm_vit": "blocks",
    "timm_vit_average": "blocks",
    "timm_deit_distilled": "blocks",
    "timm_eva02": "blocks",
    "torchvision_vit": "encoder.layers",
    "user_written_out": "blocks",
    "user_non_square": "blocks",
}
HEAD: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "timm_vit": lambda m: lambda z: m.head(m.norm(z)),
    "timm_vit_average": lambda m: lambda z: m.head(m.fc_norm(m.norm(z))),
    "torchvision_vit": lambda m: lambda z: m.heads(m.encoder.ln(z)),
    "user_written_out": lambda m: lambda z: m.head(m.norm(z)),
}
QKV_AND_PROJECTION = {
    "timm_vit": ("blocks.2.attn.qkv", "blocks.2.attn.proj"),
    "timm_vit_average": ("blocks.2.attn.qkv", "blocks.2.attn.proj"),
    "timm_deit_distilled": ("blocks.2.attn.qkv", "blocks.2.attn.proj"),
    "user_non_square": ("blocks.3.attention.qkv", "blocks.3.attention.out"),
}


def features(name: str, layer: str, target: int, gradient: str) -> tuple[Tensor, Tensor]:
    """The layer's output and the gradient of the target's logit there, at the patches of one image."""
    family = FAMILIES[name]
    module, kept = family.build(), []
    module.get_submodule(layer).register_forward_hook(lambda *hooked: kept.append(hooked[-1]))
    captured = reference.capture(module, family.images(1), gradient)
    (grad,) = torch.autograd.grad(captured.logits[0, target], kept[:1])
    return kept[0][0, family.prefix :].detach(), grad[0, family.prefix :]


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    weights = [sum(g[p, c] for p in range(len(g))) / len(g) for c in range(a.shape[1])]
    return torch.stack([sum(weights[c] * a[p, c] for c in range(a.shape[1])) for p in range(len(a))])


def finercam(name: str, target: int, references: int, alpha: float, relu: bool, released: bool) -> Tensor:
    """The mean of the Grad-CAMs of l_t − α l_d over the classes d nearest to t; or of the released code's objective."""
    family = FAMILIES[name]
    module, kept = family.build(), []
    module.get_submodule(NORM[name]).register_forward_hook(lambda *hooked: kept.append(hooked[-1]))
    logits = reference.capture(module, family.images(1)).logits[0]
    others = sorted((d for d in range(len(logits)) if d != target), key=lambda d: abs(logits[d] - logits[target]))
    others = others[:references]

    def cam(scalar: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(scalar, kept[:1], retain_graph=True)
        found = gradcam(kept[0][0, family.prefix :].detach(), grad[0, family.prefix :])
        return torch.maximum(found, torch.zeros(())) if relu else found

    if released:
        weights = {d: torch.exp(logits[d]) / sum(torch.exp(one) for one in logits) for d in others}
        total = sum(weights[d] * (logits[target] - alpha * logits[d]) for d in others)
        return cam(total / (sum(weights.values()) + 1e-9))
    return sum(cam(logits[target] - alpha * logits[d]) for d in others) / len(others)


def cdam(a: Tensor, g: Tensor) -> Tensor:
    return torch.stack([sum(token[c] * grad[c] for c in range(len(token))) for token, grad in zip(a, g, strict=True)])


def layercam(a: Tensor, g: Tensor) -> Tensor:
    return (torch.maximum(g, torch.zeros_like(g)) * a).sum(1)


def hirescam(a: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("pc,pc->p", a, g)


def gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    total = a.sum(0)
    weights = torch.zeros(a.shape[1], dtype=a.dtype)
    for c in range(a.shape[1]):
        for p in range(a.shape[0]):
            if g[p, c] > 0:
                weights[c] += g[p, c] ** 3 / (2 * g[p, c] ** 2 + total[c] * g[p, c] ** 3 + 1e-6)
    return a @ weights


def xgradcam(a: Tensor, g: Tensor) -> Tensor:
    return a @ ((g * a).sum(0) / (a.sum(0) + 1e-7))


def eigencam(a: Tensor) -> Tensor:
    """By the eigenvectors of the covariance, and not by a singular value decomposition."""
    centred = a - a.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    projection = centred @ vectors[:, -1]
    return projection * projection[projection.abs().argmax()].sign()


def grad_eclip(name: str, target: int) -> Tensor:
    """Signed, on the true heads, for one image; the sum over the queries that the head reads."""
    family = FAMILIES[name]
    module, qkv, before = family.build(), [], []
    projection, output = QKV_AND_PROJECTION[name]
    module.get_submodule(projection).register_forward_hook(lambda *hooked: qkv.append(hooked[-1]))
    module.get_submodule(output).register_forward_pre_hook(lambda _, args: before.append(args[0]))
    captured = reference.capture(module, family.images(1))
    (grad,) = torch.autograd.grad(captured.logits[0, target], before[:1])
    q, k, v = qkv[0][0].detach().chunk(3, dim=1)
    patches = family.grid[0] * family.grid[1]
    read = {"class": [0], "distilled": [0, 1], "mean": range(family.prefix, family.prefix + patches)}[family.readout]
    total = torch.zeros(patches, dtype=torch.float64)
    for i in read:
        cosine = torch.stack([torch.cosine_similarity(q[i], k[family.prefix + j], dim=0) for j in range(patches)])
        scaled = (cosine - cosine.min()) / (cosine.max() - cosine.min())
        total += torch.stack([(grad[0, i] * v[family.prefix + j]).sum() * scaled[j] for j in range(patches)])
    return total


def legrad(name: str, target: int, first: int, released: bool) -> Tensor:
    family = FAMILIES[name]
    module, outputs = family.build(), []
    for block in module.get_submodule(BLOCKS[name]).children():
        block.register_forward_hook(lambda *hooked: outputs.append(hooked[-1]))
    captured = reference.capture(module, family.images(1))
    head = HEAD[name](module)
    total = torch.zeros(family.tokens, dtype=torch.float64)
    for layer in range(first, family.depth):
        logits = head(outputs[layer].mean(dim=1))[0]
        if released:
            logits = logits - head.__closure__[0].cell_contents.head.bias
            logits = logits / logits.norm()
        (grad,) = torch.autograd.grad(logits[target], captured.maps[layer], retain_graph=True)
        total += torch.maximum(grad[0], torch.zeros(())).mean(dim=(0, 1))
    return total[family.prefix :]


def block_inputs(name: str, target: int, gradient: str) -> tuple[list[Tensor], list[Tensor]]:
    """Σ_c x_l ⊙ ∂s/∂x_l of every block's input, and A_l averaged over heads and queries; whole tokens of one image."""
    family = FAMILIES[name]
    module, inputs = family.build(), []
    for block in module.get_submodule(BLOCKS[name]).children():
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    captured = reference.capture(module, family.images(1), gradient)
    grads = torch.autograd.grad(captured.logits[0, target], inputs)
    products = [(x * g).sum(2)[0].detach() for x, g in zip(inputs, grads, strict=True)]
    return products, [m[0].mean(dim=(0, 1)).detach() for m in captured.maps]


def bicam(name: str, target: int, gradient: str, share: float = 2 / 3) -> Tensor:
    """Σ_l mean_h Σ_q r_q A_hqj G_hqj over the last blocks; where queries pool the tokens, r is uniform in blocks."""
    family = FAMILIES[name]
    captured = reference.capture(family.build(), family.images(1), gradient)
    gradients = captured.gradients(captured.logits[0, target])
    patches = family.grid[0] * family.grid[1]
    first = int(family.depth * (1 - share) + 1e-9)
    total = torch.zeros(family.tokens, dtype=torch.float64)
    for layer, (attention, grad) in enumerate(zip(captured.maps, gradients, strict=True)):
        _, heads, queries, _ = attention.shape
        row = reference.readout(family.readout, family.prefix, patches, queries)
        if family.readout == "pool" and queries == family.tokens:
            row = torch.full((queries,), 1 / queries, dtype=torch.float64)
        for h in range(heads):
            for q in range(queries):
                if layer >= first:
                    total += row[q] * attention[0, h, q].detach() * grad[0, h, q] / heads
    return total[family.prefix :]


def attention_value_gradient(name: str, target: int, blocks: list[str]) -> Tensor:
    """Σ_l mean_h A_h0j ⟨v_hj, ∂s/∂o_h0⟩ for the named `qkv`, `proj` of a family that reads its class token."""
    family = FAMILIES[name]
    module, qkv, before = family.build(), [], []
    for block in blocks:
        module.get_submodule(f"{block}.qkv").register_forward_hook(lambda *hooked: qkv.append(hooked[-1]))
        module.get_submodule(f"{block}.proj").register_forward_pre_hook(lambda _, args: before.append(args[0]))
    captured = reference.capture(module, family.images(1))
    total = torch.zeros(family.tokens, dtype=torch.float64)
    grads = torch.autograd.grad(captured.logits[0, target], before)
    for attention, values, grad in zip(captured.maps[-len(blocks) :], qkv, grads, strict=True):
        v, g = (t[0].detach().unflatten(1, (family.heads, -1)) for t in (values.chunk(3, dim=2)[2], grad))
        for h in range(family.heads):
            total += attention[0, h, 0].detach() * (v[:, h] @ g[0, h]) / family.heads
    return total[family.prefix :]


def caap(name: str, target: int, chosen: list[int]) -> Tensor:
    """The logit of an image of zeros with one patch's tokens in the chosen blocks, less that of the zeros alone."""
    family = FAMILIES[name]
    module, images = family.build().double(), family.images(1).double()
    blocks = [list(module.get_submodule(BLOCKS[name]).children())[number] for number in chosen]
    patches = family.grid[0] * family.grid[1]

    def logit(picture: Tensor, hooks: list) -> Tensor:
        handles = [b.register_forward_pre_hook(hook) for b, hook in zip(blocks, hooks, strict=False)]
        with torch.no_grad():
            found = module(picture)[0, target]
        for handle in handles:
            handle.remove()
        return found

    seen: list[Tensor] = []
    logit(images, [lambda _, args: seen.append(args[0].clone())] * len(blocks))
    nothing = logit(0 * images, [])
    total = torch.zeros(patches, dtype=torch.float64)
    for j in range(patches):
        at = family.prefix + j

        def swap(x: Tensor, at: int = at) -> Callable:
            def hook(_: nn.Module, args: tuple) -> tuple:
                return (torch.cat([args[0][:, :at], x[:, at : at + 1], args[0][:, at + 1 :]], dim=1), *args[1:])

            return hook

        total[j] = logit(0 * images, [swap(x) for x in seen]) - nothing
    return total


def var(
    name: str, target: int, classes: int, temperature: float, threshold: float, against: int | None = None
) -> Tensor:
    """The target's complete map under libra times its share of several classes' maps, where that is above chance."""
    family = FAMILIES[name]
    captured = reference.capture(family.build(), family.images(1), "libra")
    logits = captured.logits[0].tolist()
    ranked = sorted(range(len(logits)), key=lambda c: -logits[c])
    compared = [*ranked[:classes], ranked[-1]]
    if target not in compared:
        compared = [target, *ranked[:classes]]
    if against is not None:
        compared = [target, against]
    maps = {}
    for c in compared:
        g = captured.gradients(captured.logits[0, c])
        a = [m.detach() for m in captured.maps[: len(g)]]
        row = reference.readout(family.readout, family.prefix, family.grid[0] * family.grid[1], a[-1].shape[-2])
        maps[c] = reference.complete(a, g, family.prefix, row)[0]
    largest = max(float(m.abs().max()) for m in maps.values())
    result = torch.zeros_like(maps[target])
    for j in range(len(result)):
        powers = {c: torch.exp(temperature * maps[c][j].abs() / largest) for c in compared}
        share = powers[target] / sum(powers.values())
        if share - 1 / len(compared) > threshold:
            result[j] = maps[target][j] * share
    return result


def dave(name: str, target: int, shifts: list[tuple[int, int]], reach: int, blur: float) -> Tensor:
    """Input times the libra gradient of the moved image, moved back, averaged over the shifts, smoothed; image 0."""
    family = FAMILIES[name]
    images = family.images(1).double()
    height, width = images.shape[-2:]
    total, seen = torch.zeros(height, width, dtype=torch.float64), torch.zeros(height, width)

    def inside(place: int, size: int) -> int:
        place = -place if place < 0 else place
        return 2 * (size - 1) - place if place >= size else place

    for down, right in shifts:
        rows = [inside(y - down, height) for y in range(height)]
        cols = [inside(x - right, width) for x in range(width)]
        moved = images[:, :, rows][..., cols].clone().requires_grad_()
        captured = reference.capture(family.build(), moved, "libra")
        (gradient,) = torch.autograd.grad(captured.logits[0, target], moved)
        products = (moved * gradient)[0].sum(0).detach()
        for y in range(height):
            for x in range(width):
                if 0 <= y + down < height and 0 <= x + right < width:
                    total[y, x] += products[y + down, x + right]
                    seen[y, x] += 1
    mean = total / seen
    if not blur:
        return mean
    reach = int(-(-3 * blur // 1))
    offsets = range(-reach, reach + 1)
    weights = {(i, j): torch.exp(torch.tensor(-(i * i + j * j) / (2 * blur * blur)).double()) for i in offsets for j in offsets}  # fmt: skip  # noqa: E501
    result = torch.zeros_like(mean)
    for (i, j), weight in weights.items():
        rows = [inside(y + i, height) for y in range(height)]
        cols = [inside(x + j, width) for x in range(width)]
        result += weight * mean[rows][:, cols]
    return result / sum(weights.values())
