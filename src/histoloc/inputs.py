"""Which files a command is given, and what is no file of the user's."""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from histoloc.errors import InputError

IMAGE_SUFFIXES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"}
SLIDE_SUFFIXES = {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi"} | IMAGE_SUFFIXES
PREDICTIONS = "predictions.csv"
RESULTS = ("_mask.png", "_map.png", "_overlay.png")  # pictures that lie beside or below predictions.csv
Paths = Sequence[Path | str] | Path | str


def is_foreign(name: str) -> bool:
    """Whether systems leave an entry of this name in people's folders: hidden ones, those of archives and disks."""
    return name[:1] in (".", "@", "$") or name in ("__MACOSX", "System Volume Information", "lost+found")


def same_name(name: str) -> str:
    """The name in one case and Unicode form: by it files are found that other systems named."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def name_tails(file: str) -> list[str]:
    """`a/b/c`, `b/c` and `c` of `a/b/c.png`: how something may be called that was made of it."""
    path = Path(file.replace("\\", "/")).with_suffix("")
    parts = [part for part in path.parts if part not in ("..", path.anchor)]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def input_files(
    paths: Paths, suffixes: Collection[str], kind: str, *, deep: bool, out: Path | None = None
) -> dict[str, Path]:
    """Files by the name of what is made of them: files as they are, and of folders those that end so.

    The name is that of the file without its suffix; below a folder with its sub-folders, as `sub/a`. Not taken of
    folders: hidden files, what systems leave there, results of earlier calls, and what lies in `out`.

    Args:
        paths: files and folders.
        suffixes: in small letters, with the dot; for folders only.
        kind: what they are, for messages.
        deep: take the files of sub-folders too.
        out: where results will be written.

    Raises:
        InputError: nothing there, a folder without any, two files of one name, a file that lies in `out`.
    """
    paths = [paths] if isinstance(paths, Path | str) else paths
    roots = {file: root for path in paths for root, file in _files(Path(path), suffixes, kind, deep, out)}
    common = Path(os.path.commonpath([file.parent.absolute() for file in roots]))
    names = {file: _name(file, root) for file, root in roots.items()}
    count = Counter(names.values())
    files: dict[str, Path] = {}
    for file, name in names.items():
        if deep and count[name] > 1:
            name = _name(file, common)
        if name in files and not file.samefile(files[name]):
            raise InputError(
                f"{file}: has the same name as {files[name]}, and their results would overwrite each other; "
                "predict them into different folders"
            )
        files[name] = file
        if out is not None and os.path.realpath(file.parent) == os.path.realpath((out / name).parent):
            raise InputError(f"{out}: has {file.name}, beside which results would lie; choose another --out")
    return files


def _name(file: Path, root: Path) -> str:
    return Path(os.path.relpath(file, root)).with_suffix("").as_posix()


def _files(
    path: Path, suffixes: Collection[str], kind: str, deep: bool, out: Path | None
) -> Iterator[tuple[Path, Path]]:
    """Pairs of a folder and a file in or below it."""
    try:
        if path.is_file():
            yield path.parent, path
            return
        if not path.is_dir():
            raise InputError(f"{path}: no such {kind} or folder; check the path")
        files = sorted(_walk(path, deep, out))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    results = [file.parent for file in files if file.name == PREDICTIONS]
    files = [
        file
        for file in files
        if file.suffix.lower() in suffixes
        and not (file.name.endswith(RESULTS) and any(folder in file.parents for folder in results))
    ]
    if not files:
        raise InputError(f"{path}: holds no {kind} ({', '.join(sorted(suffixes))}); check the folder")
    yield from ((path, file) for file in files)


def _walk(folder: Path, deep: bool, out: Path | None) -> Iterator[Path]:
    """The files of a folder, also behind links; a link whose file is absent is one of them, which fails by name."""

    def refuse(error: OSError) -> None:
        raise error

    seen = {os.path.realpath(out)} - {os.path.realpath(folder)} if out is not None else set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # also a link to a folder around it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if deep and not is_foreign(name))
        yield from (Path(place, name) for name in names if not is_foreign(name))
