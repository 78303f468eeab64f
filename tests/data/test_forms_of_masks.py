"""Masks and heatmaps have one meaning in every form, or are refused in a sentence that says what is open."""

import re
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from forms import MAPS, MASKS, NO_MAPS, TWO_MEANINGS, tissue, truth
from histoloc.data.images import image_size, read_map, read_mask
from histoloc.data.table import read_table
from histoloc.errors import InputError


@pytest.mark.parametrize("name", MASKS)
def test_what_is_not_0_is_roi_in_every_form(tmp_path, name):
    mask = truth()
    MASKS[name](tmp_path / name, mask)
    if name == "clean.jpg":
        mask = np.kron(mask[::8, ::8], np.ones((8, 8), np.uint8))
    read = read_mask(tmp_path / name)
    assert read.dtype == np.bool_
    np.testing.assert_array_equal(read, mask > 0)
    assert image_size(tmp_path / name) == (64, 48)


@pytest.mark.parametrize("name", TWO_MEANINGS)
def test_a_mask_that_leaves_open_what_is_background_is_refused(tmp_path, name):
    message, write = TWO_MEANINGS[name]
    write(tmp_path / name, truth())
    with pytest.raises(InputError, match=message) as caught:
        read_mask(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "; save" in str(caught.value) or "; export" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_lists_all_masks_whose_headers_are_wrong(tmp_path):
    names = ["inverted.tif", "inverted 16 bits.tif", "inverted doubles.tif", "cmyk.tif", "pages.tif", "stack.npy"]
    rows = ["image,label,mask,split,group"]
    for number, name in enumerate(names):
        Image.fromarray(tissue()).save(tmp_path / f"{number}.png")
        TWO_MEANINGS[name][1](tmp_path / name, truth())
        rows.append(f"{number}.png,{'ab'[number % 2]},{name},test,")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    with pytest.raises(InputError, match="6 problems") as caught:
        read_table(tmp_path / "table.csv")
    for name, line in zip(names, str(caught.value).splitlines()[1:], strict=True):
        assert re.search(f"{name}: .*{TWO_MEANINGS[name][0]}", line)


def test_classes_by_number_are_no_soft_edges(tmp_path):
    classes = truth() + np.roll(truth(), 9, axis=1)
    for name, values in {"a.tif": classes, "b.tif": classes.astype(np.uint16) * 255, "c.tif": classes * 127}.items():
        tifffile.imwrite(tmp_path / name, values)
        np.testing.assert_array_equal(read_mask(tmp_path / name), classes > 0)


@pytest.mark.parametrize("name", MAPS)
def test_1_is_1_in_every_form_of_a_heatmap(tmp_path, name):
    MAPS[name](tmp_path / name, truth())
    roi = read_map(tmp_path / name)
    assert roi.dtype == np.float32
    np.testing.assert_allclose(roi, truth(), atol=1e-6)


@pytest.mark.parametrize("name", NO_MAPS)
def test_what_does_not_hold_the_numbers_of_a_heatmap_is_refused(tmp_path, name):
    message, write = NO_MAPS[name]
    write(tmp_path / name, truth())
    with pytest.raises(InputError, match=message) as caught:
        read_map(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_the_number_that_means_1_can_be_said(tmp_path):
    for dtype in (np.uint8, np.uint16, np.int32):
        tifffile.imwrite(tmp_path / "a.tif", truth().astype(dtype) * 100)
        np.testing.assert_array_equal(read_map(tmp_path / "a.tif", 100), truth())
    tifffile.imwrite(tmp_path / "a.tif", truth() / 2)  # floating-point numbers are taken as they are
    np.testing.assert_array_equal(read_map(tmp_path / "a.tif", 100), truth() / 2)
    tifffile.imwrite(tmp_path / "a.tif", truth() * np.uint8(101))
    with pytest.raises(InputError, match=r"from 0 to 1\.01"):
        read_map(tmp_path / "a.tif", 100)


HEADERS = {
    "cut": b"{'descr': '<f4', 'fortran_order': False, 'sha",
    "brackets": b"(" * 5000,
    "numbers": b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",)}",
    "strings": b"{'descr': '''",
    "bytes": bytes(range(128, 256)),
    "large": b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 10000000000), }",
    "negative": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4), }",
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 4), }",
    "fields": b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 4), }",
    "words": b"{'descr': '<U4', 'fortran_order': False, 'shape': (4, 4), }",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_header_of_an_array_is_one_sentence(tmp_path, name):
    header = HEADERS[name] + b"\n"
    for version, size in ((b"\x01\x00", "<H"), (b"\x02\x00", "<I"), (b"\x03\x00", "<I"), (b"\x07\x00", "<H")):
        content = b"\x93NUMPY" + version + struct.pack(size, len(header)) + header + bytes(256)
        (tmp_path / "a.npy").write_bytes(content)
        for read in (read_map, read_mask, image_size):
            with pytest.raises(InputError, match=r"a\.npy: ") as caught:
                read(tmp_path / "a.npy")
            assert len(str(caught.value)) < 600
            assert "\n" not in str(caught.value)
