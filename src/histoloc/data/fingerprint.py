"""What a table says and what its files hold, as one number: to notice that they changed between two calls."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from histoloc.data.sample import Sample
from histoloc.errors import InputError

_MARK = 64 * 1024


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256 over samples and marks of their files, see `Table.fingerprint`.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: a file is there but cannot be read.
    """
    marks = _marks({file for s in samples for file in (s.image, s.mask) if file is not None})
    rows = []
    for s in samples:
        cells = (s.name, s.labels, s.split, s.fold, s.group, s.x, s.y, s.width, s.height, s.mpp, s.slide_mpp)
        rows.append(json.dumps([*cells, marks[s.image], s.mask and (s.mask.name, marks[s.mask])]))
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def image_marks(samples: Sequence[Sample]) -> list[str]:
    """16 hexadecimal digits for each sample's pixels: its file and region, whatever table lists them, and where.

    Raises:
        InputError: a file cannot be read.
    """
    marks = _marks({s.image for s in samples})
    rows = [json.dumps([marks[s.image], s.x, s.y, s.width, s.height, s.mpp if s.width else None]) for s in samples]
    return [hashlib.sha256(row.encode()).hexdigest()[:16] for row in rows]


def _marks(files: set[Path]) -> dict[Path, str]:
    ordered = sorted(files)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(ordered, pool.map(file_mark, ordered), strict=True))


def file_mark(file: Path) -> str:
    """Size and ends of a file; names and sizes of what is in a folder, as of a DICOM slide."""
    try:
        if file.is_dir():
            content = json.dumps(sorted((p.name, p.stat().st_size) for p in file.iterdir())).encode()
            return hashlib.sha256(content).hexdigest()
        with file.open("rb") as stream:
            first = stream.read(_MARK)
            size = stream.seek(0, 2)
            stream.seek(max(len(first), size - _MARK))
            return hashlib.sha256(b"%d " % size + first + stream.read()).hexdigest()
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}); copy it again") from error
