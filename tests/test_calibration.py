"""The range of evidence that training leaves in the model folder: by hand, from labels alone, once."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from histoloc.calibration import calibrate, evenly, learn_range, share_shift
from histoloc.data.table import Sample, read_table
from histoloc.data.transforms import InputConfig
from histoloc.errors import InputError
from histoloc.maps import normalise_per_image
from histoloc.methods import Method, Setting
from histoloc.model_folder import LearnedRange, ModelConfig, load_model, read_model_config, save_model
from histoloc.prediction import Predictor, load
from histoloc.training import train
from histoloc.types import Batch, Output

WEIGHTS, CONFIG = "model/model.safetensors", "model/config.json"
CLASSES = ("normal", "tumour")


class Grey(Method):
    """Evidence of class c is channel c of the image in 0..255; the class is what the third channel says."""

    title, paper = "Grey", "none"
    maps = 2

    def forward(self, image: Tensor) -> Output:
        values = image * 255
        tumour = values[:, 2].mean(dim=(1, 2)) - 127
        return Output(torch.stack([-tumour, tumour], dim=1), values[:, : self.maps], {})

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return {}


def predictor(maps: int = 2, empty: str | None = None, learned: LearnedRange | None = None) -> Predictor:
    method = Grey(Setting(CLASSES), Grey.Options())
    method.maps = maps
    config = ModelConfig(
        "gap", CLASSES, input=InputConfig(0, crop=32, mean=(0, 0, 0), std=(1, 1, 1)), empty_class=empty, learned=learned
    )
    return Predictor(method, config, range=None if learned else "image")


@pytest.fixture
def sample(tmp_path):
    """Write an image of 32 x 32 px: rows of equal height take the values of the first two channels."""
    count = iter(range(1000))

    def make(label: str, first: list[int], second: list[int] | None = None, third: int = 0) -> Sample:
        path = tmp_path / f"{next(count)}.png"
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[..., 0] = np.repeat(first, 32 // len(first))[:, None]
        pixels[..., 1] = np.repeat(second or [0, 1], 32 // len(second or [0, 1]))[:, None]
        pixels[..., 2] = third
        Image.fromarray(pixels).save(path)
        return Sample(path.name, path, label, "train", mask=tmp_path / "absent.png")

    return make


def test_the_share_of_the_per_image_rule_is_kept_by_hand(sample):
    # Per image, rows at or above the middle of the image's own range: 1/2, 1/4 and 1/4 of the tumours; 1/8 of normal.
    samples = [
        sample("tumour", [0, 0], [10, 20, 30, 40]),
        sample("tumour", [0, 0], [0, 10, 20, 100]),
        sample("tumour", [0, 0], [50, 50, 50, 150]),
        sample("normal", [9, 9, 9, 9, 9, 9, 9, 90], [0, 250]),
    ]
    learned = learn_range(predictor(), samples)
    assert learned.images == 4
    assert learned.share == pytest.approx((1 / 8, 1 / 3))
    values = np.sort(np.repeat([10, 20, 30, 40, 0, 10, 20, 100, 50, 50, 50, 150], 8 * 32))
    assert learned.centre[1] == pytest.approx(50, abs=1), "the 2/3 quantile"
    q25, q75 = np.quantile(values, (0.25, 0.75))
    assert learned.slope[1] == pytest.approx(2 * math.log(3) / (q75 - q25), rel=0.05)


def test_one_map_for_all_classes_is_learned_from_all_images(sample):
    samples = [sample("normal", [0, 100]), sample("tumour", [50, 50, 50, 150])]
    learned = learn_range(predictor(maps=1), samples)
    assert learned.share == pytest.approx((0.375,))
    assert len(learned.centre) == 1
    assert 50 <= learned.centre[0] <= 100


def test_the_class_without_roi_has_no_say(sample):
    samples = [sample("normal", [0, 1], [0, 200]), sample("tumour", [0, 1], [50, 50, 50, 150])]
    with_roi = learn_range(predictor(empty="normal"), samples)
    assert with_roi.share[1] == pytest.approx(0.25)
    alone = learn_range(
        predictor(maps=1, empty="normal"), [sample("normal", [0, 200]), sample("tumour", [0, 0, 0, 90])]
    )
    assert alone.share == pytest.approx((0.25,))


def test_equal_evidence_over_much_of_the_images_is_no_roi(sample):
    # As the zeros of a ReLU: by the per-image rule 1/8 is ROI in one image and nothing in the others.
    samples = [sample("tumour", [0, 1], [0] * 7 + [9])] + [sample("tumour", [0, 1], [0, 0]) for _ in range(7)]
    learned = learn_range(predictor(), samples)
    assert 0 < learned.centre[1] < 9


def test_one_high_value_does_not_stretch_the_range(sample):
    # Robust: the old range ended at a median of maxima, which put the middle out of reach.
    plain = [sample("tumour", [0, 1], [10, 20, 30, 40]) for _ in range(9)]
    outlier = learn_range(predictor(), [*plain, sample("tumour", [0, 1], [10, 20, 30, 40, 40, 40, 40, 255])])
    assert outlier.centre[1] == pytest.approx(learn_range(predictor(), plain).centre[1], abs=11)


def test_the_map_by_hand(sample):
    learned = LearnedRange((0.0, 100.0), (1.0, 0.02), (0.5, 0.5), 1)
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16, :, 1], image[16:, :, 1], image[..., 2] = 100, 150, 255
    result = predictor(learned=learned).predict(image)
    assert (result.label, result.map_class, result.range) == ("tumour", "tumour", "learned")
    np.testing.assert_allclose(result.roi[:16], 0.5, atol=1e-6)
    np.testing.assert_allclose(result.roi[16:], 1 / (1 + math.exp(-1)), atol=1e-6)
    other = predictor(learned=learned).predict(image, map_class="normal")
    assert other.map_class == "normal"
    np.testing.assert_allclose(other.roi, 0.5, atol=1e-6)


def test_a_map_means_the_same_in_every_image(sample):
    # A normal image is not stretched to have ROI, and with a class without ROI it shows the other class's map.
    learned = LearnedRange((0.0, 100.0), (1.0, 0.05), (0.5, 0.5), 1)
    image = np.full((32, 32, 3), (200, 20, 60), np.uint8)
    image[0, 0, 1] = 30
    result = predictor(empty="normal", learned=learned).predict(image)
    assert (result.label, result.map_class) == ("normal", "tumour")
    assert result.roi.max() < 0.01
    stretched = dataclasses.replace(predictor(learned=learned).config, learned=None)
    method = Grey(Setting(CLASSES), Grey.Options())
    by_rule = Predictor(method, stretched, range="image").predict(image, map_class="tumour")
    assert by_rule.roi.max() == 1


def test_at_most_two_hundred_images_evenly_spaced(sample):
    one = sample("normal", [1, 2, 3, 4])
    assert learn_range(predictor(maps=1), [one] * 401).images == 200
    numbered = [Sample(str(i), Path("x.png"), "normal") for i in range(401)]
    chosen = [int(s.name) for s in evenly(numbered, 200)]
    assert chosen[0] == 0
    assert chosen[-1] == 400
    assert set(np.diff(chosen)) <= {2, 3}
    assert evenly(numbered[:7], 200) == numbered[:7]


# --- as a part of training ---


def test_training_leaves_the_range_of_the_selected_weights(gap_run, tiny_table):
    method, config = load_model(gap_run)
    assert config.learned is not None
    again = Predictor(method, dataclasses.replace(config, learned=None), range="image")
    assert config.learned == learn_range(again, read_table(tiny_table).split("train"))
    assert config.learned.images == 12
    assert len(config.learned.centre) == 2


def test_the_share_on_training_images_is_that_of_the_per_image_rule(gap_run, tiny_table):
    learned, by_rule = load(gap_run, "cpu"), load(gap_run, "cpu", range="image")
    samples = read_table(tiny_table).split("train")
    shares = {
        name: np.mean([p.predict(s.image, map_class=s.label).roi_fraction for s in samples])
        for name, p in (("learned", learned), ("image", by_rule))
    }
    assert shares["learned"] == pytest.approx(shares["image"], abs=0.05)


@pytest.mark.parametrize(("method", "options"), [("pn", {}), ("unet", {}), ("maxmin", {"normalisation": "none"})])
def test_evidence_that_is_a_probability_needs_no_range(tiny, gap_run, tmp_path, method, options, monkeypatch):
    monkeypatch.setattr("histoloc.calibration.learn_range", lambda *a, **k: pytest.fail("nothing is to be learned"))
    out = train(tiny(method, epochs=1, options=options), tmp_path / "run", progress=False)
    assert read_model_config(out).learned is None
    assert load(out, "cpu").calibration.range == "probability"
    with pytest.raises(InputError, match="--range probability: the evidence of GAP is no probability"):
        load(gap_run, "cpu", range="probability")


def test_no_mask_is_opened(tiny, tmp_path, monkeypatch):
    for name in ("read_mask", "read_annotations"):
        monkeypatch.setattr(f"histoloc.data.pixels.{name}", lambda path, **k: pytest.fail(f"{path} was opened"))
    out = train(tiny("gap", epochs=1), tmp_path / "run", progress=False)
    assert read_model_config(out).learned is not None


def test_it_is_not_learned_again_but_by_a_new_model(tiny, tmp_path, monkeypatch):
    options = {"selection": "last"}
    out = train(tiny("gap", epochs=1, **options), tmp_path / "run", progress=False)
    first = read_model_config(out).learned
    with monkeypatch.context() as patch:
        patch.setattr("histoloc.calibration.learn_range", lambda *a, **k: pytest.fail("it was learned before"))
        train(tiny("gap", epochs=1, **options), out, resume=True, progress=False)
    train(tiny("gap", epochs=2, **options), out, resume=True, progress=False)
    whole = train(tiny("gap", epochs=2, **options), tmp_path / "whole", progress=False)
    assert read_model_config(out).learned == read_model_config(whole).learned != first


def test_killed_before_it_was_written_it_is_learned_when_resumed(tiny, gap_run, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("histoloc.calibration.learn_range", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny("gap"), out, progress=False)
    assert read_model_config(out).learned is None
    with pytest.raises(InputError, match=r"no learned range.*--resume.*--range image"):
        load(out, "cpu").predict(np.zeros((64, 64, 3), np.uint8))
    train(tiny("gap"), out, resume=True, progress=False)
    assert read_model_config(out).learned == read_model_config(gap_run).learned
    assert (out / WEIGHTS).read_bytes() == (gap_run / WEIGHTS).read_bytes()


def test_a_threshold_is_chosen_on_the_map_that_it_cuts(tiny, tmp_path):
    out = train(tiny("gap", epochs=1, threshold="valid"), tmp_path / "run", progress=False)
    config = read_model_config(out)
    assert (config.threshold.rule, config.threshold.range) == ("valid", "learned")
    image = np.zeros((64, 64, 3), np.uint8)
    assert load(out, "cpu").predict(image).threshold == config.threshold.value
    with pytest.raises(InputError, match=r"chosen on maps of --range learned .* --range image; give --threshold"):
        load(out, "cpu", range="image").predict(image)
    assert load(out, "cpu", range="image").predict(image, threshold=0.5).range == "image"


# --- in the model folder ---


@pytest.mark.parametrize(
    ("centre", "slope"),
    [((), ()), ((0.0,), (1.0, 2.0)), ((1.0,), (0.0,)), ((0.0, 2.0), (1.0, -1.0)), ((math.nan,), (1.0,))],
)
def test_a_range_that_is_none_is_refused(centre, slope):
    with pytest.raises(InputError, match=r"centre|slope"):
        LearnedRange(centre, slope, (0.5,) * len(centre), 1)


def test_it_is_read_back_and_folders_without_it_open(gap_run, tmp_path):
    method, config = load_model(gap_run)
    save_model(tmp_path / "again", method.state_dict(), config)
    assert read_model_config(tmp_path / "again").learned == config.learned
    values = json.loads((tmp_path / "again" / "config.json").read_text())
    values["learned"]["slope"] = [-1]
    (tmp_path / "again" / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"config\.json: learned"):
        load_model(tmp_path / "again")


def test_an_older_model_opens_and_can_be_given_its_range(gap_run, tiny_table, tmp_path):
    method, config = load_model(gap_run)
    save_model(tmp_path / "old", method.state_dict(), config)
    path = tmp_path / "old" / "config.json"
    values = json.loads(path.read_text())
    # As histoloc 0.1 wrote it: µm/px before images were resized.
    for name in ("learned", "range", "extent", "empty_class"):
        del values[name]
    del values["input"]["mpp"]
    del values["threshold"]["range"]
    values |= {"format": 1, "evidence_range": {"low": [0.0, 0.0], "high": [1.0, 1.0], "images": 12}, "mpp": 0.5}
    values |= {"shorter_side": 128, "options": {"empty_class": "benign"}}
    path.write_text(json.dumps(values))
    old = read_model_config(tmp_path / "old")
    assert (old.mpp, old.empty_class, old.learned) == (1.0, "benign", None)
    assert load(tmp_path / "old", "cpu", range="image").predict(np.zeros((64, 64, 3), np.uint8)).range == "image"
    calibrate(tmp_path / "old", read_table(tiny_table))
    assert read_model_config(tmp_path / "old").learned is not None


def test_per_image_map_beside_the_learned_one(gap_run):
    predictor = load(gap_run, "cpu")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    both = predictor.localize(predictor.infer(image), per_image=True)
    assert both.image_roi is not None
    np.testing.assert_array_equal(both.image_roi, load(gap_run, "cpu", range="image").predict(image).roi)
    output = predictor.output_of(image)
    own = output.evidence[:, int(output.logits.argmax())][:, None]
    assert float(normalise_per_image(own).max()) == 1


def test_share_shift_keeps_the_share_of_all_images_together(sample, monkeypatch):
    """Before: 3 of 8 rows of one image and 1 of 8 of the other are ROI, together a quarter."""
    before, after = predictor(maps=1), predictor(maps=1)
    values = {"a": [10, 10, 10, -5, -5, -5, -5, -5], "b": [1, -1, -1, -1, -1, -1, -1, -1]}
    lower = {"a": [-2, -3, -4, -9, -9, -9, -9, -9], "b": [-5, -9, -9, -9, -9, -9, -9, -9]}
    images = [sample("normal", [0]), sample("normal", [255])]

    def stub(model: Predictor, rows: dict[str, list[int]]) -> None:
        def output_of(pixels: np.ndarray, mpp: float | None = None) -> Output:
            own = rows["a" if pixels[0, 0, 0] == 0 else "b"]
            return Output(torch.zeros(1, 2), torch.tensor(own).float().repeat_interleave(200).view(1, 1, -1, 1), {})

        monkeypatch.setattr(model, "output_of", output_of)

    stub(before, values)
    stub(after, lower)
    assert share_shift(before, before, images) == pytest.approx(0, abs=1)  # between -1 and 1 any cut does
    shift = share_shift(before, after, images)
    assert 5 <= shift < 9, "the lowest of the four rows is -5, the others are -9"
