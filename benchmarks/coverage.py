"""Which of timm's and Hugging Face's image classifiers get a map, by `complete`, `gae` and `rollout`.

Walks timm's registry and transformers' of image classifiers, with random weights and no download. Names of timm whose
modules are alike but for width, depth and the number of classes are one architecture: the smallest of them is
explained, and counts for all. Attention-based is what multiplies activations with activations, with a softmax or
without (linear attention), or calls PyTorch's attention. Of an encoder without a head the mean of its output is
explained. Weights that start at zero are drawn, as they would keep the attention out of the logits. What is larger than
150 million weights is built two blocks deep where its constructor takes a depth, transformers' models likewise.
Each few architectures run in a process of their own; `--results` keeps what was found, and a second run goes on there.

    python -m benchmarks.coverage --results coverage.json                    # about half an hour on one core
    python -m benchmarks.coverage --results coverage.json --page docs/coverage.md
    python -m benchmarks.coverage --results coverage.json --again davit,xcit # after a change that concerns them
"""

import argparse
import contextlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

METHODS = ("complete", "gae", "rollout")
CLASSES = 10
LARGE = 150_000_000
MEMORY = 12 * 2**30
AT_ONCE = 6
SECONDS = 150  # per architecture


class _Kinds(TorchFunctionMode):
    """Notes whether attention is called, whole or written out, or products of activations alone."""

    def __init__(self) -> None:
        super().__init__()
        self.called = self.softmax = self.product = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        self.called |= func in (F.scaled_dot_product_attention, F.multi_head_attention_forward)
        self.softmax |= name == "softmax"
        if name in ("matmul", "__matmul__", "bmm", "einsum", "baddbmm"):
            given = [one for one in args if isinstance(one, Tensor) and not isinstance(one, nn.Parameter)]
            given = given or [one for one in args if isinstance(one, list | tuple) for one in one]
            self.product |= sum(isinstance(one, Tensor) and one.grad_fn is not None for one in given) > 1
        return func(*args, **(kwargs or {}))

    @property
    def kind(self) -> str:
        return "attention" if self.called or (self.softmax and self.product) else "linear" if self.product else "none"


def timm_architectures() -> list[dict[str, Any]]:
    """Names of timm by what they are built of, the smallest of each first."""
    alike: dict[Any, list[tuple[int, str]]] = {}
    modules: dict[str, str] = {}
    for name in timm.list_models():
        with torch.device("meta"):
            module = timm.create_model(name, num_classes=CLASSES)
        parts = frozenset((re.sub(r"\d+", "N", path), type(part).__name__) for path, part in module.named_modules())
        size = size_of(module)
        weights = sum(one.numel() for one in module.parameters())
        alike.setdefault((type(module).__name__, parts), []).append((size * size * weights, name))
        modules[name] = type(module).__module__.rpartition(".")[2]
    found = [[name for _, name in sorted(group)] for group in alike.values()]
    return [{"registry": "timm", "names": names, "family": modules[names[0]]} for names in found]


