"""Class folders as Macs, archives, stores and known data sets leave them."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloc.cli.main import main
from histoloc.datasets.mask_names import image_name


def image(path: Path, *, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(path, "PNG")


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(32, 40, dtype=np.uint8)).save(path, "PNG")


@pytest.fixture
def root(tmp_path):
    """Five images of each of two classes, and a mask of each in a parallel folder."""
    for label in ("benign", "malignant"):
        for number in range(5):
            image(tmp_path / "images" / label / f"{label}_{number}.png", seed=number)
            mask(tmp_path / "masks" / label / f"{label}_{number}.png")
    return tmp_path


def listed(capsys, images: Path, masks: Path | None = None, *, code: int = 0) -> tuple[dict[str, str], str, str]:
    """The mask's name by the image's name, what was printed, what was warned of."""
    out = images.parent / "table.csv"
    flags = ["--masks", str(masks)] if masks else []
    try:
        main(["data", "folder", str(images), "--out", str(out), *flags])
        ended = 0
    except SystemExit as error:
        ended = error.code
    printed = capsys.readouterr()
    assert ended == code, printed.err
    if not out.exists():
        return {}, printed.out, printed.err
    rows = pd.read_csv(out, keep_default_na=False, dtype=str)
    pairs = {Path(i).name: Path(m).name for i, m in zip(rows["image"], rows["mask"], strict=True)}
    assert len(pairs) == len(rows)
    return pairs, printed.out, printed.err


def rename_masks(root: Path, name) -> None:
    for file in sorted((root / "masks").rglob("*.png")):
        file.rename(file.with_name(name(file.stem)))


NAMES = {
    "mask": "{}_mask.png", "anno": "{}_anno.PNG", "segmentation": "{}_segmentation.png", "label": "{}-label.tif",
    "gt": "{}.gt.bmp", "ground truth": "{}_ground_truth.png", "capitals": "{}_MASK.png", "numbered": "{}_mask_1.png",
    "number in brackets": "{}_mask (1).png", "before": "mask_{}.png", "an ending of their own": "{}_manual1.png",
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_masks_are_found_whatever_their_ending(root, capsys, kind):
    rename_masks(root, NAMES[kind].format)
    pairs, _, err = listed(capsys, root / "images", root / "masks")
    assert pairs == {f"{n}.png": NAMES[kind].format(n) for n in (Path(p).stem for p in pairs)}
    assert len(pairs) == 10
    assert "belong to no image" not in err


def test_case_and_unicode_form_do_not_matter(root, capsys):
    (root / "masks" / "malignant").rename(root / "masks" / "MALIGNANT")
    for number, name in enumerate(("Größe", "é", "É2", "ẞ", "ﬁ")):
        (root / "images/benign" / f"benign_{number}.png").rename(
            root / "images/benign" / f"{unicodedata.normalize('NFD', name)}.png"
        )
        other = unicodedata.normalize("NFC", name).upper() if number == 0 else unicodedata.normalize("NFC", name)
        (root / "masks/benign" / f"benign_{number}.png").rename(root / "masks/benign" / f"{other}_Mask.png")
    pairs, _, err = listed(capsys, root / "images", root / "masks")
    assert all(pairs.values())
    assert err == ""


def test_names_that_differ_by_case_alone_keep_their_own_masks(root, capsys):
    image(root / "images/benign/a.png")
    image(root / "images/benign/A.png")
    mask(root / "masks/benign/a_mask.png")
    mask(root / "masks/benign/A_mask.png")
    pairs, *_ = listed(capsys, root / "images", root / "masks")
    assert (pairs["a.png"], pairs["A.png"]) == ("a_mask.png", "A_mask.png")


def test_a_longer_name_is_another_image(root, capsys):
    for name in ("x_1", "x_10", "x"):
        image(root / f"images/benign/{name}.png")
    for name in ("x_1_gt", "x_10_gt"):
        mask(root / f"masks/benign/{name}.png")
    pairs, *_ = listed(capsys, root / "images", root / "masks")
    assert (pairs["x_1.png"], pairs["x_10.png"], pairs["x.png"]) == ("x_1_gt.png", "x_10_gt.png", "")


def test_masks_without_an_image_are_listed(root, capsys):
    mask(root / "masks/benign/orphan.png")
    mask(root / "masks/benign/benign_0_other.png")  # an ending that no other has
    mask(root / "masks/nobody/a.png")
    mask(root / "masks/malignant/malignant_9_mask.png")
    pairs, _, err = listed(capsys, root / "images", root / "masks")
    assert len(pairs) == 10
    assert err.splitlines() == [
        "warning: 4 mask(s) belong to no image:",
        "  benign/benign_0_other.png",
        "  benign/orphan.png",
        "  malignant/malignant_9_mask.png",
        "  nobody/a.png",
    ]


@pytest.mark.parametrize("name", ["benign_0_mask_1.png", "benign_0_mask.png", "BENIGN_0_Mask2.png", "gt_benign_0.png"])
def test_a_mask_beside_its_image_is_never_an_image(root, capsys, name):
    mask(root / "images/benign" / name)
    pairs, _, err = listed(capsys, root / "images", root / "images")
    assert len(pairs) == 10
    assert pairs["benign_0.png"] == name
    (root / "table.csv").unlink()
    _, _, err = listed(capsys, root / "images", code=2)
    assert "looks like a mask among the images" in err
    (root / "images/benign" / name).rename(root / "images/benign/benign_77_mask.png")
    mask(root / "images/malignant/malignant_1_mask.png")
    pairs, _, err = listed(capsys, root / "images", root / "images")
    assert len(pairs) == 10
    assert "1 mask(s) belong to no image:\n  benign/benign_77_mask.png" in err


def test_one_bad_image_is_listed_and_the_table_has_the_others(root, capsys):
    (root / "images/benign/benign_0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (root / "images/benign/benign_1.png").unlink()
    (root / "images/benign/benign_1.png").symlink_to("../.git/annex/objects/absent.png")
    mask(root / "masks/malignant/malignant_2_mask_1.png")  # a second one, as in BUSI
    Image.new("L", (9, 9)).save(root / "masks/malignant/malignant_3.png")
    for number in range(5, 8):
        for label in ("benign", "malignant"):
            image(root / f"images/{label}/{label}_{number}.png")
    pairs, _, err = listed(capsys, root / "images", root / "masks", code=1)
    assert len(pairs) == 12
    failed = dict(line.removeprefix("failed: ").split(": ", 1) for line in err.splitlines() if "failed: " in line)
    assert sorted(failed) == [
        "benign/benign_0.png", "benign/benign_1.png", "malignant/malignant_2.png", "malignant/malignant_3.png"
    ]  # fmt: skip
    assert "there is no such file" in failed["benign/benign_1.png"]
    assert "has several masks (malignant_2.png, malignant_2_mask_1.png)" in failed["malignant/malignant_2.png"]
    assert "the mask is 9x9 px" in failed["malignant/malignant_3.png"]


def test_a_mask_of_two_images_is_neither_s(root, capsys):
    image(root / "images/benign/benign_5.png")
    image(root / "images/benign/benign_0.bmp")
    pairs, _, err = listed(capsys, root / "images", root / "masks", code=1)
    assert len(pairs) == 10
    assert "its mask benign_0.png may belong to benign/benign_0.bmp or benign/benign_0.png; rename images" in err


def test_nothing_is_written_where_a_class_is_lost(root, capsys):
    for file in (root / "images/benign").iterdir():
        file.write_bytes(b"")
    pairs, _, err = listed(capsys, root / "images", code=2)
    assert pairs == {}
    assert "no image of class benign can be used" in err


@pytest.mark.parametrize(("images", "masks"), [("image", "mask"), ("images", "label"), ("Images", "Masks"), ("", "gt")])
def test_classes_may_have_folders_of_images_and_masks(root, capsys, images, masks):
    for label in ("benign", "malignant"):
        (root / "new" / label).mkdir(parents=True)
        if images:
            (root / "images" / label).rename(root / "new" / label / images)
        else:
            for file in (root / "images" / label).iterdir():
                file.rename(root / "new" / label / file.name)
        (root / "masks" / label).rename(root / "new" / label / masks)
    pairs, out, _ = listed(capsys, root / "new")
    assert pairs == {f"{label}_{n}.png": f"{label}_{n}.png" for label in ("benign", "malignant") for n in range(5)}
    assert "10 with mask" in out
    image(root / "new/benign/img/x.png")
    (root / "table.csv").unlink()
    assert "lie in two places" in listed(capsys, root / "new", code=2)[2]


def test_other_places_of_masks(root, capsys):
    assert all(listed(capsys, root)[0].values())  # root/images/CLASS and root/masks/CLASS
    for file in sorted((root / "masks").rglob("*.png")):
        file.rename(root / "masks" / file.name)  # in one heap
    assert all(listed(capsys, root / "images", root / "masks")[0].values())
    (root / "images").rename(root / "x")
    (root / "images").mkdir()
    (root / "x").rename(root / "images" / "Training")
    pairs, *_ = listed(capsys, root / "images", root / "masks")
    assert len(pairs) == 10
    assert all(pairs.values())


def test_what_systems_leave_is_no_image(root, capsys):
    for place in ("images", "images/benign", "images/malignant"):
        for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", ".git"):
            image(root / place / name / "benign" / "a.png")
            image(root / place / name / "a.png")
        for name in ("._benign_0.png", ".DS_Store", ".hidden.png"):
            (root / place / name).write_bytes(b"\x00\x05\x16\x07")
    (root / "images/benign/Thumbs.db").write_bytes(b"x")
    (root / "images/benign/a.webp").write_bytes(b"x")
    pairs, out, _ = listed(capsys, root / "images", root / "masks")
    assert len(pairs) == 10
    assert "files that are no images, and ignored: 1 .db, 1 .webp" in out


def test_links_into_a_store_are_called_as_they_are_written(root, capsys):
    store = root / "store"
    store.mkdir()
    for number, file in enumerate(sorted((root / "images").rglob("*.png")) + sorted((root / "masks").rglob("*.png"))):
        file.rename(store / f"{number:032x}")
        file.symlink_to(os.path.relpath(store / f"{number:032x}", file.parent))
    pairs, *_ = listed(capsys, root / "images", root / "masks")
    assert pairs == {f"{label}_{n}.png": f"{label}_{n}.png" for label in ("benign", "malignant") for n in range(5)}


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a_mask", "a"), ("a-b_MASK_12", "a-b"), ("benign (1)_mask_1", "benign (1)"), ("mask_a", "a"),
        ("a ground truth", "a"), ("a_labels", "a"), ("a_segmentation", "a"), ("a", None), ("mask", None),
        ("unmasked", None), ("a_masked", None), ("a_1", None), ("label", None), ("slabel", None),
    ],
)  # fmt: skip
def test_names_with_a_word_for_masks(name, image):
    assert image_name(name) == image
