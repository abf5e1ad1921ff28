"""The leaderboard: every method, and maps of other packages as these compute them, by the same protocols and images.

    python -m benchmarks.leaderboard photos/ --boxes boxes.csv --limit 300 --output run/
    vitrail report run/

The same command resumes an interrupted run. torchxai is `pip install torchxai-explain`. HiLRP (`pip install hilrp`, of
Python 3.11.11 and newer, with `transformers<5.4`) replaces parts of PyTorch and timm for its whole process, so that it
is asked in one of its own; where it needs another environment, `--only peer_hilrp --output run-hilrp/` there, and
`vitrail report run/ run-hilrp/`.

- peer_gradcam: pytorch-grad-cam's `GradCAM` at the last block's first norm, as its page on vision transformers has it.
- peer_integrated_gradients: Captum's `IntegratedGradients`, 20 steps from zero in the units of the normalised image.
- peer_transformer_attribution: torchxai's `TransformerAttribution`.
- peer_hilrp: HiLRP's `attribute` with its own rules for plain vision transformers.
"""

import argparse
import atexit
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import vitrail
from vitrail.evaluate.runner import evaluate
from vitrail.methods.context import AttributionContext
from vitrail.methods.registry import register_method

MODEL = "timm/vit_tiny_patch16_224"
PROTOCOLS = ("perturbation", "insertion", "deletion", "pointing", "energy")
MODES = ("complete:full", "complete:libra", "complete:gim", "gae:libra", "gae:gim")
STEP = 3584  # pixels, in insertion and deletion: 14 steps
PACKAGES = {
    "peer_gradcam": "pytorch_grad_cam",
    "peer_integrated_gradients": "captum",
    "peer_transformer_attribution": "torchxai",
    "peer_hilrp": "hilrp",
}
Peer = Callable[[Any, Tensor, int], Tensor]  # module, one image in a batch, class -> map of the pixels


PEERS: dict[str, Peer] = {}  # by the row's name
REGISTER: list[Callable[[], object]] = []


def installed() -> dict[str, Peer]:
    """The peers whose packages are installed."""
    return {name: ask for name, ask in PEERS.items() if find_spec(PACKAGES[name])}


def peer(name: str, signed: bool, passes: str) -> Callable[[Peer], Peer]:
    """Makes a method of another package's map, asked image by image and class by class; `main` registers it."""

    def kept(ask: Peer) -> Peer:
        def method(context: AttributionContext) -> Tensor:
            context.record()  # the logits, and the classes where none is named
            module, images = context.model.module, context.images
            found = []
            for image, classes in zip(images, context.targets.index.tolist(), strict=True):
                with torch.enable_grad():
                    maps = [ask(module, image[None].clone(), number).detach() for number in classes]
                found.append(torch.stack([one.reshape(image.shape[-2:]).float() for one in maps])[None])
            return torch.cat(found)

        method.__doc__ = ask.__doc__
        registered = register_method(
            f"peer_{name}",
            signed=signed,
            class_specific=True,
            uses_gradient=False,  # of ours: their own pass is what it is
            passes=passes,
            level="pixel",
            reference="another package",
        )
        REGISTER.append(partial(registered, method))
        PEERS[f"peer_{name}"] = ask
        return ask

    return kept


@peer("gradcam", signed=False, passes="1F 1B")
def gradcam(module: Any, image: Tensor, number: int) -> Tensor:
    """The map of pytorch-grad-cam."""
    package: Any = import_module("pytorch_grad_cam")
    target: Any = import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(number)
    side = module.patch_embed.grid_size

    def as_grid(tokens: Tensor) -> Tensor:
        return tokens[:, module.num_prefix_tokens :].unflatten(1, side).permute(0, 3, 1, 2)

    with package.GradCAM(model=module, target_layers=[module.blocks[-1].norm1], reshape_transform=as_grid) as cam:
        return torch.from_numpy(cam(input_tensor=image.requires_grad_(), targets=[target])[0])


@peer("integrated_gradients", signed=True, passes="20F 20B")
def integrated_gradients(module: Any, image: Tensor, number: int) -> Tensor:
    """The map of Captum, summed over channels."""
    captum: Any = import_module("captum.attr")
    return (
        captum.IntegratedGradients(module).attribute(image, target=number, n_steps=20, internal_batch_size=4).sum(dim=1)
    )


@peer("transformer_attribution", signed=False, passes="1F 1B")
def transformer_attribution(module: Any, image: Tensor, number: int) -> Tensor:
    """The map of torchxai."""
    torchxai: Any = import_module("torchxai")
    explainer = torchxai.TransformerAttribution(module, device=str(image.device))
    return torch.as_tensor(explainer(image, target_class=number))


@peer("hilrp", signed=True, passes="1F 1B")
def hilrp(module: Any, image: Tensor, number: int) -> Tensor:
    """The map of HiLRP, from a process of its own."""
    return other_process().submit(hilrp_here, module, image, number).result()


@cache
def other_process() -> ProcessPoolExecutor:
    """The process in which PyTorch may be changed."""
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    atexit.register(pool.shutdown)
    return pool


def hilrp_here(module: Any, image: Tensor, number: int) -> Tensor:
    """The map of HiLRP, which changes this process."""
    package: Any = import_module("hilrp")
    return package.attribute(module, image, number, arch=MODEL.removeprefix("timm/"))["pixel_map"].detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder of photographs, or another data set as `vitrail evaluate` takes it")
    parser.add_argument("--boxes")
    parser.add_argument("--checkpoint")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--only", nargs="+", default=[], help="rows, by name")
    parser.add_argument("--without", nargs="+", default=[], help="rows to leave out, by name")
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    for register in REGISTER:
        register()
    missing = PEERS.keys() - installed().keys()
    if absent := missing.intersection(options.only):
        parser.error(f"{', '.join(sorted(absent))}: the package is not installed")
    if missing and not options.only:
        print(f"left out, since the package is not installed: {', '.join(sorted(missing))}")
    without = missing.union(options.without)
    model = vitrail.load(MODEL, checkpoint=options.checkpoint)
    done = evaluate(
        model,
        options.data,
        options.only or ["all", *(f"-{name}" for name in sorted(without)), *MODES],
        PROTOCOLS,
        preset="bi",
        output=options.output,
        limit=options.limit,
        block=4,
        data_options={"boxes": options.boxes} if options.boxes else None,
        method_options={"tis": {"masks": 256}} if not options.only or "tis" in options.only else None,
        protocol_options={"insertion": {"step": STEP}, "deletion": {"step": STEP}},
        progress=lambda done, total: print(f"{done} of {total} images", flush=True),
    )
    print(done)


if __name__ == "__main__":
    main()
