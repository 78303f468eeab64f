import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoloc.datasets.camelyon16.names import (
    all_ones_f1,
    normal_name,
    parse_patch_name,
    slide_key,
    slides_by_key,
    tumour_name,
)
from histoloc.errors import InputError

TUMOUR = (
    "Patch_file_training-tumor-tumor_001.tif_reg_0_row_12_patch_3_x_61440_y_129024"
    "_tissue_0.8123_metastatic_0.30_w_512_h_512.png"
)
NORMAL = "Patch_file_training-normal-normal_042.tif_patch_7_x_1024_y_512_tissue_1.0_w_512_h_512.png"


def test_a_tumour_patch():
    patch = parse_patch_name(TUMOUR)
    assert patch.kind == "tumour"
    assert patch.slide == "training-tumor-tumor_001.tif"
    assert (patch.region, patch.row, patch.patch) == (0, 12, 3)
    assert (patch.x, patch.y, patch.width, patch.height) == (61440, 129024, 512, 512)
    assert (patch.tissue, patch.tumour) == (0.8123, 0.3)
    assert str(patch) == TUMOUR  # 0.30, not 0.3
    assert parse_patch_name(f"some/folder_patch_1/{TUMOUR}") == patch
    assert parse_patch_name(f"some\\folder\\{TUMOUR}") == patch


@pytest.mark.parametrize("name", [f"mask_{TUMOUR}", TUMOUR.replace("Patch_", "mask_")])
def test_its_mask(name):
    mask = parse_patch_name(name)
    assert mask.kind == "mask"
    assert (mask.slide, mask.x, mask.tumour) == ("training-tumor-tumor_001.tif", 61440, 0.3)
    assert str(mask) == name


def test_a_normal_patch():
    patch = parse_patch_name(NORMAL)
    assert patch.kind == "normal"
    assert (patch.slide, patch.patch, patch.x, patch.y) == ("training-normal-normal_042.tif", 7, 1024, 512)
    assert (patch.region, patch.row, patch.tissue, patch.tumour) == (None, None, 1.0, 0.0)
    assert str(patch) == NORMAL


def test_small_shares_in_scientific_notation():
    name = NORMAL.replace("1.0", "3.814697265625e-06")
    assert parse_patch_name(name).tissue == 3.814697265625e-06
    assert str(parse_patch_name(name)) == name


share = st.floats(0, 1)
number = st.integers(0, 10**6)
slide = st.from_regex(r"[a-z]+(/[a-z_0-9-]+){0,3}\.(tif|svs)", fullmatch=True) | st.sampled_from(
    ["a_patch_1_x_2_y_3_b.tif", "a_reg_1_row_2.tif", "a_reg_1_row_2_patch_3"]
)


@given(slide, number, number, number, number, number, share, share)
def test_names_are_read_as_written(slide, region, row, patch, x, y, tissue, tumour):
    name = tumour_name(
        slide, region=region, row=row, patch=patch, x=x, y=y, tissue=tissue, tumour=tumour, width=512, height=768
    )
    back = parse_patch_name(str(name))
    assert back == name
    assert (back.tissue, back.tumour, back.slide) == (tissue, tumour, slide.replace("/", "-"))
    normal = normal_name(slide, patch=patch, x=x, y=y, tissue=tissue, width=512, height=768)
    assert str(parse_patch_name(str(normal))) == str(normal)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tumor_001.png", "no name of a published patch"),
        (TUMOUR.replace("_reg_0_row_12", ""), "no name of a published patch"),
        (TUMOUR.replace("_metastatic_0.30", ""), "no name of a published patch"),
        (TUMOUR.replace("61440", "061440"), "no name of a published patch"),
        (TUMOUR.replace("61440", "-5"), "no name of a published patch"),
        (TUMOUR.replace("0.30", "1.2"), "above 1"),
        (TUMOUR.replace("w_512", "w_0"), "without pixels"),
        (f"mask_{NORMAL}", "mask of a normal patch"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        parse_patch_name(name)


def test_all_ones():
    shares = ["0.2", "0.5", "1.0"]  # 2p/(1+p) = 1/3, 2/3, 1
    names = [TUMOUR.replace("0.30", p) for p in shares]
    assert all_ones_f1(names) == pytest.approx(2 / 3, abs=1e-12)
    assert all_ones_f1([*names, NORMAL, *(f"mask_{name}" for name in names)]) == pytest.approx(2 / 3, abs=1e-12)
    with pytest.raises(InputError, match="no name is that of a tumour patch"):
        all_ones_f1([NORMAL])


def test_slides_by_key():
    assert slide_key("training/tumor/tumor_001.tif") == "training-tumor-tumor_001.tif"
    assert slides_by_key(["a/b-c.tif", "d.tif"]) == {"a-b-c.tif": "a/b-c.tif", "d.tif": "d.tif"}
    with pytest.raises(InputError, match="named as those of a/b-c"):
        slides_by_key(["a/b-c.tif", "a-b/c.tif"])


def test_shares_above_one_are_a_mistake():
    with pytest.raises(ValueError, match="between 0 and 1"):
        normal_name("a.tif", patch=0, x=0, y=0, tissue=1.5, width=8, height=8)
