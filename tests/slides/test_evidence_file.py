from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoloc.errors import InputError
from histoloc.slides.tiles import EvidenceFile

TILES, K, C, SIDE = 7, 3, 2, 4
RECORD = 4 * (K + C * SIDE * SIDE)


def some(number: int = TILES, seed: int = 0, classes: int = K, maps: int = C, side: int = SIDE):
    rng = np.random.default_rng(seed)
    return rng.random((number, classes), np.float32), rng.normal(size=(number, maps, side, side)).astype(np.float32)


def opened(folder: Path, fingerprint: str = "a", tiles: int = TILES, batch: int = 1) -> EvidenceFile:
    return EvidenceFile(folder, fingerprint, tiles, batch, (K, C, SIDE))


def test_what_is_appended_is_read_back(tmp_path):
    probabilities, evidence = some()
    store = opened(tmp_path / "work")
    assert store.count == 0
    store.append(probabilities[:4], evidence[:4])
    store.append(probabilities[4:], evidence[4:])
    assert store.count == TILES
    assert store.path.stat().st_size == TILES * RECORD
    assert (store.probabilities() == probabilities).all()
    assert (store.read(4, 6) == evidence[4:6]).all()
    assert store.read(3, 3).shape == (0, C, SIDE, SIDE)
    assert store.read(0, 7).dtype == np.float32
    again = opened(tmp_path / "work")
    assert again.count == TILES
    assert (again.read(0, 7) == evidence).all()


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, TILES * RECORD), batch=st.integers(1, 4))
def test_cut_anywhere_it_goes_on_to_the_same_file(tmp_path_factory, cut, batch):
    folder = tmp_path_factory.mktemp("work")
    probabilities, evidence = some()
    whole = opened(folder)
    whole.append(probabilities, evidence)
    content = whole.path.read_bytes()
    whole.path.write_bytes(content[:cut])

    store = opened(folder, batch=batch)
    complete = cut // RECORD
    first = store.count
    assert first == (TILES if complete == TILES else complete - complete % batch)
    assert store.path.stat().st_size == first * RECORD
    assert (store.probabilities() == probabilities[:first]).all()
    for start in range(first, TILES, batch):
        store.append(probabilities[start : start + batch], evidence[start : start + batch])
    assert store.path.read_bytes() == content


def test_another_slide_or_model_starts_over_and_says_so(tmp_path, capsys):
    opened(tmp_path, "a").append(*some())
    assert capsys.readouterr().err == ""
    assert opened(tmp_path, "b").count == 0
    assert "its tiles are made again" in capsys.readouterr().err
    assert opened(tmp_path, "a").count == 0  # the first one's are gone


def test_a_method_that_does_not_classify_has_no_probabilities(tmp_path):
    probabilities, evidence = some(5, classes=0, maps=1)
    EvidenceFile(tmp_path, "a", 5, 1, (0, 1, SIDE)).append(probabilities, evidence)
    store = EvidenceFile(tmp_path, "a", 5, 1, (0, 1, SIDE))
    assert store.probabilities().shape == (5, 0)
    assert (store.read(0, 5) == evidence).all()


def test_a_slide_without_tiles(tmp_path):
    store = opened(tmp_path, tiles=0)
    assert store.count == 0
    assert store.probabilities().shape == (0, K)


def test_values_that_are_not_finite_are_refused(tmp_path):
    probabilities, evidence = some()
    store = opened(tmp_path)
    store.append(probabilities[:6], evidence[:6])
    evidence[6, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite for tiles from 6 on"):
        store.append(probabilities[6:], evidence[6:])
    assert store.count == 6
