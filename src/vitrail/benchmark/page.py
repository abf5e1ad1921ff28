"""The tables as Markdown, and the page of the documentation whose measured part they replace."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import OutputFileError
from ..files import atomic_write
from .plot import draw
from .results import Measured, MemoryTable, Peak, Results, TargetTable, TimeTable, TokenTable

__all__ = ["markdown", "write_page"]


def markdown(results: Results, picture: str | None = None) -> str:
    """All tables of a run, with what it was measured on; `picture` is the plot's path as the page shall name it."""
    load = "" if results.load is None else f"; load average {results.load:.1f} when it began"
    clock = "processor time" if results.clock == "processor" else "wall time"
    parts = [
        f"{results.date}, {results.dtype} on {results.device}{load}. {results.machine}.",
        f"Medians of {results.rounds} rounds after {results.warmup} to warm up, {clock}, quartiles in brackets; a "
        "ratio is that of two times of the same round.",
    ]
    if results.command:
        parts.append(f"Made by `{results.command}`.")
    if picture:
        parts.append(f"![Time and memory against tokens, time against targets]({picture})")
    parts += [_times(table) for table in results.times]
    parts += [_targets(table) for table in results.targets]
    parts += [_tokens(table) for table in results.tokens]
    parts += [_memory(table) for table in results.memory]
    return "\n\n".join(parts) + "\n"


def write_page(results: Results, path: str | os.PathLike[str]) -> Path:
    """Put the tables between the two marks of the page, or make a page of them; the plot lies in `pictures` beside it.

    A page may have a measured part for each kind of device; the others, and the prose around them, stay as they are.
    Returns the picture's path.

    Raises:
        OutputFileError: when a file cannot be read or written, or the page has one mark and not the other.
    """
    from ..plotting.saving import save_figure

    page, kind = Path(path), results.device.partition(":")[0]
    begin, end = (f"<!-- vitrail bench on {kind}: {word} -->" for word in ("begin", "end"))
    picture = save_figure(draw(results), page.parent / "pictures" / f"performance-{kind}.svg")
    measured = f"{begin}\n\n{markdown(results, f'pictures/{picture.name}')}\n{end}"
    try:
        old = page.read_text(encoding="utf-8") if page.exists() else f"# Speed and memory\n\n{begin}\n{end}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise OutputFileError(f"cannot read {page} to replace its measured part: {error}") from error
    if (begin in old) != (end in old) or old.count(begin) > 1 or old.find(end) < old.find(begin):
        raise OutputFileError(f"{page} must have the lines {begin} and {end} once each, in this order, or neither")
    if begin in old:
        new = old[: old.index(begin)] + measured + old[old.index(end) + len(end) :]
    else:
        new = f"{old.rstrip()}\n\n## On {kind}\n\n{measured}\n"
    with atomic_write(page) as file:
        file.write(new.encode())
    return picture


def _times(table: TimeTable) -> str:
    header = ("row", "passes", "seconds", "images/s", "× limit", "stored GAE takes", "agrees with ours to")
    return f"### {table.case}: {table.tokens} tokens\n\n" + _table(header, (_time_row(row) for row in table.rows))


def _time_row(row: Measured) -> tuple[str, ...]:
    if row.seconds is None:
        return row.name, row.passes, row.note, "", "", "", ""
    return (
        row.name,
        row.passes,
        f"{row.seconds:.3f}",
        f"{row.images_per_second:.2f}",
        "" if row.over_limit is None else str(row.over_limit),
        "" if row.faster_than_stored is None else f"{row.faster_than_stored:.2f}×",
        "" if row.agreement is None else f"{row.agreement:.0e}",
    )


def _targets(table: TargetTable) -> str:
    counts = list(next(iter(table.share.values())))
    header = ("method", *(f"{count} target{'s' if count > 1 else ''}" for count in counts))
    rows = [(method, *(str(one[count]) for count in counts)) for method, one in table.share.items()]
    title = f"### {table.case}: several targets in one call, over as many calls"
    return f"{title}\n\n{_table(header, rows)}"


def _tokens(table: TokenTable) -> str:
    header = ("× limit", *(f"{one.tokens} tokens, {one.case.size} px" for one in table.tables))
    rows = []
    for place, first in enumerate(table.tables[0].rows):
        cells = (one.rows[place] for one in table.tables)
        rows.append((first.name, *(row.note if row.over_limit is None else str(row.over_limit) for row in cells)))
    seconds = [row.seconds for one in table.tables for row in one.rows if row.name.startswith("limit")]
    rows.append(("limit, seconds", *(f"{some:.3f}" if some else "" for some in seconds)))
    return f"### {table.model}, batch {table.batch}: time against tokens\n\n{_table(header, rows)}"


def _memory(table: MemoryTable) -> str:
    sizes = zip(table.tokens, table.sizes, strict=True)
    header = ("MiB (× limit)", *(f"{tokens} tokens, {size} px" for tokens, size in sizes), "fit", "what grows")
    rows = [(row.name, *_peaks(row, table.rows[0], table.tokens), *_fit(row)) for row in table.rows]
    title = f"### {table.model}, batch {table.batch}: peak memory beyond weights and images"
    return f"{title}\n\n{_table(header, rows)}"


def _peaks(row: Peak, limit: Peak, tokens: Sequence[int]) -> list[str]:
    cells = []
    for number in tokens:
        peak, base = row.bytes[number], limit.bytes[number]
        over = f" ({peak / base:.2f}×)" if peak is not None and base else ""
        cells.append(row.notes.get(number, "") if peak is None else f"{peak / 2**20:.0f}{over}")
    return cells


def _fit(row: Peak) -> tuple[str, str]:
    if row.fit is None:
        return "", ""
    fit = row.fit
    text = f"{fit.constant / 2**20:.0f} MiB + {fit.linear / 2**10:.0f} KiB·N + {fit.quadratic:.1f} B·N²"
    share = max(fit.linear_share, fit.quadratic_share)
    return text, f"{fit.dominant}, {share:.0%} of the last"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
