"""The folder of a run may come from anybody: whatever it holds, the report ends with a page or with one clear error."""

import csv
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from run_folder import SCHEMA, manifest, write_run
from safetensors.numpy import save
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.errors import RunFolderError, VitrailError
from vitrail.evaluate.parquet_rows import Done
from vitrail.evaluate.run_directory import RunFolder
from vitrail.evaluate.run_reader import read_run
from vitrail.report import build_board, write_report
from vitrail.report.checks import warnings
from vitrail.report.examples import extremes, picture_of
from vitrail.report.protocol import asked, run_facts

METHODS = ["raw", "gae"]
IMAGES, BLOCK = 4, 2


def table(rows=None, **columns) -> pa.Table:
    """The rows of a block; `columns` replace its own."""
    if rows is None:
        rows = [(i, "a.jpg", i, i, i, m, "plain", "hit", None, i + 0.5) for i in range(BLOCK) for m in METHODS]
    arrays = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), SCHEMA.types, strict=True)]
    found = pa.table(arrays, schema=SCHEMA)
    for name, column in columns.items():
        found = found.set_column(SCHEMA.names.index(name), name, pa.array(column))
    return found.replace_schema_metadata({"failures": "[]"})


def parquet(found: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(found, sink)
    return sink.getvalue().to_pybytes()


def forged(folder: Path, rows: bytes | None = None, maps: bytes | None = None, told=None) -> Path:
    """A run whose first block is this, with the right digests: whoever forges a run forges them too."""
    folder.mkdir()
    (folder / "manifest.json").write_text(
        json.dumps(manifest(IMAGES, METHODS, {"plain": {}}) | {"format": 2, "block": BLOCK} | (told or {}))
    )
    RunFolder(folder).write(Done(0, parquet(table()) if rows is None else rows, maps))
    return folder


def report(folder: Path) -> None:
    """All of the report but its figures, which take long to draw."""
    run = read_run(folder)
    board = build_board([run], resamples=100)
    warnings([run], board), run_facts([run]), asked([run])
    column = next(iter(board.columns), None)
    shown = extremes([run], board, column, 1) if column is not None else {}
    for sides in shown.values():
        for one in (one for some in sides.values() for one in some):
            picture_of(one, column)


def test_an_untouched_one_is_read(tmp_path):
    maps = save({"image/0": np.zeros((4, 4, 3), np.uint8), "map/0/raw": np.eye(2, dtype=np.float32)})
    report(forged(tmp_path / "run", maps=maps))
    assert read_run(tmp_path / "run").curves("raw", "plain").values["hit"].tolist() == [[0.5], [1.5]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 10**400}, r"its images is 10+…, and not a number of images up to 2147483647"),
        ({"images": True}, "its images is true"),
        ({"images": 4.0}, r"its images is 4\.0"),
        ({"images": -1}, "its images is -1"),
        ({"images": 0}, "holds block 0, and its manifest.json tells of 0 images"),
        ({"block": 0}, "its block is 0"),
        ({"block": "two"}, 'its block is "two"'),
        ({"methods": "raw"}, 'its methods is "raw", and not a list of up to 300 names'),
        ({"methods": ["raw", "raw"]}, "its methods"),
        ({"methods": ["raw", "gae\x1b[2J"]}, "its methods"),
        ({"methods": [f"m{n}" for n in range(301)]}, "its methods"),
        ({"methods": ["x" * 101]}, "its methods"),
        ({"protocols": ["plain"]}, "its protocols"),
        ({"protocols": {"plain": 3}}, "its protocols"),
        ({"model": {"class_names": "abc"}}, "its model"),
        ({"plan": []}, r"its plan is \[\]"),
        ({"plan": {"batch": "many"}}, "its plan"),
        ({"format": 10**300}, "is of format 10+…, and this Vitrail reads up to 2"),
        ({"format": "2"}, "names no format"),
        ({"note": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_manifests_that_say_nonsense_are_refused(tmp_path, changes, said):
    folder = forged(tmp_path / "run")
    told = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(RunFolderError, match=said):
        read_run(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": ' + "9" * 5000 + "}", '{"format": NaN}', "\x00", "\xff", '"', "{}", ""]
)
def test_text_that_is_no_manifest_is_refused(tmp_path, text):
    folder = forged(tmp_path / "run")
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunFolderError, match=r"manifest\.json is (damaged|not the manifest)"):
        read_run(folder)


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "rows/block-000000.parquet", "maps/block-000000.safetensors", "digests/block-000000.sha256"],
)
@pytest.mark.parametrize(
    "put", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)]
)
def test_pipes_devices_folders_and_links_in_circles_are_refused_at_once(tmp_path, name, put):
    maps = save({"image/0": np.zeros((4, 4, 3), np.uint8)})
    folder = forged(tmp_path / "run", maps=maps)
    (folder / name).unlink()
    put(folder / name)
    started = time.perf_counter()
    with pytest.raises(RunFolderError, match=Path(name).name):
        read_run(folder)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("name", ["manifest.json", "run.lock"])
