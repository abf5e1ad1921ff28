"""Checkpoint files as chance makes them: each is read or refused with an error of Vitrail's, soon, small and inert."""

import io
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from vitrail.errors import VitrailError
from vitrail.models.checkpoint import read_checkpoint
from vitrail.models.fitting import fill

SECONDS = 5.0  # far more than any of these small files takes
BYTES = 100e6

_watched: list[str] = []


def _hook(event: str, args: tuple) -> None:
    if _watching[0] and event.startswith(("os.", "subprocess.", "socket.", "shutil.", "ctypes")):
        _watched.append(f"{event} {args[:1]}")


_watching = [False]
sys.addaudithook(_hook)  # which stays for the process, and is idle outside of `survives`


def net() -> nn.Module:
    return nn.Sequential(OrderedDict(body=nn.Linear(2, 3), head=nn.Linear(3, 2)))


@cache
def whole(kind: str) -> bytes:
    torch.manual_seed(0)
    state = net().state_dict()
    if kind == "safetensors":
        return save(state)
    held = {"state_dict": {f"model.{name}": one for name, one in state.items()}, "lr": 0.1, "args": (1, "a")}
    file = io.BytesIO()
    torch.save(held, file, _use_new_zipfile_serialization=kind == "zip")
    return file.getvalue()


@pytest.fixture(scope="module")
def survives(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], None]:
    """Reads the bytes as a checkpoint and puts them into a module; nothing may happen but a refusal."""
    path = tmp_path_factory.mktemp("fuzz") / "w.pth"
    read_and_fill(path, whole("zip"))  # what is imported once is imported here
    read_and_fill(path, whole("safetensors"))

    def check(content: bytes) -> None:
        path.write_bytes(content)
        tracemalloc.start()
        start, _watching[0], said = time.monotonic(), True, ""
        try:
            read_and_fill(path)
        except VitrailError as error:
            said = str(error)
        finally:
            _watching[0] = False
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert time.monotonic() - start < SECONDS
        assert all(c.isprintable() or c in "\n\t" for c in said)
        assert peak < BYTES
        assert not _watched, _watched

    return check


def read_and_fill(path: Path, content: bytes | None = None) -> None:
    if content is not None:
        path.write_bytes(content)
    fill(net(), read_checkpoint(path), path.name)


usual = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@usual
@given(
    kind=st.sampled_from(["zip", "stream", "safetensors"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 10**6)),
    more=st.binary(max_size=20),
)
def test_mutated_files_are_read_or_refused(survives, kind: str, changes, cut: int | None, more: bytes):
    content = bytearray(whole(kind))
    for place, value in changes:
        content[place % len(content)] = value
    survives(bytes(content[: None if cut is None else cut % len(content)]) + more)


names = st.one_of(
    st.text(max_size=8), st.sampled_from(["state_dict", "model", "ema", "teacher", "body.weight", "head.bias"])
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), names, st.binary(max_size=4),
    st.sampled_from([torch.zeros(2), torch.zeros(3, 2), torch.zeros(()), torch.float16, torch.device("cpu")]),
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(names, st.integers()), inner, max_size=4)
    ),
    max_leaves=12,
)


@usual
@given(
    tree=trees,
    prefix=st.lists(st.sampled_from(["model", "module", "net", "ema", "0"]), max_size=4),
    zipped=st.booleans(),
)
def test_layouts_of_any_kind_are_read_or_refused(survives, tree, prefix: list[str], zipped: bool):
    state = {".".join([*prefix, name]): one for name, one in net().state_dict().items()}
    file = io.BytesIO()
    torch.save({"x": tree, "weights": state}, file, _use_new_zipfile_serialization=zipped)
    survives(file.getvalue())


OPCODES = [
    value[0]
    for name, value in vars(pickle).items()
    if name.isupper() and isinstance(value, bytes) and len(value) == 1 and value != pickle.STOP
]
GLOBALS = [
    b"cos\nsystem\n", b"cbuiltins\nexec\n", b"cbuiltins\neval\n", b"cposix\nmkdir\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n", b"cnumpy.core.multiarray\nscalar\n",
    b"cfunctools\npartial\n", b"coperator\nattrgetter\n", b"ctorch\nFloatStorage\n", b"ctorch.hub\nload\n",
    b"cbuiltins\ngetattr\n",
]  # fmt: skip
steps = st.one_of(
    st.sampled_from(OPCODES).map(lambda code: bytes([code])),
    st.sampled_from(GLOBALS),
    st.sampled_from(
        [b"(", b")", b"}", b"]", b"h\x00", b"q\x00", b"R", b"b", b"\x81", b"s", b"u", b"t", b"Q", b"K\x01"]
    ),
    st.binary(max_size=5),
    st.just(b"X\x0a\x00\x00\x00state_dict"),
    st.just(b"X\x05\x00\x00\x00touch"),
)


@usual
@given(
    body=st.lists(steps, max_size=40).map(b"".join),
    protocol=st.sampled_from([b"\x80\x02", b"\x80\x04", b"\x80\x05", b""]),
)
def test_pickles_of_random_steps_are_inert(survives, body: bytes, protocol: bytes):
    magic = b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {}))
    survives(magic + protocol + body + b"." + pickle.dumps([], 2))
    content, held = whole("zip"), b""
    if len(body) < 60:  # inside an archive too, in the place of its own pickle
        import zipfile

        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                held = protocol + body + b"." if name.endswith("data.pkl") else old.read(name)
                new.writestr(name, held)
        survives(file.getvalue())


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", ["os.mkdir", "subprocess.run", "builtins.exec"])
def test_nothing_that_a_pickle_names_is_called(survives, protocol: int, call: str, tmp_path: Path):
    witness = tmp_path / "was here"
    functions = {"os.mkdir": os.mkdir, "subprocess.run": subprocess.run, "builtins.exec": exec}
    argument = f"open({str(witness)!r}, 'w')" if call == "builtins.exec" else str(witness)

    class Evil:
        def __reduce__(self):
            return functions[call], (argument,)

    for held in ({"state_dict": Evil()}, {"state_dict": {"w": Evil()}}, [Evil()], Evil()):
        survives(pickle.dumps(held, protocol))
        file = io.BytesIO()
        if protocol > 1:
            torch.save(held, file, pickle_protocol=protocol)
            survives(file.getvalue())
    assert not witness.exists()


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.lists(steps, max_size=200).map(b"".join))
def test_many_pickles_of_random_steps_are_inert(survives, body: bytes):
    magic = b"".join(pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, {}))
    survives(magic + b"\x80\x04" + body + b"." + pickle.dumps([], 2))


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["zip", "stream", "safetensors"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=30),
)
def test_many_mutated_files_are_read_or_refused(survives, kind: str, changes):
    content = bytearray(whole(kind))
    for place, value in changes:
        content[place % len(content)] = value
    survives(bytes(content))
