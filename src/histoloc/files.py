"""Writing files so that nothing half-written is ever taken for done."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from histoloc.errors import InputError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block ends without an exception.

    Args:
        path: the file to write; its folder is made when absent.

    Raises:
        InputError: the folder cannot be made or written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place or make room"
        ) from error
    finally:
        with suppress(OSError):  # the folder may be what is wrong; the first error is the one to tell
            temporary.unlink(missing_ok=True)


def safe_name(text: str) -> str:
    """A part of a file name for any text: letters, digits and -._+ stay, all else becomes _."""
    return "".join(c if c.isalnum() or c in "-._+" else "_" for c in text)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN is refused, so use None."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
