"""Checkpoint files of every kind, whole and broken; all are made here."""

import io
import json
import os
import pickle
import tracemalloc
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitrail.errors import CheckpointError, CheckpointMismatchError, UnsafeCheckpointError
from vitrail.models.checkpoint import fingerprint, read_checkpoint
from vitrail.models.fitting import fill


def net(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 5), norm=nn.LayerNorm(5), head=nn.Linear(5, classes)))


def same(tensors, module: nn.Module) -> bool:
    wanted = module.state_dict()
    return wanted.keys() == tensors.keys() and all(torch.equal(wanted[name], tensors[name]) for name in wanted)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.bin", "w.ckpt", "w"])
def test_the_usual_files_are_read(tmp_path: Path, name: str):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(net().state_dict(), path)
    else:
        torch.save(net().state_dict(), path)
    assert same(read_checkpoint(path), net())
    assert same(read_checkpoint(str(path)), net())


def test_a_safetensors_file_is_known_by_its_content_too(tmp_path: Path):
    save_file(net().state_dict(), tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), net())


def test_the_old_format_of_pytorch_is_read(tmp_path: Path):
    torch.save(net().state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "w.pth"), net())


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state", "module", "model_state_dict", "model_ema"])
def test_wrappers_are_taken_off(tmp_path: Path, key: str):
    torch.save({key: net().state_dict(), "epoch": 7, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), net())


def test_averaged_weights_go_first_as_in_timm(tmp_path: Path):
    other = {name: tensor + 1 for name, tensor in net().state_dict().items()}
    torch.save({"state_dict": other, "state_dict_ema": net().state_dict()}, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), net())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_training_are_taken_off(tmp_path: Path, prefix: str):
    state = {prefix + name: tensor for name, tensor in net().state_dict().items()}
    torch.save({"model": {"state_dict": state}}, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), net())


# --- layouts of real training scripts ---------------------------------------------------------------------------------


def under(prefix: str, state: dict | None = None) -> dict:
    return {prefix + name: tensor for name, tensor in (net().state_dict() if state is None else state).items()}


def other() -> dict:
    return {name: tensor + 1 for name, tensor in net().state_dict().items()}


OPTIMISER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]}

LAYOUTS = {
    "lightning": {
        "state_dict": {**under("model."), "criterion.weight": torch.ones(3), "train_acc.total": torch.tensor(1)},
        "pytorch-lightning_version": "2.4",
        "hyper_parameters": Namespace(lr=1e-3, out=PosixPath("/runs/1")),
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.3)}},
        "optimizer_states": [OPTIMISER],
    },
    "timm": {
        "epoch": 3,
        "arch": "vit_tiny",
        "state_dict": other(),
        "optimizer": OPTIMISER,
        "args": Namespace(mean=None, size=(3, 224, 224)),
        "state_dict_ema": net().state_dict(),
        "metric": np.float64(71.3),
    },
    "torchvision references": {
        "model": other(),
        "model_ema": {"n_averaged": torch.tensor(7), **under("module.")},
        "optimizer": OPTIMISER,
        "args": Namespace(data_path=PosixPath("/data")),
    },
    "dino": {
        "student": under("module.backbone.", other()),
        "teacher": {
            **under("backbone."),
            "head.mlp.0.weight": torch.ones(2, 2),
            "head.last_layer.weight_g": torch.ones(2),
        },
        "dino_loss": {"center": torch.zeros(1, 4)},
        "args": Namespace(),
    },
    "mae": {"model": {**net().state_dict(), "mask_token": torch.zeros(1), "decoder_blocks.0.weight": torch.ones(2)}},
    "one of averaged and last": {**under("online_model.", other()), **under("ema_model."), "step": torch.tensor(1)},
    "backbone and head": {
        **under("backbone.", {k: v for k, v in net().state_dict().items() if "head" not in k}),
        **{k: v for k, v in net().state_dict().items() if "head" in k},
    },
    "backbone, head": {
        "encoder": {k: v for k, v in net().state_dict().items() if "head" not in k},
        "head": {"weight": net().state_dict()["head.weight"], "bias": net().state_dict()["head.bias"]},
    },
    "deepspeed": {"module": net().state_dict(), "ds_config": {}, "optimizer": OPTIMISER, "dp_world_size": 8},
    "fastai": {"model": net().state_dict(), "opt": OPTIMISER},
    "of any name": {"net_weights": under("net."), "optim": OPTIMISER, "rng_state": torch.ones(8)},
    "compiled, in parallel, in a module": under("model.module._orig_mod."),
    "a tuple": (net().state_dict(), {"lr": 0.1}, 7),
    "whatever else": {
        "model": net().state_dict(),
        "history": defaultdict(list, loss=[np.float32(1.0)]),
        "best": np.array([1.0, 2.0]),
        "seen": {1, 2},
        "type": torch.float16,
        "device": torch.device("cpu"),
        "raw": b"\x00\x01",
    },
}


