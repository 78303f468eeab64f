import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from factory import blob, make_slide, render
from histoloc.errors import InputError
from histoloc.slides.reader import Slide, describe, open_slide

SIZE = (1501, 1001)
WAYS = ["openslide", "strips", "planes", "subifds", "png"]


def reduced(array: np.ndarray, factor: int) -> np.ndarray:
    rows, columns = (side // factor * factor for side in array.shape[:2])
    blocks = array[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor, 3)
    return blocks.mean(axis=(1, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def level0() -> np.ndarray:
    """Smooth colours and noise, so that a shift by one pixel shows."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[: SIZE[1], : SIZE[0]]
    smooth = np.stack([x / 8 + 0 * y, y / 6 + 0 * x, (x + y) / 20], axis=-1)
    return (smooth + rng.integers(0, 40, (*SIZE[::-1], 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory, level0) -> dict[str, Path]:
    """The same pixels at 0.5 µm/px in every way that is read."""
    folder = tmp_path_factory.mktemp("slides")
    common = {"compression": "zlib", "photometric": "rgb", "metadata": None}
    tags = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(folder / "openslide.tif") as file:
        for factor in (1, 2, 8):
            file.write(reduced(level0, factor), tile=(128, 128), subfiletype=int(factor > 1), **tags, **common)
    tifffile.imwrite(folder / "strips.tif", level0, rowsperstrip=17, **tags, **common)
    planes = np.moveaxis(level0, -1, 0)
    tifffile.imwrite(folder / "planes.tif", planes, rowsperstrip=50, planarconfig="separate", **tags, **common)
    with tifffile.TiffWriter(folder / "subifds.tif") as file:
        file.write(level0, rowsperstrip=16, subifds=2, **tags, **common)
        for factor in (2, 8):
            file.write(reduced(level0, factor), rowsperstrip=16, subfiletype=1, **common)
    Image.fromarray(level0).save(folder / "png.png", dpi=(50800, 50800))
    return {way: next(folder.glob(f"{way}.*")) for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_every_format_gives_the_pixels_of_the_array(files, level0, way):
    with open_slide(files[way]) as slide:
        assert slide.size == SIZE
        assert slide.mpp == pytest.approx(0.5, abs=1e-4)
        assert (slide.read(0, 0, *SIZE, slide.mpp) == level0).all()
        for x, y, width, height in [(0, 0, 1, 1), (127, 128, 2, 3), (1000, 700, 501, 301), (3, 990, 700, 11)]:
            assert (slide.read(x, y, width, height, slide.mpp) == level0[y : y + height, x : x + width]).all()


@pytest.mark.parametrize("way", ["openslide", "subifds"])
@pytest.mark.parametrize("factor", [1, 2, 8])
def test_levels_are_read_as_they_are(files, level0, way, factor):
    expected = reduced(level0, factor)
    with open_slide(files[way]) as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 8]
        assert [level.mpp for level in slide.levels] == pytest.approx([0.5, 1, 4], rel=1e-4)
        assert [(level.width, level.height) for level in slide.levels] == [(1501, 1001), (750, 500), (187, 125)]
        for mpp in (0.5 * factor, 0.5 * factor * 1.009):
            assert (slide.read(0, 0, 60, 50, mpp) == expected[:50, :60]).all()
        if way == "subifds":
            assert (slide.read(100 * factor, 60 * factor, 40, 30, 0.5 * factor) == expected[60:90, 100:140]).all()


def test_a_level_of_uneven_size_is_read_within_half_a_pixel_of_level_0(files, level0):
    with open_slide(files["openslide"]) as slide:
        read = slide.read(600, 400, 300, 200, 1.0).astype(float)
    exact = reduced(level0, 2)[200:400, 300:600].astype(float)
    moved = reduced(level0, 2)[201:401, 301:601].astype(float)
    assert abs(read - exact).mean() < 0.5 * abs(read - moved).mean()


def test_the_level_for_a_scale(files):
    with open_slide(files["openslide"]) as slide:
        wanted = {0.46: 0, 0.5: 0, 0.6: 0, 0.989: 0, 0.991: 1, 1.0: 1, 1.009: 1, 1.1: 1, 3.9: 1, 3.97: 2, 100: 2}
        assert {mpp: slide.level_for(mpp) for mpp in wanted} == wanted
        assert slide.size_at(0.5) == SIZE
        assert slide.size_at(1.005) == (750, 500)
        assert slide.size_at(2.0) == (375, 250)
        with pytest.raises(InputError, match=r"was scanned at 0\.5 µm/px and cannot be enlarged to 0\.45 µm/px"):
            slide.read(0, 0, 9, 9, 0.45)
        with pytest.raises(InputError, match="mpp -1: give a positive"):
            slide.level_for(-1)


@pytest.mark.parametrize("way", ["strips", "png"])
@pytest.mark.parametrize("mpp", [0.47, 0.55, 0.75, 1.7, 4.0, 16.3])
def test_resampling_is_that_of_pillow_on_the_whole(files, level0, way, mpp):
    with open_slide(files[way], mpp=0.5) as slide:
        width, height = slide.size_at(mpp)
        ratio = mpp / 0.5
        margin = 100
        padded = Image.fromarray(np.pad(level0, ((margin,) * 2, (margin,) * 2, (0, 0)), constant_values=255))
        box = (margin, margin, margin + width * ratio, margin + height * ratio)
        expected = np.asarray(padded.resize((width, height), Image.Resampling.HAMMING, box=box)).astype(int)
        whole = slide.read(0, 0, width, height, mpp).astype(int)
        assert abs(whole - expected).max() <= 1
        x, y, w, h = width // 3, height // 4, width // 3, height // 2
        part = slide.read(x * ratio, y * ratio, w, h, mpp)
        assert abs(part - expected[y : y + h, x : x + w]).max() <= 1


def test_resampling_by_a_whole_factor_is_close_to_the_mean(files, level0):
    with open_slide(files["strips"]) as slide:
        read = slide.read(0, 0, 187, 125, 4.0).astype(int)
    difference = (read - reduced(level0, 8))[1:-1, 1:-1]
    assert abs(difference).mean() < 1.5
    assert abs(difference.mean()) < 0.6


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.integers(-300, 1700), y=st.integers(-300, 1200), width=st.integers(1, 400), height=st.integers(1, 400))
@pytest.mark.parametrize("way", ["openslide", "strips"])
def test_outside_is_white(files, level0, way, x, y, width, height):
    canvas = np.full((2000, 2600, 3), 255, np.uint8)
    canvas[300:1301, 300:1801] = level0
    with open_slide(files[way]) as slide:
        region = slide.read(x, y, width, height, 0.5)
    assert (region == canvas[y + 300 : y + 300 + height, x + 300 : x + 300 + width]).all()


def test_far_outside_is_white_at_every_scale(files):
    with open_slide(files["openslide"]) as slide:
        for mpp in (0.5, 1.3, 30.0):
            assert (slide.read(-(10**6), 10**7, 40, 30, mpp) == 255).all()
            assert (slide.read(10**6, 0, 40, 30, mpp) == 255).all()


def test_alpha_is_composited_on_white(tmp_path):
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (300, 400, 4), dtype=np.uint8)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], rowsperstrip=10)
    for name in ("a.png", "a.tif"):
        with open_slide(tmp_path / name, mpp=1.0) as slide:
            assert abs(slide.read(0, 0, 400, 300, 1.0) - expected).max() <= 0.5 + 1e-9


def test_tiles_that_are_not_stored_are_white(tmp_path):
    tile = np.full((64, 64, 3), 7, np.uint8)
    tiles = iter([tile, None, None, tile])
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb")
    with open_slide(tmp_path / "a.tif", mpp=1.0) as slide:
        pixels = slide.read(0, 0, 128, 128, 1.0)
    assert (pixels[:64, :64] == 7).all()
    assert (pixels[64:, 64:] == 7).all()
    assert (pixels[:64, 64:] == 255).all()


def _read_corner(slide: Slide) -> bytes:
    return slide.read(100, 50, 300, 200, 0.8).tobytes()


@pytest.mark.parametrize("way", WAYS)
def test_threads_forks_and_pickles_give_equal_pixels(files, way):
    with open_slide(files[way]) as slide:
        corners = [(x, y) for x in range(0, 1500, 250) for y in range(0, 1000, 250)]
        alone = [slide.read(x, y, 200, 200, 0.6) for x, y in corners]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda corner: slide.read(corner[0], corner[1], 200, 200, 0.6), corners))
        assert all((a == b).all() for a, b in zip(alone, together, strict=True))
        expected = _read_corner(slide)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(_read_corner, [slide] * 4) == [expected] * 4
        copy = pickle.loads(pickle.dumps(slide))
        assert (copy.size, copy.mpp, copy.levels) == (slide.size, slide.mpp, slide.levels)
        assert _read_corner(copy) == expected
        copy.close()
    with pytest.raises(ValueError, match="was closed"):
        _read_corner(slide)


def test_thumbnails(files):
    with open_slide(files["openslide"]) as slide:
        assert slide.thumbnail(mpp=4.0).shape == (125, 187, 3)
        assert slide.thumbnail(mpp=10.0).shape == (50, 75, 3)
        for side in (1, 50, 187, 186, 749, 1500):
            assert 0.97 * side - 1 <= max(slide.thumbnail(max_side=side).shape) <= max(side, 3)
        assert slide.thumbnail(max_side=9999).shape == (1001, 1501, 3)


def test_the_real_slide(shared_data):
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert slide.size == (2220, 2967)
        assert slide.mpp == pytest.approx(0.499)
        assert slide.format == "aperio"
        record = describe(slide)
        assert record["mpp_from"] == "file"
        assert record["width_mm"] == 1.108
        assert record["properties"]["aperio.AppMag"] == "20"
        assert len(record["levels"]) == 1
        json.dumps(record, allow_nan=False)
        assert slide.read(0, 0, 32, 32, 0.5).std() > 1


def test_scale_of_ome_imagej_and_the_user(tmp_path):
    grey = np.zeros((64, 96, 3), np.uint8)
    ome = {"axes": "YXS", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "a.ome.tif", grey, photometric="rgb", metadata=ome)
    tifffile.imwrite(tmp_path / "ij.tif", grey, imagej=True, resolution=(4, 4), metadata={"unit": "um", "axes": "YXS"})
    for name in ("a.ome.tif", "ij.tif"):
        with open_slide(tmp_path / name) as slide:
            assert slide.mpp == pytest.approx(0.25)
            assert not slide.user_mpp
        with open_slide(tmp_path / name, mpp=0.5, option="--slide-mpp") as slide:
            assert (slide.mpp, describe(slide)["mpp_from"]) == (pytest.approx(0.25), "file")
            (note,) = slide.notes
            assert note.startswith(f"{name}: says 0.25 µm/px, but --slide-mpp 0.5; its own 0.25 are used")


def tiff(path: Path, **options) -> Path:
    tifffile.imwrite(path, np.full((64, 64, 3), 9, np.uint8), photometric="rgb", metadata=None, **options)
    return path


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_scales_that_cannot_be_trusted_are_refused(tmp_path, tile):
    with pytest.raises(InputError, match="does not say how large its pixels are; give --mpp"):
        open_slide(tiff(tmp_path / "none.tif", tile=tile))
    screen = tiff(tmp_path / "screen.tif", resolution=(72, 72), resolutionunit="INCH", tile=tile)
    with pytest.raises(InputError, match=r"says 352\.8 µm/px.*give the right --mpp"):
        open_slide(screen)
    flat = tiff(tmp_path / "flat.tif", resolution=(20000, 25000), resolutionunit="CENTIMETER", tile=tile)
    with pytest.raises(InputError, match=r"not square \(0\.5 and 0\.4 µm\)"):
        open_slide(flat)
    with open_slide(flat, mpp=0.5) as slide:
        assert slide.mpp == 0.5
    for mpp in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--mpp"):
            open_slide(flat, mpp=mpp)


def test_what_is_no_slide_is_refused(tmp_path, files):
    with pytest.raises(InputError, match="there is no such slide"):
        open_slide(tmp_path / "none.svs")
    with pytest.raises(InputError, match="there is no such slide"):
        open_slide(tmp_path)
    (tmp_path / "empty.svs").touch()
    with pytest.raises(InputError, match="is empty"):
        open_slide(tmp_path / "empty.svs")
    for name in ("text.svs", "text.tif", "text.png"):
        (tmp_path / name).write_text("no slide " * 100)
        with pytest.raises(InputError, match="read"):
            open_slide(tmp_path / name, mpp=0.5)
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb")
    with pytest.raises(InputError, match="16 bits per colour"):
        open_slide(tmp_path / "deep.tif", mpp=1)
    tifffile.imwrite(tmp_path / "grey.tif", np.zeros((64, 64), np.uint8))
    with pytest.raises(InputError, match="no colour picture"):
        open_slide(tmp_path / "grey.tif", mpp=1)
    with tifffile.TiffWriter(tmp_path / "stack.tif") as file:
        for _ in range(2):
            file.write(np.zeros((64, 64, 3), np.uint8), photometric="rgb", metadata=None)
    with pytest.raises(InputError, match="several pages of one size"):
        open_slide(tmp_path / "stack.tif", mpp=1)
    with open_slide(files["openslide"]) as slide:
        for width, height in [(0, 5), (5, 0), (-1, 5)]:
            with pytest.raises(InputError, match="is empty"):
                slide.read(0, 0, width, height, 0.5)
        with pytest.raises(InputError, match="a region cannot begin at"):
            slide.read(float("nan"), 0, 5, 5, 0.5)


def _read_all_of(path: Path) -> None:
    with open_slide(path, mpp=0.5) as slide:
        slide.read(0, 0, slide.width, slide.height, 0.5)
        slide.thumbnail(mpp=4.0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused_when_opened_or_read(files, tmp_path, way, share):
    whole = files[way].read_bytes()
    path = tmp_path / files[way].name
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"truncated|cannot be read|that can be read") as caught:
        _read_all_of(path)
    # An error that is its own cause can never be sent from a worker.
    seen: list[BaseException] = []
    error: BaseException | None = caught.value
    while error is not None:
        assert error not in seen
        seen.append(error)
        error = error.__cause__


def test_a_truncated_real_slide_is_refused(shared_data, tmp_path):
    whole = (shared_data / "slides" / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.svs: "):
        _read_all_of(tmp_path / "cut.svs")


def test_a_truncated_slide_is_told_in_one_sentence(tmp_path):
    """Its first page begins beyond its end, which tifffile puts into its log."""
    (tmp_path / "cut.tif").write_bytes(b"II*\0" + (99_999).to_bytes(4, "little") + bytes(2000))
    command = [sys.executable, "-m", "histoloc.cli.main", "slides", "info", str(tmp_path / "cut.tif")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"histoloc: {tmp_path / 'cut.tif'}: ")


def test_damage_in_one_place_spares_the_others(files, tmp_path, level0):
    data = bytearray(files["openslide"].read_bytes())
    with tifffile.TiffFile(files["openslide"]) as file:
        page = file.pages[0].aspage()
        start = page.dataoffsets[0]
    data[start : start + 500] = bytes(500)
    (tmp_path / "hurt.tif").write_bytes(data)
    with open_slide(tmp_path / "hurt.tif") as slide:
        with pytest.raises(InputError, match=r"hurt\.tif: cannot be read, it may be truncated or damaged"):
            slide.read(0, 0, 100, 100, 0.5)
        assert (slide.read(500, 500, 100, 100, 0.5) == level0[500:600, 500:600]).all()


MEMORY = """
import resource, sys
from pathlib import Path
from histoloc.slides.reader import open_slide
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_slide(Path(sys.argv[1])) as slide:
    assert slide.size == (40000, 40000)
    assert slide.thumbnail(mpp=8.0).shape == (1250, 1250, 3)
    slide.read(0, 0, 2000, 2000, 1.9)
    for i in range(60):
        slide.read(600 * i, 600 * i, 512, 512, 0.25)
assert "torch" not in sys.modules
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_slide_of_40000_px_is_small_on_disk_and_in_memory(tmp_path):
    regions = [blob("tissue", 18000, 20000, 14000), blob("metastasis", 20000, 18000, 3000, seed=1)]
    path = tmp_path / "large.tif"
    make_slide(path, (40000, 40000), 0.25, regions, downsamples=(1, 4, 16))
    assert path.stat().st_size < 60e6
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.25)
        assert (slide.read(20300, 17800, 300, 200, 0.25) == render(regions, 20300, 17800, 300, 200)).all()
        assert (slide.read(4 * 3000, 4 * 2000, 99, 99, 1.0) == render(regions, 3000, 2000, 99, 99, 4)).all()
    done = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300
