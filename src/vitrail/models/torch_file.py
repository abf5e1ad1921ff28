"""PyTorch's files read without running a line of them: `torch.save`'s zip archives and its older stream of pickles.

`torch.load(weights_only=True)` builds the objects that a file names, wants their classes importable, and lets a storage
grow to the size that a tensor claims. Training scripts store much besides the weights (arguments, paths, NumPy scalars,
configurations), so here every name on an explicit list becomes an inert stand-in, any other name is refused, and
tensors stay descriptions until they are asked for. Time and memory are bounded by the size of the file.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, UnsafeCheckpointError

__all__ = ["StoredTensor", "read_torch_file"]

MOST_PICKLED = (
    64_000_000  # bytes of a file's pickle, which holds everything but the numbers; usual are a few hundred kB
)
MOST_SHARED = 64_000_000  # bytes that all tensors together may claim beyond the bytes of the file (expanded, tied)
MAGIC = 0x1950A86A20F9469CFC6C  # the first object of the older format

_DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}

# What training scripts save besides the weights: data, or settings that are nothing but data. None of it is built.
_INERT = {
    "__builtin__": "bool bytearray bytes complex dict float frozenset int list object set slice str tuple unicode",
    "_codecs": "encode",
    "addict.addict": "Dict",
    "argparse": "Namespace",
    "box.box": "Box",
    "collections": "Counter deque",
    "copyreg": "_reconstructor",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "deepspeed.runtime.fp16.loss_scaler": "DynamicLossScaler LossScaler",
    "deepspeed.runtime.zero.config": "ZeroStageEnum",
    "deepspeed.utils.tensor_fragment": "fragment_address",
    "easydict": "EasyDict",
    "fractions": "Fraction",
    "lightning.fabric.utilities.data": "AttributeDict",
    "lightning.pytorch.callbacks.early_stopping": "EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint": "ModelCheckpoint",
    "lightning.pytorch.utilities.parsing": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "ml_collections.config_dict.config_dict": "ConfigDict FieldReference FrozenConfigDict",
    "mmcv.utils.config": "Config ConfigDict",
    "mmengine.config.config": "Config ConfigDict",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "munch": "Munch DefaultMunch",
    "numpy": "bool_ dtype float16 float32 float64 int32 int64 ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode BooleanNode EnumNode FloatNode IntegerNode PathNode StringNode",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
    "torch": "Size Tensor device",
    "torch.nn.parameter": "Buffer Parameter",
    "torch.serialization": "_get_layout",
    "torch.torch_version": "TorchVersion",
    "transformers.trainer_utils": "HubStrategy IntervalStrategy SaveStrategy SchedulerType",
    "transformers.training_args": "OptimizerNames TrainingArguments",
    "types": "SimpleNamespace",
    "typing": "Any Dict List Optional Tuple Union",
    "uuid": "UUID",
    "yacs.config": "CfgNode",
}
_INERT_NAMES = {(module, name) for module, names in _INERT.items() for name in names.split()}
_RENAMED = {"builtins": "__builtin__", "copy_reg": "copyreg", "pathlib._local": "pathlib"}

# Modules of whose layers a whole model is made; to name one says that more than the weights were saved.
_LAYERS = ("torch.nn.modules.", "timm.", "torchvision.models.", "transformers.models.", "open_clip.", "fastai.")


class Inert:
    """The stand-in for an object of the list above; it takes whatever is put into it and keeps nothing."""

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...


@dataclass(frozen=True)
class _Storage:
    """Numbers somewhere in the file; where, the older format tells only at its end."""

    key: str
    dtype: torch.dtype
    length: int

    @property
    def size(self) -> int:
        return self.length * self.dtype.itemsize


@dataclass(eq=False)
class _Numbers:
    """The file's numbers: where each storage lies, and those that were read."""

    path: Path
    places: dict[str, tuple[int, int]] = field(default_factory=dict)  # key: first byte, bytes
    kept: dict[str, bytearray] = field(default_factory=dict)
    claimed: int = 0

    def read(self, storage: _Storage) -> Tensor:
        """All numbers of a storage, in one row."""
        if storage.key not in self.places or self.places[storage.key][1] < storage.size:
            raise ValueError(f"storage {storage.key!r:.40} is not there in the length that it is said to have")
        if not storage.size:
            return torch.empty(0, dtype=storage.dtype)
        if storage.key not in self.kept:
            start, size = self.places[storage.key]
            held = bytearray(size)
            with self.path.open("rb") as file:
                file.seek(start)
                if file.readinto(held) != size:
                    raise ValueError("the file ends within its numbers")
            self.kept[storage.key] = held
        return torch.frombuffer(self.kept[storage.key], dtype=storage.dtype, count=storage.length)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as the file describes it; `tensor()` reads its numbers."""

    shape: tuple[int, ...]
    _storage: _Storage
    _offset: int
    _stride: tuple[int, ...]
    _dtype: torch.dtype
    _numbers: _Numbers

    def tensor(self) -> Tensor:
        """Returns the tensor itself, on the CPU.

        Raises:
            CheckpointError, ValueError, RuntimeError: where the description does not fit the file.
        """
        self._numbers.claimed += prod(self.shape) * self._dtype.itemsize
        if self._numbers.claimed > self._numbers.path.stat().st_size + MOST_SHARED:
            raise CheckpointError(f"the tensors of {self._numbers.path} claim to hold more numbers than the file does")
        flat = self._numbers.read(self._storage)
        if flat.dtype != self._dtype:
            flat = flat.view(self._dtype)
        return flat.as_strided(self.shape, self._stride, self._offset)


def read_torch_file(path: Path) -> Any:
    """Reads a file of `torch.save`: containers as they are, tensors as `StoredTensor`, all else as an inert stand-in.

    Raises:
        UnsafeCheckpointError: for a file that names what is neither weights nor on the list of inert data.
        CheckpointError: for one that is cut short, damaged, or not PyTorch's.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            return _read_archive(path, file) if start.startswith(b"PK") else _read_stream(path, file)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive or pickle can raise anything
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch file ({type(error).__name__}: {str(error)[:120]}); was it cut short "
            "while copying?"
        ) from error


