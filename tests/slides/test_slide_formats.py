"""What a file says of itself is read: its turn, its fourth sample, its scale, its pages, its series."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from written_slides import CM, MPP, OME, SIZE, picture, write_dicom, write_scn, write_tiff

from histoloc.cli.main import main
from histoloc.data.images import read_image
from histoloc.datasets.slide_list import read_slides
from histoloc.errors import InputError
from histoloc.slide_cohort import _items
from histoloc.slides.dicom import series_of
from histoloc.slides.reader import open_slide

STORAGE = [{}, {"tile": None, "rowsperstrip": 50}, {"planarconfig": "separate"}, {"compression": None}]


def pixels_of(path, **options):
    with open_slide(path, **options) as slide:
        return slide.read(0, 0, *slide.size, slide.mpp)


@pytest.mark.parametrize("storage", STORAGE, ids=["tiles", "strips", "planes", "plain"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_read_as_it_is_shown(tmp_path, orientation, storage):
    path, tag = tmp_path / "a.tif", [(274, "H", 1, orientation, True)]
    stored = np.moveaxis(picture(), 2, 0) if "planarconfig" in storage else picture()
    write_tiff(path, stored, extratags=tag, **storage)
    with Image.open(path) as image:
        shown = np.asarray(image.convert("RGB"))  # Pillow turns TIFF
    assert (pixels_of(path) == shown).all()
    assert (read_image(path) == shown).all(), "as an image it is the same"
    with open_slide(path) as slide:
        assert slide.size == (SIZE if orientation < 5 else SIZE[::-1])
        for x, y, width, height in [(0, 0, 5, 9), (120, 131, 140, 20), (300, 400, 200, 100)]:
            assert (slide.read(x, y, width, height, MPP) == shown[y : y + height, x : x + width]).all()


def test_levels_of_a_turned_tiff_are_turned(tmp_path):
    tag = {"extratags": [(274, "H", 1, 6, True)], "photometric": "rgb", "tile": (128, 128), "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for factor in (1, 4):
            file.write(picture()[::factor, ::factor], subfiletype=int(factor > 1), **tag, **CM)
    with open_slide(tmp_path / "a.tif") as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(512, 768), (128, 192)]
        assert (slide.read(0, 0, 128, 192, 4 * MPP) == np.rot90(picture()[::4, ::4], -1)).all()


def test_a_turned_slide_of_a_vendor_is_refused(tmp_path):
    about = "Aperio Image Library v1\n768x512 (128x128) |MPP = 0.5|AppMag = 20"
    turned = {"description": about, "compression": None}
    with open_slide(write_tiff(tmp_path / "a.svs", **turned)) as slide:
        assert (slide.format, slide.mpp) == ("aperio", 0.5)
    path = write_tiff(tmp_path / "b.svs", extratags=[(274, "H", 1, 3, True)], **turned)
    with pytest.raises(
        InputError, match=r"b\.svs: has an orientation tag, which .* aperio slides do not; save it upright"
    ):
        open_slide(path)


@pytest.mark.parametrize("storage", STORAGE[:3], ids=["tiles", "strips", "planes"])
@pytest.mark.parametrize("fill", [0, 128, 255])
def test_a_fourth_sample_that_is_no_alpha_changes_nothing(tmp_path, storage, fill):
    stored = np.dstack([picture(), np.full(SIZE[::-1], fill, np.uint8)])
    stored = np.moveaxis(stored, 2, 0) if "planarconfig" in storage else stored
    path = write_tiff(tmp_path / "a.tif", stored, extrasamples=["unspecified"], **storage)
    assert (pixels_of(path) == picture()).all()


@pytest.mark.parametrize("tile", [(128, 128), None])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_alpha_is_put_on_white(tmp_path, kind, tile):
    alpha = np.zeros((*SIZE[::-1], 1), np.uint8)
    alpha[:, :300], alpha[:, 300:500] = 255, 128
    share = alpha / 255
    colour = np.rint(picture() * share).astype(np.uint8) if kind == "assocalpha" else picture()
    path = write_tiff(tmp_path / "a.tif", np.dstack([colour, alpha]), extrasamples=[kind], tile=tile)
    assert abs(pixels_of(path) - (picture() * share + 255 * (1 - share))).max() <= 2


@pytest.mark.parametrize("storage", [*STORAGE, {"subifds": 1}], ids=["tiles", "strips", "planes", "plain", "subifds"])
def test_the_scale_of_ome_is_read(tmp_path, storage):
    path, axes = tmp_path / "a.ome.tif", "CYX" if "planarconfig" in storage else "YXS"
    stored = np.moveaxis(picture(), 2, 0) if axes == "CYX" else picture()
    with tifffile.TiffWriter(path, ome=True) as file:
        layout = {"photometric": "rgb", "tile": (128, 128)} | storage
        file.write(stored, metadata=OME | {"axes": axes}, **layout)
        if "subifds" in storage:
            file.write(picture()[::2, ::2], photometric="rgb", tile=(128, 128), subfiletype=1)
    with open_slide(path) as slide:
        assert (slide.mpp, slide.notes, slide.user_mpp) == (MPP, (), False)
        assert [level.downsample for level in slide.levels] == ([1, 2] if "subifds" in storage else [1])
        assert (slide.read(0, 0, *SIZE, MPP) == picture()).all()


@pytest.mark.parametrize("tile", [(128, 128), None])
def test_ome_wins_over_resolution_tags_and_a_contradiction_is_said(tmp_path, tile, capsys):
    def written(name, per_cm, unit="CENTIMETER"):
        path = tmp_path / f"{name}.ome.tif"
        layout = {"photometric": "rgb", "tile": tile, "resolution": (per_cm, per_cm), "resolutionunit": unit}
        tifffile.imwrite(path, picture(), metadata=OME, **layout)
        return path

    for path in (written("same", 20000), written("screen", 72, "INCH")):  # 72 dpi is what programs write by default
        with open_slide(path) as slide:
            assert (slide.mpp, slide.notes) == (MPP, ())
    main(["slides", "info", str(written("other", 40000))])
    output = capsys.readouterr()
    assert "mpp          0.5" in output.out
    assert "other.ome.tif: says 0.5 µm/px, but 0.25 µm/px in its resolution tags; its own 0.5 are used" in output.err


def test_pages_that_are_no_level_are_not_read(tmp_path):
    red = np.full((256, 384, 3), (255, 0, 0), np.uint8)  # half the size: what a level would have
    layout = {"photometric": "rgb", "tile": (128, 128), "metadata": None}
    for name, about in (("macro", {"subfiletype": 9}), ("label", {"subfiletype": 1, "description": "Label 387x463"})):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            file.write(picture(), **layout, **CM)
            file.write(red, **layout, **about, **CM)
        with open_slide(tmp_path / f"{name}.tif") as slide:
            assert len(slide.levels) == 1, name
            assert not (slide.thumbnail(mpp=1.0) == (255, 0, 0)).all(axis=-1).any(), name
    with tifffile.TiffWriter(tmp_path / "images.ome.tif", ome=True) as file:  # OME: a second image
        file.write(picture(), photometric="rgb", tile=(128, 128), metadata=OME)
        file.write(red, photometric="rgb", tile=(128, 128), metadata={"Name": "label image"})
    with open_slide(tmp_path / "images.ome.tif") as slide:
        assert len(slide.levels) == 1


def test_what_has_two_meanings_is_refused(tmp_path):
    stack = np.stack([picture(), picture(False)])
    layout = {"photometric": "rgb", "tile": (128, 128)}
    tifffile.imwrite(tmp_path / "z.ome.tif", stack, metadata=OME | {"axes": "ZYXS"}, **layout)
    with pytest.raises(InputError, match=r"z\.ome\.tif: holds several pages of one size; export the one you mean"):
        open_slide(tmp_path / "z.ome.tif")
    deep = np.stack([picture()[..., 0].astype(np.uint16)] * 4)
    tifffile.imwrite(tmp_path / "deep.tif", deep, tile=(128, 128), photometric="minisblack", **CM)
    with pytest.raises(InputError, match=r"deep\.tif: has 16 bits per colour"):
        open_slide(tmp_path / "deep.tif")
    tifffile.imwrite(tmp_path / "grey.tif", picture()[..., 0], tile=(128, 128), photometric="minisblack", **CM)
    with pytest.raises(InputError, match=r"grey\.tif: is no colour picture in RGB"):
        open_slide(tmp_path / "grey.tif")


def test_the_largest_page_is_the_slide(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for factor in (4, 1, 2):
            file.write(picture()[::factor, ::factor], photometric="rgb", tile=(128, 128), metadata=None, **CM)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.size == SIZE
        assert (slide.read(0, 0, *SIZE, MPP) == picture()).all()


def test_a_dicom_series_is_one_slide(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    files = write_dicom(tmp_path / "one", names=("b", "c", "d"), label="a")
    other = write_dicom(tmp_path / "one", names=("x", "y"))
    for file in files:
        series = pydicom.dcmread(file, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID
        assert series_of(file) == (file.parent.resolve(), str(series))
        with open_slide(file) as slide:
            assert (slide.size, slide.mpp) == (SIZE, MPP)
            assert [level.downsample for level in slide.levels] == [1, 2, 4]
            assert abs(slide.read(0, 0, *SIZE, MPP).astype(int) - picture()).mean() < 5
    for given in ([tmp_path / "one"], [*files, *other], [*other[::-1], *files[::-1]]):
        assert len(_items(given, None)) == 2
    assert set(_items([tmp_path / "one"], None)) == {"a", "x"}
    before = _items([tmp_path / "one"], None)["a"]["mark"]
    files[2].write_bytes(files[2].read_bytes() + bytes(2))
    assert _items([tmp_path / "one"], None)["a"]["mark"] != before, "a level that was exchanged is another slide"
    assert series_of(write_tiff(tmp_path / "a.tif")) is None


def test_two_files_of_a_series_are_no_two_rows_of_a_list(tmp_path):
    pytest.importorskip("pydicom")
    write_dicom(tmp_path)
    (tmp_path / "list.csv").write_text("slide,label\nb.dcm,x\nc.dcm,y\n")
    with pytest.raises(InputError, match=r"line 3 \(c\.dcm\): is the same slide as line 2"):
        read_slides(tmp_path / "list.csv")


def test_scn_has_its_bounds(tmp_path):
    path = write_scn(tmp_path / "a.scn")
    with open_slide(path) as whole, open_slide(path, origin="bounds") as part:
        assert (whole.size, part.size, part.bounds) == ((1536, 1280), SIZE, (256, 640))
        assert (part.read(0, 0, *SIZE, MPP) == picture()).all()
        assert (whole.read(256, 640, *SIZE, MPP) == picture()).all()
        assert [(level.width, level.height) for level in part.levels] == [SIZE, (192, 128)]
        assert (part.read(128, 64, 32, 16, 4 * MPP) == picture()[64:128:4, 128:256:4]).all()
        for mpp in (0.7, 3.0):
            assert part.size_at(mpp) == (round(768 * 0.5 / mpp), round(512 * 0.5 / mpp))
            read = part.read(100, 50, 60, 40, mpp)
            assert (read == whole.read(356, 690, 60, 40, mpp)).all()
