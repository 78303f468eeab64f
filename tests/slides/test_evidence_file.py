import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoloc.errors import InputError
from histoloc.slide_maps.evidence_file import EvidenceFile

TILES, K, C, SIDE = 7, 3, 2, 4
RECORD = 4 * (K + C * SIDE * SIDE)


def some(number: int = TILES, seed: int = 0, classes: int = K, maps: int = C, side: int = SIDE):
    rng = np.random.default_rng(seed)
    return rng.random((number, classes), np.float32), rng.normal(size=(number, maps, side, side)).astype(np.float32)


def opened(folder: Path, fingerprint: str = "a", tiles: int = TILES) -> EvidenceFile:
    return EvidenceFile(folder, fingerprint, tiles, K, C, SIDE)


def test_what_is_appended_is_read_back(tmp_path):
    probabilities, evidence = some()
    store = opened(tmp_path / "work")
    assert store.done == 0
    store.append(probabilities[:4], evidence[:4])
    store.append(probabilities[4:], evidence[4:])
    assert store.done == TILES
    assert store.path.stat().st_size == TILES * RECORD
    assert (store.probabilities() == probabilities).all()
    assert (store.read([5, 0, 5, 6]) == evidence[[5, 0, 5, 6]]).all()
    assert store.read([]).shape == (0, C, SIDE, SIDE)
    assert store.read(np.arange(7)).dtype == np.float32
    again = opened(tmp_path / "work")
    assert again.done == TILES
    assert (again.read(range(7)) == evidence).all()


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, TILES * RECORD), batch=st.integers(1, 4))
def test_cut_anywhere_it_goes_on_to_the_same_file(tmp_path_factory, cut, batch):
    folder = tmp_path_factory.mktemp("work")
    probabilities, evidence = some()
    opened(folder).append(probabilities, evidence)
    path = folder / "evidence.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])

    store = opened(folder)
    complete = cut // RECORD
    assert store.done == complete
    assert path.stat().st_size == complete * RECORD
    assert (store.probabilities() == probabilities[:complete]).all()
    first = store.done_in_batches(batch)
    assert first == (TILES if complete == TILES else complete - complete % batch)
    store.truncate(first)
    assert store.done == first
    for start in range(first, TILES, batch):
        store.append(probabilities[start : start + batch], evidence[start : start + batch])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: EvidenceFile(folder, "b", TILES, K, C, SIDE),
        lambda folder: EvidenceFile(folder, "a", TILES + 1, K, C, SIDE),
        lambda folder: EvidenceFile(folder, "a", TILES, C * SIDE * SIDE + K - 16, 1, SIDE),  # records of the same size
        lambda folder: EvidenceFile(folder, "a", TILES, K, C, SIDE + 1),
    ],
)
def test_another_slide_model_or_layout_starts_over(tmp_path, other):
    opened(tmp_path).append(*some())
    assert other(tmp_path).done == 0
    assert (tmp_path / "evidence.bin").stat().st_size == 0
    assert opened(tmp_path).done == 0  # the first one's are gone


@pytest.mark.parametrize("damage", ['{"format": 1', "", "[]"])
def test_a_damaged_header_starts_over(tmp_path, damage):
    opened(tmp_path).append(*some())
    (tmp_path / "evidence.json").write_text(damage)
    assert opened(tmp_path).done == 0
    assert json.loads((tmp_path / "evidence.json").read_text())["fingerprint"] == "a"


def test_records_without_a_header_start_over(tmp_path):
    opened(tmp_path).append(*some())
    (tmp_path / "evidence.json").unlink()
    assert opened(tmp_path).done == 0


def test_a_method_that_does_not_classify_has_no_probabilities(tmp_path):
    probabilities, evidence = some(5, classes=0, maps=1)
    store = EvidenceFile(tmp_path, "a", 5, 0, 1, SIDE)
    store.append(probabilities, evidence)
    store = EvidenceFile(tmp_path, "a", 5, 0, 1, SIDE)
    assert store.probabilities().shape == (5, 0)
    assert (store.read(range(5)) == evidence).all()


def test_a_slide_without_tiles(tmp_path):
    store = opened(tmp_path, tiles=0)
    assert (store.done, store.done_in_batches(8)) == (0, 0)
    assert store.probabilities().shape == (0, K)


def test_what_does_not_fit_is_refused(tmp_path):
    probabilities, evidence = some()
    store = opened(tmp_path)
    store.append(probabilities[:6], evidence[:6])
    with pytest.raises(ValueError, match="more than 7 tiles"):
        store.append(probabilities[:2], evidence[:2])
    with pytest.raises(ValueError, match="do not fit"):
        store.append(probabilities[:1, :2], evidence[:1])
    with pytest.raises(ValueError, match="do not fit"):
        store.append(probabilities[:2], evidence[:1])
    with pytest.raises(IndexError, match="0 to 5"):
        store.read([6])
    with pytest.raises(IndexError):
        store.read([-1])
    with pytest.raises(ValueError, match="no 7 records"):
        store.truncate(7)
    broken = evidence[:1].copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        store.append(probabilities[:1], broken)
    assert store.done == 6


def test_a_full_disk_is_named_and_what_was_complete_is_kept(tmp_path, monkeypatch):
    probabilities, evidence = some()
    store = opened(tmp_path)
    store.append(probabilities[:3], evidence[:3])
    really_open = Path.open

    class Full:
        """A file on a disk with room for 100 bytes more."""

        def __init__(self, file: io.FileIO) -> None:
            self.file, self.room = file, 100

        def write(self, data) -> int:
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self.file.write(data[: self.room])
            self.room -= written
            return written

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full(really_open(self, *a, **k)))
    with pytest.raises(InputError, match=r"evidence\.bin: cannot be written \(No space left on device\)"):
        store.append(probabilities[3:], evidence[3:])
    monkeypatch.undo()
    assert store.path.stat().st_size == 3 * RECORD
    store.append(probabilities[3:], evidence[3:])
    assert (store.read(range(TILES)) == evidence).all()


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "work").write_text("")
    with pytest.raises(InputError, match="work"):
        opened(tmp_path / "work")


def test_a_file_that_became_shorter_is_named(tmp_path):
    store = opened(tmp_path)
    store.append(*some())
    store.path.write_bytes(store.path.read_bytes()[:-1])
    with pytest.raises(InputError, match="ends before record 6"):
        store.read([6])
    store.path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        store.read([0])
