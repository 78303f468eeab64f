"""Which slides a folder of Camelyon16 has, and in which folds they are."""

from collections import Counter
from pathlib import Path

import pytest

from histoloc.datasets.camelyon16.folder import check_fold, find_slides, slide_folds
from histoloc.datasets.slide_list import ListedSlide
from histoloc.errors import InputError


def test_published_sizes_of_folds():
    slides = [ListedSlide(f"normal_{i:03}", Path(), "normal", part="train") for i in range(159)]
    slides += [ListedSlide(f"tumor_{i:03}", Path(), "tumor", part="train") for i in range(111)]
    folds = slide_folds(slides)
    for label, sizes in (("normal", [32, 32, 32, 32, 31]), ("tumor", [23, 23, 23, 23, 19])):
        count = Counter(fold for name, fold in folds.items() if name.startswith(label))
        assert [count[k] for k in range(5)] == sizes
    check_fold(slides, folds, 4)
    with pytest.raises(InputError, match="fold 5: has no normal slide; choose one of 0, 1, 2, 3, 4"):
        check_fold(slides, folds, 5)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_flat_release_and_slides_that_were_not_published(tmp_path):
    names = ["normal_001", "normal_086", "tumor_001", "test_001", "test_049", "test_002", "test_003", "x"]
    touch(tmp_path, *[f"images/{n}.tif" for n in names], "annotations/tumor_001.xml", "annotations/test_001.xml")
    (tmp_path / "reference.csv").write_text("name,type\ntest_001.tif,Tumor\ntest_002,Normal\ntest_049,Normal\n")
    folder = find_slides(tmp_path)
    assert [(s.path.stem, s.part, s.label) for s in folder.slides] == [
        ("normal_001", "train", "normal"), ("test_001", "test", "tumor"), ("test_002", "test", "normal"),
        ("tumor_001", "train", "tumor"),
    ]  # fmt: skip
    assert set(folder.exclusions) == {"images/normal_086.tif", "images/test_049.tif"}
    assert "reference.csv does not say" in folder.failed["images/test_003.tif"]
    assert {s.path.stem for s in find_slides(tmp_path, published=False).slides} >= {"normal_086", "test_049"}


def test_folders_that_are_no_camelyon16(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_slides(tmp_path / "none")
    with pytest.raises(
        InputError, match=r"no training slides normal_001.tif .*\(looked in training/normal.*give the folder"
    ):
        find_slides(tmp_path)
    touch(tmp_path, "Training/Normal/Normal_001.tif", "Training/Tumor/Tumor_001.tif", "testing/images/test_001.tif")
    with pytest.raises(InputError, match=r"no reference.csv"):
        find_slides(tmp_path)
    (tmp_path / "testing/reference.csv").write_text("test_001,malignant\n")
    with pytest.raises(InputError, match="'malignant'"):
        find_slides(tmp_path)
    touch(tmp_path, "images/normal_001.tif")
    with pytest.raises(InputError, match="of the same slide"):
        find_slides(tmp_path)
