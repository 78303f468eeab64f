import io
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from histoloc.datasets.folder import folder_table
from histoloc.errors import InputError


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "PNG")
    return stream.getvalue()


PICTURE = png()


def touch(root: Path, *names: str) -> Path:
    """Images, whatever their ending; they are told by their content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
    return root


def many(label: str, number: int, extension: str = "png") -> list[str]:
    return [f"{label}/{label}{i:03}.{extension}" for i in range(number)]


def listed(root: Path, **options) -> pd.DataFrame:
    """The rows of the table, with absolute paths."""
    out = root.parent / f"{root.name}.csv"
    rows = pd.read_csv(folder_table(root, out=out, **options).table, keep_default_na=False)
    for column in ("image", "mask"):
        rows[column] = [str(out.parent / cell) if cell else "" for cell in rows[column]]
    return rows


def counts(table: pd.DataFrame) -> dict[tuple[str, str], int]:
    return {(str(s), str(c)): int(n) for (s, c), n in table.groupby(["split", "label"]).size().items()}  # pyright: ignore


def splits(table: pd.DataFrame, root: Path) -> dict[str, str]:
    return {str(Path(i).relative_to(root)): s for i, s in zip(table["image"], table["split"], strict=True)}


def test_splits_are_stratified_and_complete(tmp_path):
    touch(tmp_path, *many("a", 10), *many("b", 23, "JPG"), "a/notes.txt", "a/.hidden.png", ".git/x.png")
    table = listed(tmp_path, mpp=0.5)
    assert counts(table) == {
        ("train", "a"): 6, ("valid", "a"): 2, ("test", "a"): 2,
        ("train", "b"): 13, ("valid", "b"): 5, ("test", "b"): 5,
    }  # fmt: skip
    assert table["image"].is_unique
    assert (table["mpp"] == 0.5).all()
    assert (table["group"] == "").all()
    assert list(table.columns) == ["image", "label", "mask", "split", "group", "mpp"]


def test_splits_depend_on_names_and_seed_alone(tmp_path):
    names = many("a", 30) + many("b", 30)
    one = touch(tmp_path / "one", *names)
    two = touch(tmp_path / "two", *reversed(names), *many("c", 5))
    first = splits(listed(one), one)
    second = splits(listed(two), two)
    assert first == {name: split for name, split in second.items() if not name.startswith("c/")}
    assert splits(listed(one, seed=1), one) != first
    assert {n[-7:]: s for n, s in first.items() if n[0] == "a"} != {n[-7:]: s for n, s in first.items() if n[0] == "b"}


def test_shares_of_zero_and_small_classes(tmp_path):
    touch(tmp_path, *many("a", 2), *many("b", 9))
    assert counts(listed(tmp_path, test=0, valid=0)) == {("train", "a"): 2, ("train", "b"): 9}
    assert counts(listed(tmp_path, test=0, valid=0.1))["valid", "a"] == 1
    with pytest.raises(InputError, match=r"class a has too few samples \(2\)"):
        listed(tmp_path)


@pytest.mark.parametrize("valid", ["valid", "val", "Validation"])
def test_folders_of_splits_are_kept(tmp_path, valid):
    touch(tmp_path, *[f"{s}/{c}/{i}.png" for s in ("train", valid, "test") for c in "ab" for i in range(4)])
    assert counts(listed(tmp_path)) == {(s, c): 4 for s in ("train", "valid", "test") for c in "ab"}


def test_an_absent_validation_set_is_cut_from_train(tmp_path):
    touch(tmp_path, *[f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(10)])
    table = listed(tmp_path)
    assert counts(table) == {(s, c): n for s, n in (("train", 8), ("valid", 2), ("test", 10)) for c in "ab"}
    assert all("/train/" in image for image in table.loc[table["split"] == "valid", "image"])
    assert "valid" not in set(listed(tmp_path, valid=0)["split"])


def test_masks_are_found_by_stem_and_suffix(tmp_path):
    root = touch(tmp_path / "images", *many("a", 4, "jpg"), *many("b", 4))
    masks = touch(tmp_path / "masks", "a/a000.png", "a/a001_mask.tif", "a/a002_anno.bmp", "b/b001_other.png")
    table = listed(root, masks=masks)
    result = {Path(i).stem: m and Path(m).name for i, m in zip(table["image"], table["mask"], strict=True)}
    assert result == {
        "a000": "a000.png", "a001": "a001_mask.tif", "a002": "a002_anno.bmp", "a003": "",
        "b000": "", "b001": "", "b002": "", "b003": "",
    }  # fmt: skip


def test_masks_beside_the_images_are_no_images(tmp_path):
    touch(tmp_path, *many("a", 5), *many("b", 5), "a/a003_anno.png")
    with pytest.raises(InputError, match="looks like a mask among the images"):
        listed(tmp_path)
    table = listed(tmp_path, masks=tmp_path)
    assert len(table) == 10
    assert [Path(m).name for m in table["mask"] if m] == ["a003_anno.png"]


def test_masks_in_a_folder_inside_the_root_are_no_class(tmp_path):
    touch(tmp_path, *many("a", 5), *many("b", 5), "masks/a/a000.png")
    assert set(listed(tmp_path, masks=tmp_path / "masks")["label"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["x.png"], {}, "holds no class folders"),
        (many("a", 9), {}, "one class only"),
        ([*many("a", 9), "b/x.txt"], {}, "holds no images"),
        ([*many("a", 9), "b/deep/x.png"], {}, "holds the folder deep"),
        (["train/a/1.png", "train/b/1.png", "other/1.png"], {}, "splits and others"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], {}, "two folders for the split valid"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], {}, "class c is not under train"),
        (many("a", 9) + many("b", 9), {"test": 0.5, "valid": 0.5}, "together below 1"),
        (many("a", 9) + many("b", 9), {"test": -0.1}, "from 0 up"),
        (many("a", 9) + many("b", 9), {"seed": -1}, "seed -1"),
        (many("a", 9) + many("b", 9), {"mpp": 0.0}, "mpp 0"),
    ],
)
def test_what_cannot_be_listed_is_refused(tmp_path, names, options, message):
    with pytest.raises(InputError, match=message):
        listed(touch(tmp_path, *names), **options)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            "benign",
            "Benign",
            "the folder of labels 'Benign' (9 image(s)) and 'benign' (8 image(s)) differ by case alone",
        ),
        ("benign", "benign ", "the folders 'benign ' and 'benign' differ by spaces at the end alone"),
        ("0", "0.0", "differ by '.0' alone"),
        ("a", "NA", "label 'NA' (9 image(s)) is what programs write for an empty cell"),
        ("a", "b\u200b", "label 'b<U+200B>' (9 image(s)) has characters that cannot be seen"),
        ("a", "a|", "label 'a|' (9 image(s)) names an empty class"),
    ],
)
def test_class_folders_that_nobody_tells_apart_are_refused(tmp_path, one, other, message):
    touch(tmp_path, *[f"{one}/{i}.png" for i in range(8)], *[f"{other}/{i}.png" for i in range(9)])
    with pytest.raises(InputError) as caught:
        listed(tmp_path)
    assert message in str(caught.value)


def test_class_folders_of_splits_are_compared_with_each_other(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "test/A/1.png", "test/b/1.png")
    with pytest.raises(InputError, match=r"labels 'A' \(1 image\(s\)\) and 'a' \(1 image\(s\)\) differ by case"):
        listed(tmp_path)


def test_a_folder_may_be_of_two_classes(tmp_path):
    touch(tmp_path, *many("a", 5), *many("b", 5), *many("a|b", 5))
    assert counts(listed(tmp_path, test=0))["train", "a|b"] == 4


def test_missing_folders_and_masks_of_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        listed(tmp_path / "none")
    root = touch(tmp_path / "images", *many("a", 9), *many("b", 9))
    masks = touch(tmp_path / "masks", "a/wrong.png")
    with pytest.raises(InputError, match=r"no mask there belongs to any image; name masks as the images: a.a000\.png"):
        listed(root, masks=masks)
