"""Which files a command is given."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from histoloc.errors import InputError

IMAGE_SUFFIXES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"}
SLIDE_SUFFIXES = {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi"} | IMAGE_SUFFIXES
Paths = Sequence[Path | str] | Path | str


def input_files(paths: Paths, suffixes: Collection[str], kind: str, *, deep: bool) -> dict[str, Path]:
    """Files by the name of what is made of them: files as they are, and of folders those that end so, but hidden ones.

    Args:
        paths: files and folders.
        suffixes: in small letters, with the dot; for folders only.
        kind: what they are, for messages.
        deep: take the files of sub-folders too.

    Raises:
        InputError: nothing there, a folder without any, two files of one name.
    """
    files: dict[str, Path] = {}
    paths = [paths] if isinstance(paths, Path | str) else paths
    for file in (file for path in paths for file in _files(Path(path), suffixes, kind, deep)):
        if file.stem in files:
            raise InputError(
                f"{file}: has the same name as {files[file.stem]}, and their results would overwrite each other; "
                "predict them into different folders"
            )
        files[file.stem] = file
    return files


def _files(path: Path, suffixes: Collection[str], kind: str, deep: bool) -> Iterator[Path]:
    try:
        if path.is_file():
            yield path
            return
        if not path.is_dir():
            raise InputError(f"{path}: no such {kind} or folder; check the path")
        # Some systems leave a hidden file of the same ending beside each one.
        files = sorted(p for p in (path.rglob("*") if deep else path.iterdir()) if p.suffix.lower() in suffixes)
        files = [file for file in files if file.name[0] != "." and file.is_file()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if not files:
        raise InputError(f"{path}: holds no {kind} ({', '.join(sorted(suffixes))}); check the folder")
    yield from files
