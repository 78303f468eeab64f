"""At which µm/px a network looks: from its training images, applied to every other one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloc.cli.main import main
from histoloc.data.table import read_table
from histoloc.data.transforms import InputConfig
from histoloc.errors import InputError
from histoloc.model_folder import ModelConfig
from histoloc.scale import tile_side, training_scale, view

CLASSES = ("a", "b")


@pytest.fixture
def table(tmp_path):
    """Write a table of images of (width, height, µm/px or None)."""

    def make(*images: tuple[int, int, float | None]) -> Path:
        rows = []
        for number, (width, height, mpp) in enumerate(images):
            Image.new("RGB", (width, height), (number, 99, 99)).save(tmp_path / f"{number}.png")
            rows.append((f"{number}.png", CLASSES[number % 2], "", "train", "", "" if mpp is None else mpp))
        frame = pd.DataFrame(rows, columns=["image", "label", "mask", "split", "group", "mpp"])
        frame.to_csv(tmp_path / "t.csv", index=False)
        return tmp_path / "t.csv"

    return make


def scale(path: Path, **options) -> ModelConfig:
    return decide(path, **options)[0]


def decide(path: Path, **options) -> tuple[ModelConfig, tuple[str, ...]]:
    return training_scale(config(input=InputConfig(**{"small_side": 0, "crop": 32, **options})), read_table(path))


def config(**changes) -> ModelConfig:
    return ModelConfig("gap", CLASSES, **{"input": InputConfig(0, crop=32), **changes})


def test_the_median_over_images_not_over_distinct_values(table):
    made, notes = decide(table(*[(64, 64, 0.25)] * 11, (64, 64, 1.0)))
    assert made.mpp == 0.25
    assert made.input.mpp == 0.25, "they differ by more than 1.25, so all are resampled"
    assert "0.25 to 1 µm/px: all are resampled to 0.25 µm/px" in notes[0]
    assert made.extent == (256, 256), "the coarse one becomes four times as large"


def test_the_scale_is_that_after_resizing(table):
    made, notes = decide(table((96, 64, 0.5), (96, 64, 0.5)), small_side=32)
    assert (made.mpp, made.extent, made.shorter_side, notes) == (1.0, (32, 48), 64, ())
    assert made.input.mpp is None


def test_images_of_one_scale_and_many_sizes_are_not_squeezed_to_one_side(table):
    made = scale(table((64, 64, 0.5), (64, 64, 0.5), (256, 256, 0.5)), small_side=64)
    assert (made.mpp, made.input.mpp, made.input.small_side) == (0.5, 0.5, 0)
    assert made.extent == (256, 256)


@pytest.mark.parametrize(
    ("other", "resampled"), [(0.6, False), (0.625, False), (0.63, True), (0.4, False), (0.39, True)]
)
def test_scales_within_a_quarter_are_alike(table, other, resampled):
    made = scale(table((64, 64, 0.5), (64, 64, 0.5), (64, 64, other)))
    assert made.mpp == 0.5
    assert (made.input.mpp is not None) == resampled


def test_some_images_without_their_scale_are_refused_where_the_others_differ(table):
    with pytest.raises(InputError, match=r"0\.25 to 1 µm/px, and 1 of 3 training images do not say their scale; fill"):
        scale(table((64, 64, 0.25), (64, 64, 1.0), (64, 64, None)))
    with pytest.raises(InputError, match=r"--mpp 1 was asked for, and 1 of 2"):
        scale(table((64, 64, 1.0), (64, 64, None)), mpp=1.0)
    assert scale(table((64, 64, 1.0), (64, 64, 1.0), (64, 64, None))).mpp == 1.0
    assert scale(table((64, 64, None), (90, 90, None))).mpp is None


def test_a_file_may_say_its_own_scale(table, tmp_path):
    path = table((64, 64, None), (64, 64, None))
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 9, 9)).save(tmp_path / f"{number}.png", dpi=(25400 / 0.5, 25400 / 0.5))
    assert scale(path).mpp == pytest.approx(0.5, rel=1e-3)
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 9, 9)).save(tmp_path / f"{number}.png", dpi=(72, 72))
    assert scale(path).mpp is None, "72 dpi is what programs write for screens"


# --- other images ---


def test_a_large_image_of_known_scale_is_brought_to_the_models_and_tiled():
    trained = config(mpp=0.5, extent=(64, 64), shorter_side=64, input=InputConfig(64, crop=64))
    # Training images of 64 px at 0.5 µm/px; an image of 640 px was seen at 5 µm/px, without a note.
    large = view(trained, (640, 640), 0.5)
    assert (large.size, large.tiled, large.name, large.notes) == ((640, 640), True, "0.5 µm/px", ())
    assert view(trained, (640, 640), 0.05).size == (64, 64)
    assert not view(trained, (640, 640), 0.05).tiled
    unknown = view(trained, (640, 640), None)
    assert (unknown.size, unknown.tiled) == ((64, 64), False)
    assert "scale is unknown, and its shorter side of 640 px is 10 times that" in unknown.notes[0]
    assert view(trained, (70, 80), None).notes == ()


def test_the_published_rule_is_kept_where_it_agrees_with_the_scale():
    glas = config(mpp=1.5, extent=(216, 321), shorter_side=522, input=InputConfig(216, crop=208))
    for size in ((522, 775), (433, 574)):  # GlaS has both at 0.62 µm/px
        seen = view(glas, size, 0.62)
        assert (min(seen.size), seen.name, seen.tiled) == (216, "shorter side to 216 px", False)
    other = view(glas, (2967, 2220), 0.499)
    assert other.size == (round(2967 * 0.499 / 1.5), round(2220 * 0.499 / 1.5))
    assert (other.tiled, other.name) == (True, "1.5 µm/px")
    small = view(glas, (100, 100), 1.5)
    assert (small.size, small.tiled) == ((100, 100), False), "not enlarged to 216 px"


def test_an_image_of_unknown_scale_is_taken_as_one_of_the_models_where_it_has_one():
    resampled = config(mpp=0.5, extent=(64, 96), shorter_side=64, input=InputConfig(0, mpp=0.5, crop=32))
    for size, tiled in (((33, 47), False), ((64, 96), False), ((640, 901), True)):
        seen = view(resampled, size, None)
        assert (seen.size, seen.tiled, seen.name) == (size, tiled, "taken as 0.5 µm/px")
        assert seen.notes == (
            "the image's scale is unknown: it is taken as 0.5 µm/px, that of the model; where it is another, give it "
            "by --mpp, or by the column mpp of a table",
        )
    assert view(resampled, (33, 47), 1.0).size == (66, 94)
    assert view(resampled, (33, 47), 0.49).size == (32, 46)


def test_an_image_that_is_coarser_than_the_model_is_enlarged_aloud():
    seen = view(config(mpp=0.5, extent=(512, 512), shorter_side=512), (100, 120), 2.0)
    assert seen.size == (400, 480)
    assert "coarser than the 0.5 at which the model looks" in seen.notes[0]


@pytest.mark.parametrize(
    ("size", "tiled"), [((80, 120), False), ((81, 120), True), ((80, 121), True), ((121, 80), True), ((20, 20), False)]
)
def test_larger_than_training_by_a_quarter_on_either_side(size, tiled):
    assert view(config(mpp=1.0, extent=(64, 96)), size, 1.0).tiled == tiled


@pytest.mark.parametrize(("extent", "side"), [((216, 321), 192), ((64, 64), 64), ((31, 90), 32), ((3000, 4000), 512)])
def test_tiles_are_as_large_as_training_images(extent, side):
    assert tile_side(config(extent=extent)) == side
    assert tile_side(config()) == 512


def test_a_ruler_is_as_long_at_every_scale(tmp_path, stain_run):
    """A dark bar of 40 x 12 µm, drawn at three scales, covers the same area in mm²."""
    areas = {}
    for mpp in (0.5, 1.0, 1.5):
        side = round(240 / mpp)
        pixels = np.full((side, side, 3), (230, 170, 200), np.uint8)
        pixels[round(96 / mpp) : round(144 / mpp), round(60 / mpp) : round(180 / mpp)] = (90, 60, 150)
        Image.fromarray(pixels).save(tmp_path / f"{mpp}.png")
        main(["predict", str(stain_run), f"{tmp_path}/{mpp}.png", "--out", str(tmp_path / "out"), "--mpp", str(mpp),
              "--range", "image", "--device", "cpu", "--no-tissue"])  # fmt: skip
        row = pd.read_csv(tmp_path / "out" / "predictions.csv").iloc[0]
        areas[mpp] = float(row["roi_mm2"])
        assert row["scale"].startswith("1 µm/px")
    assert areas[1.0] == pytest.approx(0.12 * 0.048, rel=0.1)
    for mpp in (0.5, 1.5):
        assert areas[mpp] == pytest.approx(areas[1.0], rel=0.05)


@pytest.fixture(scope="module")
def stain_run(tiny, tmp_path_factory):
    from histoloc.training import train

    made = tiny("stain", options={"sigma": 2.0}, input={"small_side": 0, "crop": 64})
    return train(made, tmp_path_factory.mktemp("scale") / "stain", progress=False)
