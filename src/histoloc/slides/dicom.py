"""Which DICOM files are one slide: a series has a file for each level, and for the pictures of label and glass."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from histoloc.data.fingerprint import file_mark

# StudyInstanceUID and SeriesInstanceUID, which follow each other at the top of a header and nowhere else.
_SERIES = re.compile(rb"\x20\0\x0d\0(?:UI..|.{4})[0-9.]+\0?\x20\0\x0e\0(?:UI..|.{4})([0-9.]+)", re.DOTALL)


def series_of(path: Path) -> tuple[Path, str] | None:
    """Folder and series of a DICOM file; None for other files."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16)
    except (OSError, ValueError):
        return None  # whoever opens it says why
    series = _SERIES.search(start) if start[128:132] == b"DICM" else None
    return series and (path.resolve().parent, series[1].decode())


def slide_mark(path: Path) -> str:
    """`file_mark` of a slide: of a DICOM series of all its files."""
    series = series_of(path)
    files = [path] if series is None else sorted(f for f in path.parent.iterdir() if series_of(f) == series)
    marks = [file_mark(file) for file in files]
    return marks[0] if len(marks) == 1 else hashlib.sha256("".join(marks).encode()).hexdigest()
