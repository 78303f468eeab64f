"""Image in, Localization out: any size, native resolution, thresholds, areas, and the files that are written."""

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import histoloc
from histoloc.data.images import read_image, read_map, read_mask
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.localization_files import predict as predict_files
from histoloc.maps import otsu_threshold, place, resize
from histoloc.prediction import load


@pytest.fixture(scope="module")
def predictor(maxmin_run):
    return load(maxmin_run, "cpu")


@pytest.fixture
def images(tiny_table) -> list[Path]:
    return [s.image for s in read_table(tiny_table).split("test")]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (33, 257), (301, 47), (500, 640)])
def test_any_size_and_aspect_at_native_resolution(predictor, size):
    result = predictor.predict(picture(*size))
    assert result.roi.shape == result.mask.shape == size
    assert result.roi.dtype == np.float32
    assert result.mask.dtype == np.bool_
    assert np.isfinite(result.roi).all()
    assert result.roi.min() >= 0
    assert result.roi.max() <= 1
    assert result.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert result.label == result.classes[result.probabilities.argmax()]


def test_an_image_alone_and_after_others_gets_the_same_bits(predictor, images):
    first = predictor.predict(images[0])
    predictor.predict(picture(100, 50))
    np.testing.assert_array_equal(predictor.predict(images[0]).roi, first.roi)


def test_the_threshold_of_the_model_and_of_the_caller(predictor, images):
    result = predictor.predict(images[0])
    assert result.threshold == 0.5
    np.testing.assert_array_equal(result.mask, result.roi >= 0.5)
    for t in (0.0, 0.3, 1.0):
        other = predictor.predict(images[0], threshold=t)
        assert other.threshold == t
        np.testing.assert_array_equal(other.mask, result.roi >= t)
    assert predictor.predict(images[0], threshold=0).roi_fraction == 1.0


@pytest.mark.parametrize("threshold", [-0.01, 1.01, float("nan")])
def test_a_threshold_outside_the_map_is_refused(predictor, images, threshold):
    with pytest.raises(InputError, match="--threshold"):
        predictor.predict(images[0], threshold=threshold)


def test_otsu_cuts_every_image_at_its_own_value(tiny, images, tmp_path):
    from histoloc.training import train

    predictor = load(train(tiny("gap", epochs=1, threshold="otsu"), tmp_path / "run", progress=False), "cpu")
    items = [predictor.predict(image) for image in images]
    assert [f.threshold for f in items] == [otsu_threshold(f.roi) for f in items]
    assert len({f.threshold for f in items}) > 1
    assert predictor.predict(images[0], threshold=0.25).threshold == 0.25


def test_area_in_square_millimetres_is_exact(allones_run):
    result = load(allones_run, "cpu").predict(picture(200, 500), mpp=0.5)
    assert result.roi_mm2 == pytest.approx(0.1 * 0.25, rel=1e-12), "200 x 500 px of 0.5 µm are 0.1 mm x 0.25 mm"
    assert load(allones_run, "cpu").predict(picture(200, 500)).roi_mm2 is None


def test_a_method_without_classifier_names_no_class(allones_run, images):
    result = load(allones_run, "cpu").predict(images[0])
    assert result.probabilities is None
    assert result.label is None
    assert result.mask.all()


@pytest.mark.parametrize(
    "wrong",
    [picture(64, 64)[..., 0], picture(64, 64) / 255, picture(31, 64), np.zeros((64, 64, 4), np.uint8), [[1]]],
)
def test_arrays_that_are_no_rgb_image_are_refused(predictor, wrong):
    with pytest.raises(InputError):
        predictor.predict(wrong)


