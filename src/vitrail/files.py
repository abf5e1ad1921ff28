"""Files are written whole or not at all (`atomic_write`), foreign ones opened without waiting (`open_regular`), and
locked for one process (`hold`)."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO

from vitrail.errors import OutputFileError

__all__ = ["atomic_write", "hold", "open_regular", "try_folder", "writable_folder"]

# Errors of the disk itself. Any other OSError inside the block belongs to the caller's own work: a missing input, say.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a binary file that appears at `path` only when the block has ended well.

    The bytes go to a temporary file in the same folder, which takes the place of `path` in one step. Whatever goes
    wrong before, an interrupt included, `path` is as it was and the temporary file is gone. Missing folders are
    created; a symbolic link stays a link.

    Raises `OutputFileError` when the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "notes" / "zebra.txt"
    >>> with atomic_write(path) as file:
    ...     _ = file.write(b"striped")
    >>> path.read_bytes()
    b'striped'
    """
    if "\0" in os.fspath(path):
        raise OutputFileError(_refusal(path, OSError(errno.EINVAL, "a path cannot hold a NUL")))
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".vitrail-{secrets.token_hex(8)}.tmp"
    try:
        if target.is_dir():
            raise OutputFileError(f"cannot write {os.fspath(path)}: it is a folder; name a file inside it")
        # Replacing /dev/null by a picture would be a poor joke. A name that is too long is refused here as well.
        if os.path.lexists(target) and not stat.S_ISREG(target.lstat().st_mode):
            raise OutputFileError(f"cannot write {os.fspath(path)}: it is not a regular file; name another path")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: that makes files which only their owner may read, while a result should follow the umask.
        file = os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "wb"
        )
    except OSError as error:
        raise OutputFileError(_refusal(path, error)) from error
    try:
        with file:
            try:
                yield file
            except OSError as error:
                if error.errno in DISK_ERRORS:
                    raise OutputFileError(_refusal(path, error)) from error
                raise
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise OutputFileError(_refusal(path, error)) from error
        try:
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
        except OSError as error:
            raise OutputFileError(_refusal(path, error)) from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def open_regular(path: str | os.PathLike[str], most: int) -> BufferedReader:
    """Opens a file for reading that may be anybody's: never a pipe, which would wait for ever, nor a device.

    Raises `OSError` for a path that cannot be opened or is none, for anything but a regular file, and for one of more
    than `most` bytes.

    >>> open_regular("/dev/zero", 100)
    Traceback (most recent call last):
    OSError: [Errno 22] it is not a regular file: '/dev/zero'
    """
    name = os.fspath(path)
    try:
        number = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL
        raise OSError(errno.EINVAL, f"it is no path ({error})", name) from error
    file = os.fdopen(number, "rb") if stat.S_ISREG(os.fstat(number).st_mode) else None
    if file is None:
        os.close(number)
        raise OSError(errno.EINVAL, "it is not a regular file", name)
    size = os.fstat(number).st_size
    if size > most:
        file.close()
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {most:,} are expected", name)
    return file


def hold(file: IO[bytes]) -> bool:
    """Locks an open file for this process alone, until it is closed; False where another process has it.

    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     hold(file)
    True
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """Creates `folder` where it is missing, checks that files can be made in it, and returns it.

    Making a file is the only honest test: permission bits say nothing of read-only disks, quotas or the superuser.

    Raises `OutputFileError` naming the folder and the reason.

    >>> import tempfile
    >>> writable_folder(Path(tempfile.mkdtemp()) / "out").name
    'out'
    """
    path = Path(folder)
    probe = path / f".vitrail-{secrets.token_hex(8)}.tmp"
    try:
        if "\0" in os.fspath(folder):
            raise OSError(errno.EINVAL, "a path cannot hold a NUL")
        path.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise OutputFileError(_refusal(folder, error, "into ")) from error
    return path


def try_folder(folder: str | os.PathLike[str]) -> Path:
    """Checks as `writable_folder` does, and leaves nothing: a command that then fails has made no empty folder."""
    path = Path(folder)
    missing = [one for one in (path, *path.parents) if "\0" not in os.fspath(one) and not one.exists()]
    writable_folder(path)
    for one in missing:
        one.rmdir()
    return path


def _refusal(path: str | os.PathLike[str], error: OSError, preposition: str = "") -> str:
    reason = error.strerror or type(error).__name__
    where = f" ({error.filename})" if error.errno in (errno.ENOTDIR, errno.EEXIST) and error.filename else ""
    name = os.fspath(path).replace("\0", "\\0")
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space, or choose another path" if full else "choose another path, or make it writable"
    return f"cannot write {preposition}{name}: {reason}{where}; {remedy}"