def test_a_pipe_does_not_hold_up_a_run_that_is_resumed(tmp_path, name):
    folder = forged(tmp_path / "run")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    store = RunFolder(folder)
    with pytest.raises(VitrailError, match="is not a regular file"), store.writing({}):
        pass


HIGH = [2**31 - 1] * 4


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (table(image=pa.array(HIGH, pa.int32())), r"its column image holds 2\.14748e\+09, which cannot be"),
        (table(image=pa.array([2] * 4, pa.int32())), "its column image holds 2, which cannot be"),
        (table(image=pa.array([-1] * 4, pa.int32())), "its column image holds -1"),
        (table(image=pa.array([0.0] * 4)), "its column image is of double, and not of int32"),
        (table(image=[[0]] * 4), "its column image is of list"),
        (
            table(source=pa.array([b"\xff"] * 4).cast(pa.string(), safe=False) if False else pa.array([0] * 4)),
            "its column source is of int64",
        ),
        (table(method=pa.array(["raw", None, "raw", "gae"])), "entries of method are missing"),
        (table(value=pa.array([0.0, 1.0, float("inf"), 0.0])), "its column value holds inf"),
        (table(value=pa.array([0.0, 1.0, 1e300, 0.0])), r"its column value holds 1e\+300"),
        (table(step=pa.array([float("-inf")] * 4)), "its column step holds -inf"),
        (table(source=pa.array(["x" * 5000] * 4)), "a source of no or of more than 4096 characters"),
        (table(method=pa.array(["other"] * 4)), "there are rows of other, of which its manifest.json says nothing"),
        (table(measure=pa.array(["\x1b[2J"] * 4)), "1 measures, such as"),
        (table().drop_columns(["step"]), "it has no column step"),
        (
            table([(0, "a", 0, 0, 0, "raw", "plain", "hit", None, 0.0)] * 100_000),
            "it has 100,000 rows, and at most 80,000",
        ),
        (table().replace_schema_metadata({"failures": "[1]"}), "damaged or cannot be read"),
        (
            table().replace_schema_metadata({"failures": '[{"image": 9, "source": "a", "reason": "b"}]'}),
            "a failure in it is of no image of this block",
        ),
        (
            table().replace_schema_metadata({"failures": '[{"image": 1, "source": "\\ud800", "reason": "b"}]'}),
            "surrogates",
        ),
        (table().replace_schema_metadata({"failures": "[" * 90_000}), "damaged or cannot be read"),
    ],
)
def test_rows_that_no_evaluation_writes_are_refused(tmp_path, rows, said):
    with pytest.raises(RunFolderError, match=said) as refusal:
        report(forged(tmp_path / "run", parquet(rows)))
    assert str(tmp_path / "run") in str(refusal.value)


def test_rows_that_unpack_to_much_more_take_no_memory(tmp_path):
    one = table([(0, "a", 0, 0, 0, "raw", "plain", "hit", None, 0.0)])
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, one.schema) as writer:
        many = pa.table([pa.repeat(column[0], 100_000) for column in one.columns], schema=one.schema)
        for _ in range(30):
            writer.write_table(many)
    folder = forged(tmp_path / "run", sink.getvalue().to_pybytes(), told={"images": 10_000, "block": 10_000})
    before = pa.total_allocated_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrail.evaluate.run_reader.free_memory", lambda _: 2**28)
        with pytest.raises(RunFolderError, match="its 3,000,000 rows do not fit into the memory that is free"):
            read_run(folder)
    assert pa.total_allocated_bytes() - before < 2**24


def test_steps_that_differ_from_image_to_image_make_no_table(tmp_path):
    rows = [(i, "a", 0, 0, 0, "raw", "plain", "hit", i + 0.25, 0.5) for i in range(2000)]
    folder = forged(tmp_path / "run", parquet(table(rows)), told={"images": 2000, "block": 2000})
    with pytest.raises(RunFolderError, match="2000 steps of plain for 2000 images, and only 2000 numbers"):
        report(folder)