@pytest.mark.parametrize("protocol", [None, 2, 4, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_training_scripts_are_read(tmp_path: Path, layout: str, protocol: int | None):
    path = tmp_path / "w.ckpt"
    if protocol is None:
        torch.save(LAYOUTS[layout], path, _use_new_zipfile_serialization=False)
    else:
        torch.save(LAYOUTS[layout], path, pickle_protocol=protocol)
    module = net()
    nn.init.zeros_(module.body.weight)
    fill(module, read_checkpoint(path), "w.ckpt")
    assert same(net().state_dict(), module)


def test_every_kind_of_tensor_is_read_as_pytorch_reads_it(tmp_path: Path):
    kinds = [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool]
    kinds += [torch.complex64, torch.uint16]
    state = {str(kind): torch.tensor([[0, 1, 1], [1, 0, 1]]).to(kind) for kind in kinds}
    state |= {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(9.0)[2:7:2],
        "none": torch.empty(0, 3),
    }
    state |= {"parameter": nn.Parameter(torch.ones(2)), "scalar": torch.tensor(3.5), "tied": state["torch.float64"]}
    torch.save(state, tmp_path / "w.pth")
    expected, found = torch.load(tmp_path / "w.pth", weights_only=True), read_checkpoint(tmp_path / "w.pth")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tolist() == tensor.tolist()


def test_two_sets_of_weights_are_not_guessed_between(tmp_path: Path):
    torch.save({**under("a."), **under("b.", other())}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"several sets of weights that could be meant \(a., b.\)"):
        fill(net(), read_checkpoint(tmp_path / "w.pth"), "w.pth")


def test_what_lies_under_the_prefix_is_never_left_out():
    state = {**under("model."), "model.extra.weight": torch.ones(2)}
    with pytest.raises(CheckpointMismatchError, match=r"1 are unexpected \(extra.weight\)"):
        fill(net(), state, "w.pth")


def test_a_replaced_head_and_a_missing_one_have_their_own_remedies():
    body = {name: tensor for name, tensor in net().state_dict().items() if "head" not in name}
    with pytest.raises(CheckpointMismatchError, match="head is another than the model's.*vitrail.wrap"):
        fill(net(), {**body, "head.1.weight": torch.ones(3, 5), "head.1.bias": torch.ones(3)}, "w.pth")
    with pytest.raises(CheckpointMismatchError, match="holds no classifier.*num_classes=0"):
        fill(net(), body, "w.pth")


# --- folders and shards -----------------------------------------------------------------------------------------------


def sharded(folder: Path) -> Path:
    state, shards = net().state_dict(), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    folder.mkdir(exist_ok=True)
    names = list(state)
    for shard, some in zip(shards, (names[:3], names[3:]), strict=True):
        save_file({name: state[name] for name in some}, folder / shard)
    index = {"metadata": {}, "weight_map": {name: shards[i >= 3] for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_folders_and_shards_are_read(tmp_path: Path):
    whole, parts, bins = tmp_path / "whole", sharded(tmp_path / "parts"), tmp_path / "bins"
    for folder in (whole, bins):
        folder.mkdir()
    save_file(net().state_dict(), whole / "model.safetensors")
    torch.save(net().state_dict(), bins / "pytorch_model.bin")
    for path in (whole, parts, parts / "model.safetensors.index.json", bins):
        assert same(read_checkpoint(path), net())
        assert len(fingerprint(path)) == 64


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "1 of 2 parts of .* are missing"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "no index of a sharded checkpoint"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../w.safetensors"}}'),
            "names no files beside it",
        ),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "nor a folder with model.safetensors"),
    ],
)
def test_shards_that_are_not_all_there_are_refused(tmp_path: Path, spoil, message: str):
    folder = sharded(tmp_path / "parts")
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)
    with pytest.raises(CheckpointError, match="one of 2 parts"):
        read_checkpoint(folder / "model-00001-of-00002.safetensors")


def test_folders_of_other_kinds_name_the_remedy(tmp_path: Path):
    for name, message in {"adapter_config.json": "merge_and_unload", ".metadata": "dcp_to_torch"}.items():
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).touch()
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(folder)