def hugging_face_architectures() -> list[dict[str, Any]]:
    """transformers' types of image classifiers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as TYPES

    return [{"registry": "transformers", "names": [one], "family": one} for one in sorted(TYPES)]


def build(registry: str, name: str) -> tuple[nn.Module, Tensor]:
    """Returns a model with random weights, and an image for it."""
    torch.manual_seed(0)
    module, size = build_timm(name) if registry == "timm" else build_hugging_face(name)
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return module.eval(), torch.randn(1, 3, size, size)


def size_of(module: nn.Module) -> int:
    """The height of the images that a model of timm takes."""
    settings: Any = module.pretrained_cfg
    return settings["input_size"][-1]


def build_timm(name: str) -> tuple[nn.Module, int]:
    with torch.device("meta"):
        plain = timm.create_model(name, num_classes=CLASSES)
    size = size_of(plain)
    smaller = (256, 224, 252, 240) if size > 400 else ()  # multiples of patches of 14, 16 and 3 × 16 among them
    ways = [*((at, {"img_size": at}) for at in smaller), *((at, {}) for at in smaller), (size, {})]
    if sum(one.numel() for one in plain.parameters()) > LARGE:
        ways = [(at, {**given, "depth": 2}) for at, given in ways] + ways
    for at, given in ways:
        with contextlib.suppress(Exception):
            module = timm.create_model(name, num_classes=CLASSES, **given)
            if at != size:
                module.eval()(torch.zeros(1, 3, at, at))  # some say only then that they do not take it
            return module, at
    raise RuntimeError("cannot be built")


def build_hugging_face(name: str) -> tuple[nn.Module, int]:
    import transformers
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as TYPES

    kind: Any = CONFIG_MAPPING[name]
    config = kind(num_labels=CLASSES)
    parts = [config, *(getattr(config, part, None) for part in ("vision_config", "text_config"))]
    for part in parts:
        if isinstance(getattr(part, "num_hidden_layers", None), int) and not hasattr(part, "depths"):
            with contextlib.suppress(Exception):
                part.num_hidden_layers = min(3, part.num_hidden_layers)
    sizes = [getattr(part, "image_size", None) for part in parts]
    size = next((one for one in sizes if one), 224)
    types: Any = TYPES
    of_type = types[name]  # of several, the plainest comes first
    model: Any = getattr(transformers, of_type if isinstance(of_type, str) else of_type[0])(config)
    return model, size if isinstance(size, int) else size[-1]


def explain(registry: str, name: str) -> dict[str, Any]:
    """What one architecture is, and why a method gives no map of it ("" where it does)."""
    import vitrail

    start = time.perf_counter()
    try:
        module, image = build(registry, name)
    except Exception as error:
        return {"kind": "unknown", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    kinds = _Kinds()
    try:
        with kinds:
            output = module(image)
    except Exception as error:
        return {"kind": "unknown", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    found: dict[str, Any] = {"kind": kinds.kind}
    if kinds.kind != "none":
        model = None
        for method in METHODS:
            try:
                model = model or vitrail.wrap(module, logits_from=reader_of(output))
                vitrail.explain(model, image, target=1, method=method)
                found[method] = ""
            except Exception as error:
                found[method] = f"{type(error).__name__}: {error}"
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def reader_of(output: Any) -> Callable[[Any], Tensor] | None:
    """How to read the output of an encoder without a head, (images, tokens, features) or a grid: by its mean."""
    if not isinstance(output, Tensor) or output.dim() == 2:
        return None
    return lambda found: found.mean(1) if found.dim() == 3 else found.mean((2, 3))


def one_by_one(registry: str, names: list[str]) -> None:
    """Prints what was found of each name, a line each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for name in names:
        print(json.dumps([name, explain(registry, name)]), flush=True)


