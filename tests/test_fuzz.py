"""A short run of the fuzzer; a long one is `python tests/fuzz.py`."""

from random import Random

import pytest

from fuzz import judge, mutated
from fuzz_files import kinds

FILES = 12  # of each kind


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, kinds(folder)


NAMES = [
    "png",
    "tiff",
    "jpeg",
    "bmp",
    "npy",
    "csv",
    "yaml",
    "json",
    "geojson",
    "xml",
    "slide.json",
    "safetensors",
    "dicom",
]


@pytest.mark.parametrize("name", NAMES)
def test_good_files_are_read(name, made):
    folder, known = made
    if name not in known:
        pytest.skip("pydicom is not installed")
    kind = known[name]
    outcomes = []
    for number, data in enumerate(kind.bases):
        path = folder / f"good{number}{kind.suffix}"
        path.write_bytes(data)
        outcomes.append(judge(kind, path))
    assert set(outcomes) <= {"read", "refused"}
    assert outcomes.count("refused") == (1 if name == "tiff" else 0)  # one has an inverted table


@pytest.mark.parametrize("name", NAMES)
def test_mutated_files_are_read_as_others_read_them_or_refused(name, made):
    folder, known = made
    if name not in known:
        pytest.skip("pydicom is not installed")
    kind = known[name]
    outcomes = {}
    for number in range(FILES):
        path = folder / f"mutated-{number}{kind.suffix}"
        path.write_bytes(mutated(kind, Random(f"{name} {number}")))
        outcomes[number] = judge(kind, path)
    assert set(outcomes.values()) <= {"read", "refused"}, outcomes
