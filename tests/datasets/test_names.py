import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoloc.datasets.camelyon16.names import PatchName, parse_patch_name, slide_key
from histoloc.errors import InputError

TUMOUR = (
    "Patch_file_training-tumor-tumor_001.tif_reg_0_row_12_patch_3_x_61440_y_129024"
    "_tissue_0.8123_metastatic_0.30_w_512_h_512.png"
)
NORMAL = "Patch_file_training-normal-normal_042.tif_patch_7_x_1024_y_512_tissue_1.0_w_512_h_512.png"


def test_a_tumour_patch():
    patch = parse_patch_name(TUMOUR)
    assert (patch.label, patch.is_mask) == ("tumor", False)
    assert patch.slide == "training-tumor-tumor_001.tif"
    assert (patch.region, patch.row, patch.patch) == (0, 12, 3)
    assert (patch.x, patch.y, patch.width, patch.height) == (61440, 129024, 512, 512)
    assert (patch.tissue, patch.metastatic) == ("0.8123", "0.30")
    assert str(patch) == TUMOUR  # 0.30, not 0.3
    assert parse_patch_name(f"some/folder_patch_1/{TUMOUR}") == patch
    assert parse_patch_name(f"some\\folder\\{TUMOUR}") == patch


@pytest.mark.parametrize("name", [f"mask_{TUMOUR}", TUMOUR.replace("Patch_", "mask_")])
def test_its_mask(name):
    mask = parse_patch_name(name)
    assert mask.is_mask
    assert (mask.slide, mask.x, mask.metastatic) == ("training-tumor-tumor_001.tif", 61440, "0.30")
    assert str(mask) == name


def test_a_normal_patch():
    patch = parse_patch_name(NORMAL)
    assert (patch.label, patch.is_mask) == ("normal", False)
    assert (patch.slide, patch.patch, patch.x, patch.y) == ("training-normal-normal_042.tif", 7, 1024, 512)
    assert (patch.region, patch.row, patch.tissue, patch.metastatic) == (None, None, "1.0", None)
    assert str(patch) == NORMAL


def test_small_shares_in_scientific_notation():
    name = NORMAL.replace("1.0", "3.814697265625e-06")
    assert float(parse_patch_name(name).tissue) == 3.814697265625e-06
    assert str(parse_patch_name(name)) == name


share = st.floats(0, 1)
number = st.integers(0, 10**6)
slide = st.from_regex(r"[a-z]+(/[a-z_0-9-]+){0,3}\.(tif|svs)", fullmatch=True) | st.sampled_from(
    ["a_patch_1_x_2_y_3_b.tif", "a_reg_1_row_2.tif", "a_reg_1_row_2_patch_3"]
)


@given(slide, number, number, number, number, number, share, share)
def test_names_are_read_as_written(slide, region, row, patch, x, y, tissue, tumour):
    place = (slide_key(slide), patch, x, y, repr(tissue), 512, 768)
    for name in (PatchName(*place, region, row, repr(tumour)), PatchName(*place)):
        back = parse_patch_name(str(name))
        assert back == name
        assert (float(back.tissue), back.slide) == (tissue, slide.replace("/", "-"))


@pytest.mark.parametrize(
    "name",
    [
        "tumor_001.png",
        TUMOUR.replace("_reg_0_row_12", ""),
        TUMOUR.replace("_metastatic_0.30", ""),
        TUMOUR.replace("61440", "061440"),
        TUMOUR.replace("61440", "-5"),
        TUMOUR.replace("0.30", "1.2"),
        TUMOUR.replace("w_512", "w_0"),
        f"mask_{NORMAL}",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=r"no name of a published patch; expected Patch_file_.* shares up to 1"):
        parse_patch_name(name)


def test_keys_of_slides():
    assert slide_key("training/tumor/tumor_001.tif") == "training-tumor-tumor_001.tif"
    assert slide_key("training\\tumor\\tumor_001.tif") == "training-tumor-tumor_001.tif"