def in_processes(registry: str, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was found of each name; what ends a process or takes too long is said of the name that did."""
    waiting = list(names)
    while waiting:
        some = waiting[:AT_ONCE]
        command = [sys.executable, "-m", "benchmarks.coverage", "--one", registry, *some]
        with tempfile.TemporaryFile("w+") as out:
            try:
                subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, timeout=SECONDS * len(some), check=False)
                reason = "the process ended (not enough memory here)"
            except subprocess.TimeoutExpired:
                reason = "no map in time"
            out.seek(0)
            lines = [json.loads(line) for line in out if line.startswith("[") and line.endswith("\n")]
        yield from ((name, found) for name, found in lines)
        waiting = waiting[len(lines) :]
        if len(lines) < len(some):
            yield waiting.pop(0), {"kind": "unknown", "reason": reason}


def reason_of(text: str) -> str:
    """The part of a refusal that says why the tokens could not be followed, without the advice."""
    text = " ".join(text.split())
    text = text.partition("nor can its tokens be followed: ")[2] or text
    text = text.partition("; method=")[0].partition(": ")[2] if text.startswith(tuple(_TYPES)) else text
    text = re.sub(r"^\S+ ran, but no attention reached .*?(queries, keys\)), but ", "", text)
    text = re.sub(r"\battention \d+( of \d+)?", "attention n", re.sub(r"\(\d+(, \d+)+\)", "(…)", text))
    return text[:300].replace("|", "/")


_TYPES = ("NoAttentionError", "UnsupportedAttentionError", "LayoutError", "MovingTokensError", "NoSignalError")


def page(architectures: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> str:
    """The page of the docs."""
    lines = [
        "# Which architectures are explained",
        "",
        "Written by `python -m benchmarks.coverage --results FILE --page docs/coverage.md`, which builds every "
        "architecture of timm and every image classifier of transformers with random weights and asks for maps. A map "
        "counts where Vitrail gives one, and it refuses what it cannot follow; names of timm whose modules are alike "
        "but for size count together, and the smallest was run. Of encoders without a head the mean of their output is "
        "explained. Linear attention, products of activations without a softmax, counts as attention.",
        "",
        "| registry | attention-based names | " + " | ".join(f"`{method}`" for method in METHODS) + " |",
        "|---|---|" + "---|" * len(METHODS),
    ]
    refusals: dict[str, Counter[str]] = {}
    unknown: list[str] = []
    partly: list[str] = []
    for registry in ("timm", "transformers"):
        mine = [one for one in architectures if one["registry"] == registry]
        total, explained = 0, Counter[str]()
        for one in mine:
            found = results.get(f"{registry}/{one['names'][0]}", {"kind": "unknown", "reason": "not run"})
            count = len(one["names"])
            if found["kind"] == "unknown":
                reason = " ".join(found["reason"].split())[:120]
                unknown.append(f"{registry}/{one['names'][0]} ({count}): {reason}")
            if found["kind"] not in ("attention", "linear"):
                continue
            total += count
            explained.update({method: count for method in METHODS if not found[method]})
            partly += [
                f"- {registry}/{one['names'][0]} ({count}), `{method}`: {reason_of(found[method])}"
                for method in METHODS
                if found[method] and not found["complete"]
            ]
            if found["complete"]:
                kept = refusals.setdefault(reason_of(found["complete"]), Counter())
                kept[f"`{one['names'][0]}` ({registry})"] += count
        shares = (f"{explained[method]} ({explained[method] / max(total, 1):.1%})" for method in METHODS)
        lines.append(f"| {registry} | {total} | " + " | ".join(shares) + " |")
    lines += ["", "## Refused by `complete`, and why", "", "| names | the smallest of them | reason |", "|---|---|---|"]
    for reason, kept in sorted(refusals.items(), key=lambda item: -item[1].total()):
        lines.append(f"| {kept.total()} | {', '.join(kept)} | {reason} |")
    lines += ["", "## Refused by another method alone", "", *partly] if partly else []
    lines += ["", "## Not run", "", *(f"- {one}" for one in unknown)] if unknown else []
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="the JSON file that keeps what was found")
    parser.add_argument("--page", type=Path, help="write the page of the docs here")
    parser.add_argument("--again", default="", help="families or names to run again, commas between; `refused` for all")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_by_one(options.one[0], options.one[1:])
        return
    if options.results is None:
        parser.error("--results names the file to keep what is found in")
    kept = json.loads(options.results.read_text()) if options.results.exists() else {}
    architectures = kept.setdefault("architectures", []) or timm_architectures() + hugging_face_architectures()
    kept["architectures"], results = architectures, kept.setdefault("results", {})
    again = set(filter(None, options.again.split(",")))
    for one in architectures:
        key = f"{one['registry']}/{one['names'][0]}"
        refused = any(results.get(key, {}).get(method) for method in METHODS) or "reason" in results.get(key, {})
        if again & {one["family"], one["names"][0]} or ("refused" in again and refused):
            results.pop(key, None)
    for registry in ("timm", "transformers"):
        names = [one["names"][0] for one in architectures if one["registry"] == registry]
        for name, found in in_processes(registry, [one for one in names if f"{registry}/{one}" not in results]):
            results[f"{registry}/{name}"] = found
            options.results.write_text(json.dumps(kept, indent=1))
            why = {reason_of(found[method]) for method in METHODS if found.get(method)}
            print(
                f"{found['kind']:10} {found.get('seconds', 0):6} {name}: {found.get('reason', '; '.join(why))}",
                flush=True,
            )
    text = page(architectures, results)
    print(text)
    if options.page:
        options.page.write_text(text)


if __name__ == "__main__":
    main()
