import errno
import tempfile
import tracemalloc
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st

from histoloc.errors import InputError
from histoloc.slides import export
from histoloc.slides.export import reductions, write_ome_tiff
from histoloc.slides.reader import open_slide
from histoloc.slides.stitch import write_map

MPP = 4.04


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def write(path, values, mpp=MPP, name="ROI"):
    with tempfile.TemporaryDirectory() as folder:
        write_ome_tiff(path, reductions(write_map(Path(folder) / "map.raw", [values], values.shape)), mpp, name)
    return path


def halved(values):
    """Means of the pixels that are there, one by one."""
    height, width = values.shape
    return np.array(
        [[round(float(values[i : i + 2, j : j + 2].mean())) for j in range(0, width, 2)] for i in range(0, height, 2)]
    )


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 99))
def test_every_level_is_the_mean_of_the_one_before(tmp_path_factory, height, width, seed):
    values = noise(height, width, seed)

    with pytest.MonkeyPatch.context() as small:
        small.setattr(export, "TILE", 16)
        path = write(tmp_path_factory.mktemp("map") / "map.ome.tif", values)
    with tifffile.TiffFile(path) as file:
        levels = [level.asarray().reshape(level.shape) for level in file.series[0].levels]
    assert (levels[0] == values).all()
    assert max(levels[-1].shape) <= 16
    for fine, coarse in pairwise(levels):
        assert max(fine.shape) > 16
        assert (coarse == halved(fine)).all()


def test_it_is_tiled_and_deflated_and_every_level_knows_its_size(tmp_path):
    values = noise(700, 1301)
    with tifffile.TiffFile(write(tmp_path / "map.ome.tif", values)) as file:
        assert file.is_ome
        assert not file.is_bigtiff
        assert len(file.pages) == 1
        (series,) = file.series
        assert series.axes == "YX"
        assert [level.shape for level in series.levels] == [(700, 1301), (350, 651), (175, 326), (88, 163)]
        for index, level in enumerate(series.levels):
            page = level.keyframe
            assert page.tile == (256, 256)
            assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            assert page.photometric == tifffile.PHOTOMETRIC.MINISBLACK
            assert page.subfiletype == int(index > 0)
            assert page.tags.valueof("ResolutionUnit") == tifffile.RESUNIT.CENTIMETER
            for tag in ("XResolution", "YResolution"):
                numerator, denominator = page.tags.valueof(tag)
                assert numerator / denominator == pytest.approx(1e4 / (MPP * 2**index), rel=1e-6)


def test_openslide_opens_it_at_its_scale(tmp_path):
    values = noise(300, 517)
    path = write(tmp_path / "map.ome.tif", values)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((517, 300),)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(MPP, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(MPP, rel=1e-6)
        region = np.asarray(slide.read_region((0, 0), 0, (517, 300)))
        assert (region[..., :3] == values[..., None]).all()
        assert (region[..., 3] == 255).all()
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(MPP, rel=1e-6)
    with pytest.raises(InputError, match=r"map\.ome\.tif: is no colour picture in RGB"):  # a map is no slide
        open_slide(path)


@pytest.mark.parametrize("name", ["ROI", 'metastatic <b> & "c"', "Tumor-µ Größe 腫瘍"])
def test_the_ome_xml_is_valid(tmp_path, name):
    path = write(tmp_path / "map.ome.tif", noise(20, 30), name=name)
    text = tifffile.tiffcomment(path)
    assert isinstance(text, str)
    schema = xmlschema.XMLSchema(str(files("ome_types") / "ome-2016-06.xsd"), allow="local")
    schema.validate(text)
    from ome_types import from_xml

    (image,) = from_xml(text).images
    pixels = image.pixels
    assert (pixels.size_x, pixels.size_y, pixels.size_c, pixels.size_z, pixels.size_t) == (30, 20, 1, 1, 1)
    assert (pixels.physical_size_x, pixels.physical_size_y) == (MPP, MPP)
    assert pixels.physical_size_x_unit.value == pixels.physical_size_y_unit.value == "µm"
    assert pixels.type.value == "uint8"
    assert (image.name, pixels.channels[0].name) == (name, name)


def test_the_same_map_gives_the_same_bytes_and_another_another_identifier(tmp_path):
    values = noise(300, 300)
    first, again = (write(tmp_path / f"{i}.ome.tif", values).read_bytes() for i in range(2))
    assert first == again
    comments = {tifffile.tiffcomment(write(tmp_path / "a.ome.tif", noise(300, 300, seed))) for seed in (0, 1)}
    assert len(comments) == 2


def test_memory_holds_bands_not_the_map(tmp_path):
    peaks = {}
    for height in (2560, 25600):
        bands = (np.full((256, 1000), i % 256, np.uint8) for i in range(height // 256))
        whole = write_map(tmp_path / "map.raw", bands, (height, 1000))
        tracemalloc.start()
        write_ome_tiff(tmp_path / "map.ome.tif", reductions(whole), MPP, "ROI")
        peaks[height] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[25600] < 1.2 * peaks[2560] < 8e6
    assert tifffile.imread(tmp_path / "map.ome.tif")[:, 7].tolist() == [i // 256 % 256 for i in range(25600)]


def test_large_maps_are_bigtiff_that_openslide_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_CLASSIC_LIMIT", 1000)
    path = write(tmp_path / "map.ome.tif", noise(300, 300))
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        assert len(file.series[0].levels) == 2
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (300, 300)


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    path = write(tmp_path / "map.ome.tif", noise(20, 20))
    before = path.read_bytes()

    def full_disk(level):
        yield np.zeros((256, 256), np.uint8)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "_tiles", full_disk)
    with pytest.raises(InputError, match=r"map\.ome\.tif: cannot be written \(No space left"):
        write(path, noise(600, 300))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.ome.tif"]