def test_a_high_index_takes_no_memory(tmp_path):
    folder = forged(tmp_path / "run", told={"images": 2**31 - 1, "block": 2**31 - 1})
    rows = table(image=pa.array([0, 0, 2**31 - 2, 2**31 - 2], pa.int32()))
    RunFolder(folder).write(Done(0, parquet(rows)))
    report(folder)  # where an array as long as the index would be 16 GiB


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"image/0": np.zeros((4, 4), np.uint8)}, "its picture 0 is none"),
        ({"image/0": np.zeros((4, 4, 3), np.float32)}, "its picture 0 is none"),
        ({"image/0": np.zeros((0, 4, 3), np.uint8)}, "image/0 is of 0 x 4 x 3"),
        ({"image/0": np.zeros((1, 5000, 3), np.uint8)}, "image/0 is of 1 x 5000 x 3"),
        ({"image/0": np.zeros((4, 4, 3), np.uint8), "map/0/raw": np.zeros(3, np.float32)}, "its map of image 0 by raw"),
        ({"image/0": np.zeros((4, 4, 3), np.uint8), "map/0/raw": np.full((2, 2), np.nan, np.float32)}, "its map of"),
        ({"image/0": np.zeros((4, 4, 3), np.uint8), "map/0/raw": np.zeros((2, 2), np.int64)}, "its map of"),
    ],
)
def test_pictures_and_maps_that_are_none_are_refused(tmp_path, tensors, said):
    tensors = {"map/0/raw": np.eye(2, dtype=np.float32)} | tensors
    with pytest.raises(RunFolderError, match=said):
        report(forged(tmp_path / "run", maps=save(tensors)))


# -- what is written -------------------------------------------------------------------------------------------------

EVIL = '"><img src=x onerror=alert(1)>'
FORMULAS = ("=HYPERLINK(1)", "@SUM(1)", "+1", "-1", "\t=1", "\r=1")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    methods, names = ["=raw", f"m{EVIL}"], [f"$\\frac{EVIL}", "@a", "=b"]
    told = manifest(4, methods, {f"=plain{EVIL}": {f"@o{EVIL}": EVIL}}, preset=EVIL)
    told["model"] = {"name": EVIL, "class_names": names}
    rows = [(i, m, f"=plain{EVIL}", f"+hit{EVIL}", step, i / 3) for i in range(4) for m in methods for step in (0, 1)]
    failures = [
        {"image": 0, "source": one, "method": "=raw", "protocol": f"=plain{EVIL}", "reason": f"{one} {EVIL}"}
        for one in FORMULAS
    ]
    pictures = {i: np.full((8, 8, 3), 9, np.uint8) for i in range(4)}
    maps = {(i, m): np.eye(2, dtype=np.float32) for i in range(4) for m in methods}
    write_run(folder, told, rows, failures=failures, pictures=pictures, maps=maps)
    write_report([folder], folder.parent / "out", resamples=100, pictures=1)
    return folder.parent / "out"


def test_no_cell_of_a_table_is_a_formula(hostile):
    for path in hostile.glob("*.csv"):
        with path.open(newline="") as file:
            head, *cells = list(csv.reader(file))
        for row in cells:
            for name, cell in zip(head, row, strict=True):
                numeric = cell.lstrip("-").replace(".", "").replace("e-", "").replace("e+", "").isdigit()
                assert numeric or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), (path.name, name, cell)
    with (hostile / "failures.csv").open(newline="") as file:
        assert [row["source"] for row in csv.DictReader(file)] == [
            "'=HYPERLINK(1)",
            "'@SUM(1)",
            "'+1",
            "'-1",
            r"\t=1",
            r"\r=1",
        ]


def test_nothing_foreign_is_markup_on_the_page_or_in_the_tables(hostile):
    for name in ("index.html", "leaderboard.md"):
        assert "<img src=x" not in (hostile / name).read_text(), name
    for path in hostile.glob("figures/*.svg"):
        assert "<img src=x" not in path.read_text(), path.name


@pytest.mark.parametrize("name", ["pipe", "empty"])
def test_the_command_ends_with_one_line_and_leaves_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = forged(tmp_path / "pipe")
    (folder / "rows/block-000000.parquet").unlink()
    os.mkfifo(folder / "rows/block-000000.parquet")
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["report", name])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "report").exists()


# -- whatever it holds -----------------------------------------------------------------------------------------------

numbers = st.integers() | st.floats() | st.sampled_from([2**31 - 1, 2**63, -(2**63), 10**30, 1e308])
words = st.text(max_size=12) | st.sampled_from(
    ["raw", "plain", "perturbation", "../..", "=1", "<b>", "image/0", "\x1b"]
)
plain = st.none() | st.booleans() | numbers | words
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=5
)
cells = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | words | st.binary(max_size=4)


