"""The report says what the rows say: numbers, comparisons, pictures, failures, and where runs differ."""

import csv
import html.parser
import json
import re

import numpy as np
import pytest
from run_folder import evaluated, manifest, write_run
from typer.testing import CliRunner

from vitrail.cli import app
from vitrail.errors import OptionError, RunFolderError
from vitrail.evaluate.run_reader import read_run
from vitrail.metrics.aggregation import Statistic
from vitrail.metrics.protocol import PROTOCOLS, ProtocolInfo
from vitrail.report import build_board, examples, write_report
from vitrail.report.checks import warnings
from vitrail.report.examples import Extreme, draw_gallery
from vitrail.report.tables import latex, markdown

MEANS = {"good": 0.8, "level": 0.79, "bad": 0.3}


@pytest.fixture(scope="module", autouse=True)
def _known_protocols():
    """Two protocols of known answers: a plain mean with a curve, where low is good, and accumulated counts."""

    def plain(curves, *, sharp=1, **_):
        return {"area": Statistic.mean(curves.values["fall.hit"].mean(axis=1), -1)}

    def overlap(curves, **_):
        over, under = (np.stack([curves.single(f"{kind}.{c}") for c in "ab"], axis=1) for kind in ("over", "under"))
        return {"mIoU": Statistic(over, under, 1), "size": Statistic.mean(under.sum(axis=1), 0)}

    def measure(case, scores, *, sharp=1):
        """What falls.

        `sharp` is how sharply it falls.
        """

    with pytest.MonkeyPatch.context() as patch:
        for name, summarise in (("plain", plain), ("overlap", overlap)):
            info = ProtocolInfo(name, measure, summarise, (), "Somebody 2020", "What falls.")
            patch.setitem(PROTOCOLS, name, info)
        yield


def drawn(folder, *, images=60, methods=MEANS, seed=0, lost=(), pictures=0, protocols=("plain", "overlap"), **told):
    rng = np.random.default_rng(seed)
    hard, rows, kept, maps = rng.normal(size=images) * 0.2, [], {}, {}
    for i in range(images):
        if i < pictures:
            kept[i] = rng.integers(0, 255, (24, 36, 3), dtype=np.uint8)
        for method, mean in methods.items():
            maps |= {(i, method): rng.normal(size=(4, 6)).astype(np.float32)} if i < pictures else {}
            if (i, method) in lost:
                continue
            value = mean + hard[i] + 0.05 * rng.normal()
            if "plain" in protocols:
                rows += [(i, method, "plain", "fall.hit", step, value - step) for step in (0.0, 0.5, 1.0)]
                rows += [(i, method, "plain", "rise.hit", step, value + step) for step in (0.0, 0.5, 1.0)]
            if "overlap" in protocols:
                under = rng.integers(1, 100, size=2).astype(float)
                for c, count in zip("ab", under, strict=True):
                    rows += [(i, method, "overlap", f"over.{c}", None, float(rng.binomial(count, mean)))]
                    rows += [(i, method, "overlap", f"under.{c}", None, float(count))]
    failures = [
        {"image": i, "source": f"scene-{i:05d}", "method": m, "protocol": "plain", "reason": "NaN <here>"}
        for i, m in lost
    ]
    told = manifest(images, list(methods), {name: {"sharp": 1} for name in protocols}) | told
    return write_run(folder, told, rows, failures=failures, pictures=kept, maps=maps)


