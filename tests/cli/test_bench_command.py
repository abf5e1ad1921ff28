"""`vitrail bench`: the quick form runs, prints its tables, and replaces the measured part of a page."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitrail.benchmark import PRESETS
from vitrail.benchmark.measure import Ratio
from vitrail.benchmark.page import markdown, write_page
from vitrail.benchmark.results import Measured, MemoryTable, Peak, Results, TargetTable, TimeTable, TokenFit, TokenTable
from vitrail.benchmark.rows import LIMIT
from vitrail.benchmark.subject import Case
from vitrail.cli import app
from vitrail.errors import OutputFileError


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_quick_runs(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    words = ["bench", "--quick", "--device", "cpu", "--model", "test_vit", "--sizes", "96", "--no-memory"]
    words += ["--along", "96", "128", "--along-model", "test_vit", "--output", str(page), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, repr(result.exception)
    found = json.loads(result.stdout)
    rows = {row["name"]: row for row in found["times"][0]["rows"]}
    assert rows[LIMIT]["over_limit"]["median"] == 1.0
    assert rows["vitrail complete"]["images_per_second"] == pytest.approx(2 / rows["vitrail complete"]["seconds"])
    assert rows["stored maps: gae"]["agreement"] < 1e-5
    assert [table["tokens"] for table in found["tokens"][0]["tables"]] == [37, 65]
    assert set(found["targets"][0]["share"]["complete"]) == {"1", "2"}
    assert (found["memory"], found["rounds"]) == ([], PRESETS["quick"].rounds)
    text = page.read_text()
    assert "| vitrail complete | 1F 1B |" in text
    assert (tmp_path / "pictures" / "performance-cpu.svg").exists()


def test_wrong_words() -> None:
    for words, message in (
        (["--quick", "--full"], "give --quick or --full, not both"),
        (["--output", "page.txt"], "--output page.txt cannot be a single .txt file"),
        (["--clock", "sun"], "--clock sun is none of wall, processor"),
        (["--quick", "--methods", "zebra"], "no method is called 'zebra'"),
    ):
        result = CliRunner().invoke(app, ["bench", *words], env={"COLUMNS": "200"})
        assert result.exit_code == 2
        assert message in result.stderr


def test_lists_take_several_words() -> None:
    import typer

    bench = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    words = ["--model", "tiny", "small", "--sizes", "224", "384", "--batch-size", "1", "8", "--full"]
    params = bench.make_context("bench", words).params
    assert (params["model"], params["sizes"], params["batch_size"]) == (["tiny", "small"], [224, 384], [1, 8])


def results() -> Results:
    case = Case("vit_tiny_patch16_224", 224, 8)
    row = Measured("vitrail complete", "1F 1B", 0.5, 16.0, Ratio(1.01, 0.99, 1.04), 1.6)
    limit = Measured(LIMIT, "1F 1B", 0.49, 16.2, Ratio(1.0, 1.0, 1.0), 1.6)
    absent = Measured("Captum LayerGradCam", "", note="not installed: pip install captum")
    sweep = [TimeTable(Case(case.model, size, 1), tokens, [limit, row]) for size, tokens in ((224, 197), (384, 577))]
    peaks = [
        Peak(LIMIT, {197: 2**20, 577: 3 * 2**20}),
        Peak("stored maps: gae", {197: 2**22, 577: None}, {577: "out of memory"}, TokenFit(0.0, 2048.0, 8.0, 0.1, 0.9)),
    ]
    return Results(
        date="2026-01-02",
        command="vitrail bench",
        device="cpu",
        dtype="float32",
        clock="wall",
        machine="a machine; a system",
        load=0.25,
        rounds=3,
        warmup=1,
        times=[TimeTable(case, 197, [limit, row, absent])],
        tokens=[TokenTable(case.model, 1, sweep)],
        targets=[
            TargetTable(
                case,
                {"complete": {1: Ratio(1.0, 1.0, 1.0), 20: Ratio(0.5, 0.4, 0.6)}},
                {"complete": {1: 1.0, 20: 10.0}},
            )
        ],
        memory=[MemoryTable(case.model, 1, [224, 384], [197, 577], peaks)],
    )


def test_the_tables() -> None:
    text = markdown(results())
    assert "| vitrail complete | 1F 1B | 0.500 | 16.00 | 1.01 (0.99–1.04) | 1.60× |  |" in text
    assert "| Captum LayerGradCam |  | not installed: pip install captum |  |  |  |  |" in text
    assert "| method | 1 target | 20 targets |" in text
    assert "| complete | 1.00 (1.00–1.00) | 0.50 (0.40–0.60) |" in text
    assert "| limit, seconds | 0.490 | 0.490 |" in text
    assert (
        "| stored maps: gae | 4 (4.00×) | out of memory | 0 MiB + 2 KiB·N + 8.0 B·N² | quadratic, 90% of the last |"
        in text
    )


def test_only_the_measured_part_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = "<!-- vitrail bench on cpu: begin -->", "<!-- vitrail bench on cpu: end -->"
    page.write_text(f"# Title\n\nProse.\n\n{begin}\nold figures\n{end}\n\nMore prose.\n")
    write_page(results(), page)
    first = page.read_text()
    assert first.startswith(f"# Title\n\nProse.\n\n{begin}\n")
    assert first.endswith(f"{end}\n\nMore prose.\n")
    assert "old figures" not in first
    write_page(results(), page)
    assert page.read_text() == first
    write_page(Results(**{**vars(results()), "device": "cuda:0"}), page)
    assert page.read_text().startswith(first.rstrip())
    assert "## On cuda" in page.read_text()
    page.write_text(f"{end}\n{begin}\n")
    with pytest.raises(OutputFileError, match="once each, in this order, or neither"):
        write_page(results(), page)
