"""How files in a work folder name other files, so that both may be moved."""

import os
from pathlib import Path


def relative_place(folder: Path, place: str) -> str:
    """How a file in a folder names another file or folder: relative, with slashes; unchanged where none is there.

    The last link is not followed: its own name counts.
    """
    file = Path(place)
    if not os.path.lexists(file):
        return place
    absolute = Path(os.path.realpath(file.parent)) / file.name
    try:  # os.path, because the walk_up of Path.relative_to came with Python 3.12
        return Path(os.path.relpath(absolute, os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive of Windows
        return absolute.as_posix()


def located(folder: Path, home: str | None, place: str) -> str:
    """Where a file or folder is that a file in `folder` names, from any working folder.

    It is looked for from where that folder is, from where it was when it was written (its home), and from the working
    folder; unchanged where it is nowhere.
    """
    for base in (os.path.realpath(folder), home or "", ""):
        path = os.path.normpath(Path(base, place))
        if os.path.lexists(path):
            return path
    return place
