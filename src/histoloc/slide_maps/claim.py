"""Who may write into the folder of a slide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from histoloc.errors import InputError

LOCK = ".lock"  # in the folder of a slide while it is being worked at


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Have the folder of a slide for oneself; the system gives it back when the process ends, however it ends.

    Several calls may share an out folder, as the jobs of a batch system do, but not a slide.

    Args:
        folder: of one slide; it is made when absent.

    Raises:
        InputError: another call is at this slide, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder}: another call is working at this slide; wait until it is done, and call again"
        ) from error
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another --out or make room"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # an open file cannot be removed on Windows; it is empty, and the next call takes it
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