class Page(html.parser.HTMLParser):
    """The page as a reader's program sees it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_leaderboard_says_what_is_known_of_the_numbers(tmp_path):
    board = build_board([read_run(drawn(tmp_path / "run"))])
    area, overlap, size = board.columns
    assert [one.title for one in board.columns] == ["plain: area", "overlap: mIoU", "overlap: size"]
    # Low is good for the area, so the method of the lowest mean is the best, and certainly so.
    assert area.best == {"bad"}
    assert area.tied == frozenset()
    assert area.ranks["bad"] == 1.0
    assert sorted(area.ranks.values()) == [1.0, 2.0, 3.0]
    assert area.pairs["bad", "good"].certainty == 1.0
    assert area.cells["bad"].mean == pytest.approx(0.3 - 0.5, abs=0.08)
    assert overlap.cells["good"].mean == pytest.approx(0.8, abs=0.03)
    assert overlap.ranks["bad"] == 3.0
    assert (size.ranks, size.best, size.tied) == ({}, frozenset(), frozenset())
    assert board.mean_rank["bad"] == 2.0


def test_what_cannot_be_told_from_the_best_is_said_to_be_level(tmp_path):
    board = build_board([read_run(drawn(tmp_path / "run", methods={"a": 0.5, "b": 0.5, "c": 0.9}, images=40))])
    (best,) = board.columns[0].best
    assert best in ("a", "b")
    assert board.columns[0].tied == {"a", "b"} - {best}


def test_a_method_that_failed_is_compared_on_the_images_that_both_have(tmp_path):
    lost = [(i, "good") for i in range(10)]
    run = read_run(drawn(tmp_path / "run", lost=lost))
    column = build_board([run]).columns[0]
    assert (column.cells["good"].size, column.cells["bad"].size) == (50, 60)
    assert column.pairs["good", "bad"].difference.size == 50
    values = {
        m: dict(zip(c.images, c.values["fall.hit"].mean(1), strict=True))
        for m in MEANS
        for c in [run.curves(m, "plain")]
    }
    both = [values["good"][i] - values["bad"][i] for i in range(10, 60)]
    assert column.pairs["good", "bad"].difference.mean == pytest.approx(np.mean(both))


def test_one_image_and_one_method_alone_are_reported(tmp_path):
    one = write_report(
        [drawn(tmp_path / "a", images=1, pictures=1, protocols=("plain",))], tmp_path / "out-a", resamples=100
    )
    assert one.board.columns[0].tied == {"good", "level"}  # nothing is known
    assert "plain: 1 images are few; the intervals are too short to be 95 % ones." in one.warnings
    Page(one.page.read_text())
    alone = write_report(
        [drawn(tmp_path / "b", methods={"good": 0.8}, images=40, pictures=3, protocols=("plain",))],
        tmp_path / "out-b",
        resamples=100,
    )
    assert alone.board.columns[0].pairs == {}
    text = Page(alone.page.read_text()).text
    assert "Which is better than which?" not in text
    assert "The value of each image alone." in text


def test_a_run_without_a_number_is_refused_and_leaves_nothing(tmp_path):
    folder = drawn(tmp_path / "run", methods={"good": 0.8}, images=0)
    with pytest.raises(RunFolderError, match=r"nothing was measured \(plain: no image is finished; overlap: no image"):
        write_report([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_reported_with_a_warning(tmp_path):
    folder = drawn(tmp_path / "run")
    (folder / "rows" / "block-000003.parquet").unlink()
    run = read_run(folder)
    said = warnings([run], build_board([run], resamples=100))
    assert "run is not finished: 3 of 4 blocks of images are there." in said


def test_a_protocol_that_is_not_registered_is_shown_as_plain_means(tmp_path, monkeypatch):
    folder = drawn(tmp_path / "run", protocols=("plain",))
    monkeypatch.delitem(PROTOCOLS, "plain")
    run = read_run(folder)
    board = build_board([run], resamples=100)
    assert [one.name for one in board.columns] == ["mean fall.hit", "mean rise.hit"]
    assert board.columns[0].better == 0
    assert board.columns[0].cells["bad"].mean == pytest.approx(0.3 - 0.5, abs=0.08)
    assert "run: no protocol 'plain' is registered here; its measures are shown as plain means." in (
        warnings([run], board)
    )


def test_rows_of_another_version_are_refused(tmp_path, monkeypatch):
    run = read_run(drawn(tmp_path / "run", protocols=("plain",)))
    monkeypatch.setitem(PROTOCOLS, "plain", PROTOCOLS["overlap"])
    with pytest.raises(RunFolderError, match="the rows of plain are not those that this Vitrail writes"):
        build_board([run])


# -- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def written(place):
    lost = [(3, "bad"), (7, "bad")]
    return write_report([drawn(place / "my run", lost=lost, pictures=12)], place / "out", resamples=200)


def test_the_page_stands_alone_and_can_be_read_by_everybody(written):
    source = written.page.read_text()
    page = Page(source)
    assert "http" not in source
    assert re.findall(r'(?:src|href)="(?!#|data:image/jpeg;base64,)[^"]*"', source) == []
    assert re.findall(r"url\((?!#)", source) == []
    assert not page.all("link")
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    assert all(head.get("scope") for head in page.all("th"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    asked = {
        attrs[key] for _, attrs in page.tags for key in ("href", "xlink:href") if attrs.get(key, "").startswith("#")
    }
    assert {one[1:] for one in asked} <= set(ids)


def test_the_page_tells_numbers_failures_and_the_whole_protocol(written):
    text = Page(written.page.read_text()).text
    area = written.board.columns[0]
    assert "★ best; † cannot be told from the best" in text
    assert area.text(area.cells["bad"].mean) in text
    assert "plain: area. bad is best" in text
    assert "2 measurements failed and are in no mean." in text
    assert "NaN <here>" in text
    assert "58 images" in text
    assert "sharp is how sharply it falls." in text
    for fact in ("9a0b" * 16, "5f1c" * 16, "2026-01-31T12:00:00+00:00", "my run", "After Somebody 2020."):
        assert fact in text
    assert "The maps are of the predicted class; the model predicts the true one on 60 of 60 images (100.0 %)." in text


def test_best_and_worst_images_are_those_where_a_method_leads_the_others(written, place):
    run = read_run(place / "my run")
    tables = {m: run.curves(m, "plain") for m in MEANS}
    values = {m: dict(zip(c.images, c.values["fall.hit"].mean(1), strict=True)) for m, c in tables.items()}
    usual = {method: np.mean(list(own.values())) for method, own in values.items()}
    others = {i: np.mean([values[m][i] - usual[m] for m in ("bad", "level") if i in values[m]]) for i in range(12)}
    assert 3 not in values["bad"]  # there "level" stands for both
    lead = {i: others[i] + (usual["bad"] + usual["level"]) / 2 - values["good"][i] for i in range(12)}
    order = sorted(lead, key=lead.__getitem__, reverse=True)
    source = written.page.read_text()
    section = source[source.index('<section id="pictures">') :]
    section = section[section.index("<summary><b>good</b></summary>") :]
    shown = [int(n) for n in re.findall(r"<br>scene-(\d+)", section)[:6]]
    assert shown == [*order[:3], *order[:-4:-1]]


def test_tables_beside_the_page_hold_the_same_numbers(written, place):
    area = written.board.columns[0]
    (row,) = [
        one for one in rows_of(place / "out/leaderboard.csv") if (one["number"], one["method"]) == ("area", "bad")
    ]
    assert (row["images"], row["better"], row["rank"]) == ("58", "-1", "1")
    assert float(row["low"]) == pytest.approx(area.cells["bad"].low)
    pairs = rows_of(place / "out/differences.csv")
    assert len(pairs) == 3 * 6
    assert float(pairs[0]["certainty_a_is_better"]) == area.pairs[pairs[0]["a"], pairs[0]["b"]].certainty
    curve = [
        one for one in rows_of(place / "out/curves.csv") if (one["measure"], one["method"]) == ("fall.hit", "good")
    ]
    assert [float(one["step"]) for one in curve] == [0.0, 0.5, 1.0]
    assert float(curve[0]["mean"]) - float(curve[2]["mean"]) == pytest.approx(1.0)
    assert [one["image"] for one in rows_of(place / "out/failures.csv")] == ["3", "7"]
    assert json.loads((place / "out/manifests.json").read_text())["my run"]["preset"] == "bi"
    names = {path.name for path in (place / "out/figures").iterdir()}
    assert names == {"leaderboard.png", "leaderboard.svg", "plain-hit.png", "plain-hit.svg", "best-and-worst.png"}
    assert {path.name for path in written.files} == names | {
        path.name for path in (place / "out").iterdir() if path.is_file()
    }


def test_the_gallery_says_how_many_methods_it_leaves_out(written, monkeypatch):
    column = written.board.columns[0]
    methods = {
        entry.label: {
            side: [
                Extreme(
                    entry=entry,
                    image=0,
                    value=0.5,
                    lead=0.0,
                    good=side == "best",
                    seen=np.zeros((32, 32, 3), np.uint8),
                    scores=np.eye(4, dtype=np.float32),
                    signed=True,
                    title="a scene",
                    source="scene-0",
                )
            ]
            for side in ("best", "worst")
        }
        for entry in written.board.entries
    }

    def words():
        return [text.get_text() for text in draw_gallery(methods, column).texts]

    assert not [text for text in words() if "methods" in text]
    monkeypatch.setattr(examples, "MOST", 2)
    (note,) = [text for text in words() if "methods" in text]
    assert note.endswith("The first 2 of 3 methods.")
    assert {"good", "level", "bad"} - set(words()) == {written.board.entries[2].label}


def test_markdown_and_latex_mark_the_best_and_what_is_level(tmp_path):
    board = build_board(
        [read_run(drawn(tmp_path / "run", methods={"a_1": 0.5, "b": 0.501, "c": 0.9}, protocols=("plain",)))]
    )
    column = board.columns[0]
    (best,), (level,) = column.best, column.tied
    lines = markdown(board).splitlines()
    assert lines[0] == "| method | plain: area ↓ |"
    assert len({line.count("|") for line in lines[:5]}) == 1
    value = column.text(column.cells[best].mean)
    assert any(line.startswith(f"| {best} | **{value}** [") for line in lines)
    assert any(line.startswith(f"| {level} | {column.text(column.cells[level].mean)}† [") for line in lines)
    text = latex(board)
    assert r"a\_1 & $" in text
    assert rf"\mathbf{{{value.replace('−', '-')}}}" in text
    assert text.count("{") == text.count("}")


def test_digits_are_those_that_the_uncertainty_leaves(tmp_path):
    column = build_board([read_run(drawn(tmp_path / "run"))]).columns[0]
    half = np.median([(one.high - one.low) / 2 for one in column.cells.values()])
    assert column.decimals == 3
    assert 0.01 <= half < 0.1
    assert column.text(-0.12345) == "−0.123"
    assert column.text(0.12345, sign=True) == "+0.123"
    assert column.text(float("nan")) == "–"


def test_the_same_rows_give_the_same_files(tmp_path):
    run = drawn(tmp_path / "run", pictures=2, images=20, protocols=("plain",), methods={"a": 0.2, "b": 0.3})
    one, other = (write_report([run], tmp_path / name, resamples=100) for name in ("a", "b"))
    for first, second in zip(one.files, other.files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


# -- several runs ----------------------------------------------------------------------------------------------------


def test_runs_stand_side_by_side_and_are_paired_by_the_images_names(tmp_path):
    first = drawn(tmp_path / "one", images=30)
    second = drawn(tmp_path / "two", images=50, methods={"good": 0.4}, protocols=("plain",), checkpoint="77" * 32)
    runs = [read_run(first), read_run(second)]
    board = build_board(runs, resamples=200)
    column = board.columns[0]
    assert list(column.cells) == ["one/good", "one/level", "one/bad", "two/good"]
    assert column.pairs["two/good", "one/good"].difference.size == 30
    assert column.pairs["two/good", "one/good"].difference.mean == pytest.approx(-0.4, abs=0.1)
    said = " ".join(warnings(runs, board))
    assert f"one and two differ in their checkpoint: {'9a0b' * 9}9… against {'77' * 18}7…." in said
    assert "one and two differ in their data: count 30 against 50." in said
    assert "one and two have 30 images of the same name in common" in said
    assert "measured plain differently" not in said


def test_a_protocol_measured_otherwise_is_warned_of(tmp_path):
    first, second = (drawn(tmp_path / name / "run", protocols=("overlap",), images=30) for name in "ab")
    told = json.loads((second / "manifest.json").read_text()) | {"protocols": {"overlap": {"sharp": 2}}}
    (second / "manifest.json").write_text(json.dumps(told))
    written = write_report([first, second], tmp_path / "out", resamples=100)
    said = "measured overlap differently (sharp 1 against 2): shown apart, for the numbers do not compare."
    assert f"run (1) and run (2) {said}" in written.warnings
    assert "run (1)/good" in Page(written.page.read_text()).text
    titles = [column.title for column in written.board.columns]
    assert titles == [f"overlap [sharp={k}]: {name}" for k in (1, 2) for name in ("mIoU", "size")]
    assert list(written.board.columns[2].cells) == ["run (2)/good", "run (2)/level", "run (2)/bad"]


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_prints_the_table(tmp_path):
    run = drawn(tmp_path / "run", images=40, protocols=("overlap",))
    result = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "out"), "--resamples", "100"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "method\toverlap: mIoU ↑\toverlap: size"
    assert len(result.stdout.splitlines()) == 4
    assert f"Open {tmp_path / 'out' / 'index.html'}" in result.stderr


def test_the_command_gives_json(tmp_path):
    run = drawn(tmp_path / "run", images=40, protocols=("overlap",))
    result = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "out"), "--resamples", "100", "--json"])
    found = json.loads(result.stdout)
    assert found["page"].endswith("index.html")
    bad = next(line for line in found["leaderboard"] if line["method"] == "bad")
    assert (bad["numbers"][0]["rank"], bad["numbers"][0]["best"], bad["numbers"][1]["rank"]) == (3.0, False, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "is not the folder of a run"),
        (["run", "--by", "fame"], "no number is called 'fame'; there are 'plain: area', 'overlap: mIoU'"),
    ],
)
def test_the_command_refuses_with_a_reason(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    drawn(tmp_path / "run", images=4)
    result = CliRunner().invoke(app, ["report", *words, "--resamples", "100"])
    assert result.exit_code == 2
    assert said in result.stderr


def test_no_run_and_too_few_resamples_are_refused(tmp_path):
    with pytest.raises(OptionError, match="name at least one folder"):
        write_report([], tmp_path)
    with pytest.raises(OptionError, match="resamples=3 must be 100 or more"):
        write_report(["run"], tmp_path, resamples=3)


@pytest.mark.slow
def test_a_real_evaluation_is_reported_from_end_to_end(tmp_path):
    run = evaluated(tmp_path / "run", images=3)
    written = write_report([run], tmp_path / "out", resamples=100)
    assert [one.title for one in written.board.columns] == ["perturbation: positive AUC", "perturbation: negative AUC"]
    page = Page(written.page.read_text())
    assert "signed map of complete:libra for" in " ".join(image["alt"] for image in page.all("img"))
    assert len([one for one in page.all("svg") if one.get("role") == "img"]) == 8
