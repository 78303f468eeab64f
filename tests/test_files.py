"""What is written is whole or not there at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from histoloc.errors import InputError
from histoloc.work_folder import atomic_path, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_the_file_appears_under_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "folder" / "a.csv"
    with atomic_path(path) as temporary:
        temporary.write_text("x")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename is atomic within one file system only"
        assert temporary.suffix == ".csv", "writers choose the format by the suffix"
        assert temporary.name.startswith("."), "a glob for *.csv must not find it"
    assert path.read_text() == "x"
    assert names(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "a.txt", "before")

    def fail_half_way() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert (tmp_path / "a.txt").read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == []


def test_a_file_where_a_folder_is_needed_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/deep/a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "deep" / "a.txt", "x")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path, "a folder is there")


def test_text_is_utf_8_and_json_readable_by_everybody(tmp_path):
    write_json(tmp_path / "a.json", {"µm": [1, None], "a": "F1⁺"})
    raw = (tmp_path / "a.json").read_bytes()
    assert "µm".encode() in raw
    assert raw.endswith(b"}\n")
    assert json.loads(raw) == {"µm": [1, None], "a": "F1⁺"}


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert names(tmp_path) == []