@st.composite
def manifests(draw) -> bytes:
    told = manifest(IMAGES, METHODS, {"plain": {}}, block=BLOCK, plan={"batch": 1, "threads": 1}) | {"format": 2}
    for key in draw(st.lists(st.sampled_from(sorted(told)), max_size=2, unique=True)):
        told[key] = draw(values)
    if draw(st.booleans()):
        told["protocols"] = {
            draw(words): draw(values),
            "perturbation": draw(st.dictionaries(st.sampled_from(["auc", "shares"]), values)),
        }
    text = json.dumps(told).encode()
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) == 0 else text


@st.composite
def blocks(draw) -> bytes:
    found = table()
    for name in draw(st.lists(st.sampled_from(SCHEMA.names), max_size=2, unique=True)):
        kind = SCHEMA.field(name).type
        column = draw(st.lists(cells, min_size=len(found), max_size=len(found)))
        try:
            array = pa.array(column, kind) if draw(st.booleans()) else pa.array(column)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            assume(False)
        try:
            found = found.set_column(SCHEMA.names.index(name), name, array)
        except pa.ArrowException:
            assume(False)
    found = found.replace_schema_metadata(
        {"failures": json.dumps(draw(values))} if draw(st.booleans()) else {"failures": "[]"}
    )
    try:
        content = parquet(found)
    except pa.ArrowException:
        assume(False)
    return draw(damaged(content))


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Some bytes changed, swapped or cut off, or none."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(content)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "swap"]))
        if how == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[place : place + draw(st.integers(1, 40))]
        elif how == "insert":
            content[place:place] = draw(st.binary(max_size=20))
        else:
            content = content[place:] + content[:place]
    return bytes(content)


@st.composite
def kept(draw) -> bytes:
    kinds = st.sampled_from([np.uint8, np.float32, np.float64, np.int8, np.bool_, np.float16])
    tensors = {"image/0": np.zeros((4, 4, 3), np.uint8), "map/0/raw": np.eye(2, dtype=np.float32)}
    for name in draw(
        st.lists(
            st.sampled_from(["image/0", "image/1", "image/x", "map/0/raw", "map/1/gae", "image", "", "//"]), max_size=3
        )
    ):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
        with np.errstate(invalid="ignore"):
            tensors[name] = np.full(shape, draw(st.sampled_from([0, 1, np.nan, np.inf])), np.float32).astype(
                draw(kinds)
            )
    return draw(damaged(save(tensors)))


FILES = (
    "manifest.json",
    "rows/block-000000.parquet",
    "maps/block-000000.safetensors",
    "digests/block-000000.sha256",
    "rows",
    "maps",
)
PUT = {
    "pipe": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: path.mkdir(),
    "device": lambda path, _: path.symlink_to("/dev/zero"),
    "circle": lambda path, _: path.symlink_to(path),
    "other": lambda path, folder: path.symlink_to(folder / "manifest.json"),
    "nothing": lambda path, _: None,
}


def survives(folder: Path, told: bytes, rows: bytes, maps: bytes, put) -> None:
    """Whatever is in the folder, reading it ends soon, with numbers or an error of our own."""
    folder.mkdir()
    store = RunFolder(folder)
    (folder / "manifest.json").write_bytes(told)
    store.write(Done(0, rows, maps))
    if put is not None:
        name, what = put
        path = folder / name
        path.rename(folder / "gone") if path.is_dir() else path.unlink()
        PUT[what](path, folder)
    before = sorted(path.name for path in folder.parent.iterdir())
    started, memory = time.perf_counter(), pa.total_allocated_bytes()
    try:
        report(folder)
    except VitrailError as error:
        assert len(str(error)) < 2000  # noqa: PT017 (it may also end well)
    assert time.perf_counter() - started < 5
    assert pa.total_allocated_bytes() - memory < 2**24
    assert sorted(path.name for path in folder.parent.iterdir()) == before


SLOW = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
changes = {
    "told": manifests(),
    "rows": blocks() | st.just(parquet(table())),
    "maps": kept(),
    "put": st.none() | st.none() | st.tuples(st.sampled_from(FILES), st.sampled_from(sorted(PUT))),
}


@settings(SLOW, max_examples=30)
@given(**changes)
def test_any_folder_ends_with_numbers_or_one_clear_error(tmp_path_factory, told, rows, maps, put):
    survives(tmp_path_factory.mktemp("any") / "run", told, rows, maps, put)


@pytest.mark.slow
@settings(SLOW, max_examples=3000)
@given(**changes)
def test_any_of_many_folders_ends_with_numbers_or_one_clear_error(tmp_path_factory, told, rows, maps, put):
    survives(tmp_path_factory.mktemp("any") / "run", told, rows, maps, put)