# --- broken and dangerous files ---------------------------------------------------------------------------------------


class Danger:
    """Runs a command when unpickled, as a malicious checkpoint would."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return (os.mkdir, (str(self.witness),))


@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path, protocol: int | None):
    witness, content = tmp_path / "was here", {"model": Danger(tmp_path / "was here")}
    if protocol is None:
        torch.save(content, tmp_path / "w.pth")
    else:
        (tmp_path / "w.pth").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UnsafeCheckpointError, match=r"could run code.*(mkdir|more than hold tensors).*save_file"):
        read_checkpoint(tmp_path / "w.pth")
    assert not witness.exists()


def test_a_pickled_module_is_not_opened(tmp_path: Path):
    torch.save(net(), tmp_path / "w.pth")
    with pytest.raises(UnsafeCheckpointError, match="holds a whole model.*Sequential.*save_file"):
        read_checkpoint(tmp_path / "w.pth")


# Making such a file is deprecated; meeting one is not.
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript archive:UserWarning")
def test_a_torchscript_archive_is_not_opened(tmp_path: Path):
    torch.jit.save(torch.jit.script(net()), tmp_path / "w.pt")
    with pytest.raises(UnsafeCheckpointError, match="TorchScript archive"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "old.pth"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_a_truncated_file_says_so(tmp_path: Path, name: str, share: float):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(net().state_dict(), path)
    else:
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=name == "w.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="cut short") as caught:
        read_checkpoint(path)
    assert not isinstance(caught.value, UnsafeCheckpointError)


@pytest.mark.parametrize("name", ["w.pth", "w.txt", "w.npz"])
def test_another_file_is_no_checkpoint(tmp_path: Path, name: str):
    (tmp_path / name).write_text("hello, this is text\n" * 10)
    with pytest.raises(CheckpointError, match=rf"{name} is no checkpoint.*b'hello, th'"):
        read_checkpoint(tmp_path / name)


def test_missing_and_empty_files_and_folders_are_told_apart(tmp_path: Path):
    (tmp_path / "empty.pth").touch()
    for name, message in {"none.pth": "no checkpoint at", ".": "is not a file", "empty.pth": "is empty"}.items():
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, "a dict with epoch, lr, and no tensors by name"),
        ([torch.zeros(2)], "holds list"),
        (torch.zeros(2), "holds Tensor"),
        ({}, "and no tensors by name"),
    ],
)
def test_a_file_without_named_tensors_says_what_it_holds(tmp_path: Path, content, message: str):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "w.pth")


OTHER_FILES = {
    "w.gguf": (b"GGUF\x03\0\0\0", "GGUF"),
    "w.onnx": (b"\x08\x07\x12\x07pytorch", "ONNX"),
    "w.h5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "w.npy": (b"\x93NUMPY\x01\0", "NumPy array"),
    "w.msgpack": (b"\x82\xa6params", "Flax"),
    "w.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "page.pth": (b"<!DOCTYPE html><html>", "web page"),
    "w.pth.gz": (b"\x1f\x8b\x08", "gzip"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_files_of_other_kinds_are_named(tmp_path: Path, name: str):
    content, message = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content + b"\0" * 100)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / name)


def test_archives_of_other_kinds_are_named(tmp_path: Path):
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "program.pth", "w") as archive:
        archive.writestr("program/archive_format", "pt2")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("w.pth", "…")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    kinds = {
        "w.npz": r"\.npz",
        "program.pth": "torch.export",
        "other.zip": "unpack it",
        "sparse.pth": "save plain ones",
    }
    for name, message in kinds.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            read_checkpoint(tmp_path / name)
        assert not isinstance(caught.value, UnsafeCheckpointError)


# --- bounds -----------------------------------------------------------------------------------------------------------


def stream(body: bytes) -> bytes:
    """The older format around the pickle of one object."""
    return b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {})) + body + pickle.dumps([], 2)


def doubled_tuple() -> bytes:
    held: tuple = ()
    for _ in range(100):
        held = (held, held)
    return pickle.dumps(held, 2)[2:-1]


BOMBS = {
    "a dictionary that holds itself": stream(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."),
    "a key that takes 2^100 steps to hash": stream(b"\x80\x02}" + doubled_tuple() + b"K\x01s."),
    "a place in 2^31 that must be kept": stream(b"\x80\x02}r\xff\xff\xff\x7f."),
    "text that is longer than the file": stream(b"\x80\x04\x8d\xff\xff\xff\xff\xff\x00\x00\x00."),
    "bytes that are longer than the file": stream(b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00."),
    "an integer of a million digits as a key": stream(
        b"\x80\x02}\x8b\x40\x42\x0f\x00" + b"\x7f" * 1_000_000 + b"K\x01s."
    ),
}


def wide_and_deep() -> bytes:
    """Eight dictionaries, each of which holds the next a hundred times."""
    held: dict = {}
    for _ in range(8):
        held = {f"{place}": held for place in range(100)}
    return pickle.dumps(held, 2)


BOMBS["100^8 ways into one dictionary"] = stream(wide_and_deep())


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_pickle_takes_time_or_memory_without_end(tmp_path: Path, bomb: str):
    (tmp_path / "w.pth").write_bytes(BOMBS[bomb])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "w.pth")
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_no_archive_takes_more_memory_than_its_size(tmp_path: Path):
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(2_000_000)}, plain)
    held = zipfile.ZipFile(plain)
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in held.namelist():
            archive.writestr(name, held.read(name))
    with pytest.raises(CheckpointError, match="is compressed, which PyTorch's files are not"):
        read_checkpoint(tmp_path / "bomb.pth")
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "claim.pth")
    with pytest.raises(CheckpointError, match="claim to hold more numbers than the file does"):
        read_checkpoint(tmp_path / "claim.pth")


def test_a_tensor_never_reaches_beyond_its_storage(tmp_path: Path):
    """PyTorch's own loader lets the storage grow, and gives back whatever memory held."""
    torch.save({"a": torch.arange(4.0)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    assert content.count(b"K\x00K\x04\x85") == 1  # offset 0, shape (4,)
    (tmp_path / "w.pth").write_bytes(content.replace(b"K\x00K\x04\x85", b"K\x00K\x40\x85"))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "w.pth")


def test_names_cannot_command_the_terminal(tmp_path: Path):
    torch.save({"head\x1b[2J\u202e.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError) as caught:
        fill(net(), read_checkpoint(tmp_path / "w.pth"), "w\x1b]0;.pth")
    assert r"head\x1b[2J\u202e.weight" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_names_that_no_file_can_have_are_refused():
    for name in ("a\0b", "a" * 5000):
        with pytest.raises(CheckpointError):
            read_checkpoint(name)


# --- into the module --------------------------------------------------------------------------------------------------


def test_what_fits_is_loaded():
    module = net()
    tensors = {name: tensor + 1 for name, tensor in module.state_dict().items()}
    fill(module, tensors, "w.pth")
    assert same(tensors, module)


def test_what_does_not_fit_leaves_the_module_as_it_was():
    module = net()
    state = {name: tensor + 1 for name, tensor in net().state_dict().items()}
    state["extra"] = state.pop("norm.weight")
    state["body.weight"] = torch.zeros(5, 9)
    with pytest.raises(CheckpointMismatchError) as caught:
        fill(module, state, "w.pth")
    assert str(caught.value) == (
        "w.pth does not fit the model: 1 of 6 tensors are missing (norm.weight), 1 are unexpected (extra), "
        "1 have another shape (body.weight is (5, 9) in the file and (5, 4) in the model); "
        "was it made for another model, size or number of classes?"
    )
    assert same(net().state_dict(), module)


def test_a_long_list_of_names_is_cut():
    with pytest.raises(
        CheckpointMismatchError, match=r"6 of 6 .* \(body.weight, body.bias, norm.weight, norm.bias and 2 more\)"
    ):
        fill(net(), {"x": torch.zeros(1)}, "w.pth")


def test_another_number_of_classes_has_its_own_remedy():
    with pytest.raises(CheckpointMismatchError, match=r"made for 11 classes, so load the model with num_classes=11"):
        fill(net(3), net(11).state_dict(), "w.pth")


def test_repairs_are_tried_in_order_and_may_fail():
    def broken(tensors):
        raise KeyError("other library")

    def rename(tensors):
        return {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}

    module = net()
    state = {f"backbone.{name}": tensor + 2 for name, tensor in net().state_dict().items()}
    fill(module, state, "w.pth", repairs=[broken, dict, rename])
    assert same(rename(state), module)


def test_other_types_are_converted_to_the_modules():
    module = net()
    fill(module, {name: tensor.half() for name, tensor in module.state_dict().items()}, "w.pth")
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_the_fingerprint_is_sha256(tmp_path: Path):
    (tmp_path / "w").write_bytes(b"abc")
    assert fingerprint(tmp_path / "w") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