def _read_archive(path: Path, file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(roots) != 1:
        raise CheckpointError(f"{path} is {_other_archive(list(entries))}")
    root = roots[0]
    if f"{root}constants.pkl" in entries or any(name.startswith(f"{root}code/") for name in entries):
        raise UnsafeCheckpointError(
            f"{path} is a TorchScript archive, a program that could run code when opened, so it was not; save the "
            "weights where the program is trusted: safetensors.torch.save_file(torch.jit.load(…).state_dict(), …)"
        )
    numbers = _Numbers(path)
    whole = path.stat().st_size
    for name, info in entries.items():
        if not name.startswith((f"{root}data/", f"{root}data.pkl", f"{root}byteorder")):
            continue
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(
                f"{path} is compressed, which PyTorch's files are not ({info.file_size} bytes out of "
                f"{info.compress_size}); save it again with torch.save"
            )
        file.seek(info.header_offset)
        header = file.read(30)
        first = (
            info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
        )
        if header[:4] != b"PK\x03\x04" or first + info.file_size > whole:
            raise ValueError("an entry lies outside of the file")
        numbers.places[name.removeprefix(root)] = first, info.file_size
    if sum(size for _, size in numbers.places.values()) > whole:
        raise CheckpointError(f"{path} claims to hold more than its {whole} bytes: its entries overlap")

    def record(name: str) -> bytes:
        start, size = numbers.places.get(name, (0, 0))
        if size > MOST_PICKLED:
            raise CheckpointError(f"{path} holds {size} bytes that are no weights; {MOST_PICKLED} are read at most")
        file.seek(start)
        return file.read(size)

    if record("byteorder") == b"big":
        raise CheckpointError(f"{path} was written on a machine of big-endian byte order; save it again on this one")
    return _Unpickler(io.BytesIO(record("data.pkl")), path, numbers, "data/").load()


def _read_stream(path: Path, file: IO[bytes]) -> Any:
    """The format before PyTorch 1.6: magic number, version, machine, object, keys, and then the numbers."""
    numbers = _Numbers(path)
    pickles = _Bounded(file, path)
    if (first := _Unpickler(pickles, path, numbers).load()) != MAGIC:
        raise CheckpointError(
            f"{path} is a pickle that torch.save did not write (it holds {type(first).__name__}); save the weights "
            "with safetensors.torch.save_file(model.state_dict(), …)"
        )
    _version, machine, loaded, keys = (_Unpickler(pickles, path, numbers).load() for _ in range(4))
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise CheckpointError(f"{path} was written on a machine of big-endian byte order; save it again on this one")
    sizes: dict[str, int] = {}
    for storage in pickles.storages:
        sizes[storage.key] = max(storage.size, sizes.get(storage.key, 0))
        pickles.itemsize.setdefault(storage.key, storage.dtype.itemsize)
    whole, place = path.stat().st_size, file.tell()
    for key in keys:
        file.seek(place)
        size = int.from_bytes(file.read(8), "little", signed=True) * pickles.itemsize[key]
        place += 8
        if size < 0 or place + size > whole:
            raise ValueError("the file ends within its numbers")
        numbers.places[key] = place, size
        place += size
    return loaded


class _Bounded:
    """A file of which a pickle may read `MOST_PICKLED` bytes; it remembers the storages that the pickles name."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self._read = file, path, 0
        self._most = min(MOST_PICKLED, path.stat().st_size) + 1  # a file reserves as much as it is asked for
        self.storages: list[_Storage] = []
        self.itemsize: dict[str, int] = {}

    def read(self, count: int = -1) -> bytes:
        return self._checked(self._file.read(min(count, self._most) if count >= 0 else self._most))

    def readline(self) -> bytes:
        return self._checked(self._file.readline(self._most))

    def _checked(self, content: bytes) -> bytes:
        self._read += len(content)
        if self._read > MOST_PICKLED:
            raise CheckpointError(
                f"{self._path} holds more than {MOST_PICKLED} bytes that are no weights, and is not read"
            )
        return content


def _other_archive(names: list[str]) -> str:
    """What a zip file is that `torch.save` did not write, and what to do."""
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz); save the weights with safetensors.torch.save_file(…)"
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return "an exported program (torch.export), not weights; save model.state_dict() of the module it was made from"
    if any(name.endswith((".keras", "model.weights.h5")) for name in names):
        return "a Keras model; convert its weights to PyTorch first"
    return "a zip archive that torch.save did not write; unpack it, and give the file of weights inside"


def _cheap(key: Any) -> bool:
    """Whether a key takes no time to hash: tuples within tuples, and integers of a million digits, take for ever."""
    if type(key) is tuple:
        return len(key) <= 8 and not any(type(item) is tuple for item in key) and all(map(_cheap, key))
    if isinstance(key, int):
        return abs(key) < 2**64
    return key is None or isinstance(key, str | float | bytes | type | Inert)


# Written in Python, where the one in C would reserve memory for whatever place a pickle names.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Python's own unpickler, with every step that could build or call a thing taken over."""

    dispatch: dict[int, Callable[..., Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: Any, path: Path, numbers: _Numbers, folder: str = "") -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._path, self._numbers, self._folder = path, numbers, folder
        self._file, self._copied = file, 0
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): self._dictionary,
            ("collections", "defaultdict"): lambda _factory=None, *items: self._dictionary(*items),
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
            ("torch._tensor", "_rebuild_from_type_v2"): lambda function, _kind, args, _state: self._call(
                function, args
            ),
        }

    def find_class(self, module: str, name: str) -> Any:
        module = _RENAMED.get(module, module).replace("numpy._core", "numpy.core")
        if (module, name) in self._functions:
            return self._functions[module, name]
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        dtype = vars(torch).get(name) if module == "torch" else None  # getattr would import modules of that name
        if isinstance(dtype, torch.dtype):
            return dtype
        inert = module == "numpy.dtypes" or module.startswith("torch.optim.")
        if inert or (module, name) in _INERT_NAMES:
            return Inert
        if module.startswith(_LAYERS):
            raise UnsafeCheckpointError(
                f"{self._path} holds a whole model, as torch.save(model) writes it, and could run code when opened, so "
                f"it was not (it names {module}.{name}); save the weights alone where the file is trusted: "
                "safetensors.torch.save_file(model.state_dict(), …)"
            )
        if name.startswith("_rebuild") or module.startswith("torchao."):
            raise CheckpointError(
                f"{self._path} holds tensors that are quantized, sparse or spread over processes ({module}.{name}); "
                "save plain ones: dequantize them, or gather them in one process"
            )
        raise UnsafeCheckpointError(
            f"{self._path} is a pickle that could run code when opened, so it was not (it names {module}.{name}); ask "
            "for the weights alone, saved by safetensors.torch.save_file(model.state_dict(), …)"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, length, *view = pid
        known = kind == "storage" and isinstance(dtype, torch.dtype) and type(length) is int and view in ([], [None])
        if not known or type(key) not in (str, int) or not _cheap(key) or not 0 <= length < 2**62:
            raise ValueError("a storage is described in no known way")
        storage = _Storage(f"{self._folder}{key}", dtype, length)
        if isinstance(self._file, _Bounded):
            self._file.storages.append(storage)
        return storage

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor has no storage")
        dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], torch.dtype) else storage.dtype
        lengths = (*shape, *stride, offset) if type(shape) is type(stride) is tuple and len(shape) <= 64 else ()
        if len(lengths) != 2 * len(shape) + 1 or not all(type(n) is int and 0 <= n < 2**62 for n in lengths):
            raise ValueError("a tensor has no shape that there could be")
        return StoredTensor(shape, storage, offset, stride, dtype, self._numbers)

    # -- the steps that build ------------------------------------------------------------------------------------------

    def _call(self, function: Any, args: Any) -> Any:
        if function is not Inert and function not in self._functions.values():
            raise ValueError("something is called that is no function")
        return function(*args)

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _new_with_options(self) -> None:
        del self.stack[-1]
        self._reduce()

    def _build(self) -> None:
        self.stack.pop()  # the state of an object; containers are filled in other ways

    def _set_items(self) -> None:
        self._fill(self.pop_mark())

    def _set_item(self) -> None:
        items = [self.stack.pop(), self.stack.pop()]
        self._fill(items[::-1])

    def _dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(items)

    def _fill(self, items: list[Any]) -> None:
        container = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not _cheap(key):
                raise ValueError("a dictionary has keys that are no names")
            if isinstance(container, dict):
                container[key] = value

    def _dictionary(self, *items: Any) -> dict[Any, Any]:
        """A dictionary from nothing, another one, or a list of pairs, as `OrderedDict` was saved by Python 2."""
        pairs = list(items[0].items() if isinstance(items[0], dict) else items[0]) if items else []
        self._copied += len(pairs)
        if self._copied > MOST_PICKLED or not all(_cheap(key) for key, _ in pairs):
            raise ValueError("a dictionary has keys that are no names, or is copied without end")
        return dict(pairs)

    def _add_items(self) -> None:
        self.pop_mark()  # sets are data of the script's own

    def _frozen_set(self) -> None:
        self.pop_mark()
        self.stack.append(Inert())

    def _byte_array(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.read(length)  # at most what the file has
        self.stack.append(Inert())

    def _refuse(self, *_: Any) -> None:
        raise ValueError("it holds what no checkpoint does")

    for _opcode, _step in {
        pickle.REDUCE: _reduce,
        pickle.NEWOBJ: _reduce,
        pickle.NEWOBJ_EX: _new_with_options,
        pickle.BUILD: _build,
        pickle.SETITEM: _set_item,
        pickle.SETITEMS: _set_items,
        pickle.DICT: _dict,
        pickle.ADDITEMS: _add_items,
        pickle.FROZENSET: _frozen_set,
        pickle.BYTEARRAY8: _byte_array,
        **dict.fromkeys((pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4), _refuse),
        **dict.fromkeys((pickle.NEXT_BUFFER, pickle.READONLY_BUFFER), _refuse),
    }.items():
        dispatch[_opcode[0]] = _step
