"""Files are whole or absent, and a refusal says which path and why."""

import errno
import os
import stat
from pathlib import Path

import pytest

from vitrail.errors import OutputFileError
from vitrail.files import atomic_write, writable_folder


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_creates_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a" / "b" / "map.bin") as file:
        file.write(b"123")
        assert not (tmp_path / "a" / "b" / "map.bin").exists()
    assert (tmp_path / "a" / "b" / "map.bin").read_bytes() == b"123"
    assert entries(tmp_path / "a" / "b") == ["map.bin"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, FileNotFoundError])
def test_failure_keeps_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "map.bin"
    path.write_bytes(b"old")
    with pytest.raises(failure), atomic_write(path) as file:  # noqa: PT012  (the failure is part of the block)
        file.write(b"half of the new")
        raise failure
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["map.bin"]


def test_full_disk_is_named_and_cleaned_up(tmp_path: Path) -> None:
    path = tmp_path / "map.bin"
    with pytest.raises(OutputFileError, match=r"map\.bin: No space left on device"), atomic_write(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert entries(tmp_path) == []


def test_failing_sync_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputFileError, match="Input/output error"), atomic_write(tmp_path / "map.bin") as file:
        file.write(b"123")
    assert entries(tmp_path) == []


def test_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(OutputFileError, match="it is a folder"), atomic_write(tmp_path):
        raise AssertionError("the block must not run")


def test_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    path, message = tmp_path / "out" / "map.bin", r"cannot write .*map\.bin: .*(Not a directory|File exists)"
    with pytest.raises(OutputFileError, match=message), atomic_write(path):
        raise AssertionError("the block must not run")
    with pytest.raises(OutputFileError, match=r"cannot write into .*out: File exists"):
        writable_folder(tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_special_files_are_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputFileError, match="not a regular file"), atomic_write(pipe):
        raise AssertionError("the block must not run")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="permission bits and links as on POSIX systems")
def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "map.bin", tmp_path / "link"
    before = os.umask(0o027)
    try:
        with atomic_write(path) as file:
            file.write(b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    link.symlink_to(path)
    with atomic_write(link) as file:
        file.write(b"2")
    assert link.is_symlink()
    assert path.read_bytes() == b"2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_longest_possible_name(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".bin")
    with atomic_write(path) as file:
        file.write(b"1")
    assert path.exists()
    with pytest.raises(OutputFileError, match="File name too long"), atomic_write(tmp_path / ("n" * 300)) as file:
        file.write(b"1")
    assert entries(tmp_path) == [path.name]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputFileError, match="Permission denied"):
        writable_folder(tmp_path)


def test_writable_folder_leaves_no_trace(tmp_path: Path) -> None:
    assert writable_folder(str(tmp_path / "x" / "y")) == tmp_path / "x" / "y"
    assert entries(tmp_path / "x" / "y") == []