def test_files_and_folders_are_localized_into_files(predictor, maxmin_run, images, tmp_path):
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    Image.open(images[0]).save(tmp_path / "in" / "one.png")
    Image.open(images[1]).save(tmp_path / "in" / "deeper" / "two.TIF", format="TIFF")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    out = tmp_path / "out"
    items = [tmp_path / "in", images[2]]
    rows = predict_files(maxmin_run, items, out, mpp=1.0, device="cpu", progress=False)
    names = ["deeper/two", "one", images[2].stem]
    expected = {f"{n}_{kind}.png" for n in names for kind in ("mask", "map", "overlay")} | {"predictions.csv"}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.*")} == expected
    assert [Path(image).stem for image in rows["image"]] == ["two", *names[1:]]
    written = pd.read_csv(out / "predictions.csv")
    assert list(written) == [
        "image", "class", "prob_benign", "prob_malignant", "map_class", "roi_fraction", "roi_mm2", "threshold", "range",
        "mpp", "scale", "error",
    ]  # fmt: skip
    assert written["mpp"].tolist() == [1.0] * 3
    for row, stem in zip(written.itertuples(), names, strict=True):
        result = predictor.predict(cast(str, row.image), mpp=1.0)
        assert row[2] == result.label
        np.testing.assert_allclose(row[3:5], result.probabilities, atol=1e-6)
        assert (row.map_class, row.range, row.scale) == (result.label, "learned", "shorter side to 64 px")
        assert row.roi_mm2 == pytest.approx(result.roi_fraction * 96 * 64 / 1e6, abs=1e-6)
        np.testing.assert_array_equal(read_mask(out / f"{stem}_mask.png"), result.mask)
        np.testing.assert_allclose(read_map(out / f"{stem}_map.png"), result.roi, atol=0.5 / 255 + 1e-6)
        assert read_image(out / f"{stem}_overlay.png").shape == (64, 96, 3)


def test_without_mpp_there_is_no_area(maxmin_run, images, tmp_path, capsys):
    predict_files(maxmin_run, images[:1], tmp_path / "out", device="cpu", progress=False)
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["roi_mm2"].isna().all()
    assert "note" not in capsys.readouterr().out


def test_another_scale_than_in_training_is_brought_to_it(maxmin_run, images, tmp_path, capsys):
    # Trained at 1 µm/px on 64 x 96 px. Twice as fine, the image has 32 x 48 px of that scale.
    for mpp, scale in ((1.0, "shorter side to 64 px"), (1.2, "shorter side to 64 px"), (0.5, "1 µm/px")):
        out = tmp_path / f"{mpp}"
        predict_files(maxmin_run, images[:1], out, mpp=mpp, device="cpu", progress=False)
        assert pd.read_csv(out / "predictions.csv")["scale"].tolist() == [scale]
        assert read_mask(out / f"{images[0].stem}_mask.png").shape == (64, 96)
    assert "note" not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"96x64 pixels is 24x16 at the scale of the model \(1 µm/px\)"):
        predict_files(maxmin_run, images[:1], tmp_path / "tiny", mpp=0.25, device="cpu", progress=False)


def test_a_size_that_training_did_not_have_is_noted_where_the_scale_is_unknown(maxmin_run, tmp_path, capsys):
    Image.fromarray(picture(200, 300)).save(tmp_path / "large.png")
    predict_files(maxmin_run, [tmp_path / "large.png"], tmp_path / "out", device="cpu", progress=False)
    assert (
        "note: large.png: the image's scale is unknown, and its shorter side of 200 px is 3.1"
        in capsys.readouterr().out
    )


def test_a_model_folder_can_be_moved_and_opened_by_itself(maxmin_run, predictor, images, tmp_path):
    import shutil

    shutil.copytree(maxmin_run / "model", tmp_path / "elsewhere")
    moved = histoloc.load(tmp_path / "elsewhere", "cpu").predict(str(images[0]))
    np.testing.assert_array_equal(moved.roi, predictor.predict(images[0]).roi)


def test_argmax_mask_of_two_classes_is_where_the_margin_is_positive(gap_run, tiny_table):
    predictor = load(gap_run)
    image = read_image(next((tiny_table.parent / "images").glob("*.png")))
    result = predictor.predict(image)
    output = predictor.output_of(image)
    own = int(output.logits.argmax())
    margin = output.evidence[:, own] - output.evidence[:, 1 - own]
    resized = resize(place(margin[:, None], predictor.stride, (64, 96)), image.shape[:2])[0, 0]
    assert result.argmax_mask is not None
    clear = resized.abs() > 1e-5
    assert clear.any()
    assert (torch.from_numpy(result.argmax_mask) == (resized > 0))[clear].all()
