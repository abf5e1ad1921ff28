"""Checkpoint files of every kind, whole and broken; all are made here."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitrail.errors import CheckpointError, CheckpointMismatchError, UnsafeCheckpointError
from vitrail.models.checkpoint import fill, fingerprint, read_checkpoint


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
    with pytest.raises(UnsafeCheckpointError, match="Sequential"):
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
