"""The range of evidence that training leaves in the model folder: by hand, from labels alone, once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from histoloc.checkpoint import EvidenceRange, load_model, read_model_config, save_model
from histoloc.config import run_config
from histoloc.data.table import Sample, read_table
from histoloc.errors import InputError
from histoloc.evidence import evenly, keep_range, learn_range
from histoloc.predict import Predictor, load
from histoloc.train import train

WEIGHTS, CONFIG = "model/model.safetensors", "model/config.json"
CLASSES = ("normal", "tumour")


class Grey:
    """Evidence of class c is channel c of the image, whatever else it shows."""

    def __init__(self, maps: int) -> None:
        self.maps, self.seen = maps, 0

    def evidence(self, tiles, /):
        self.seen += len(tiles)
        maps = np.stack([tile[..., : self.maps] for tile in tiles]).transpose(0, 3, 1, 2)
        return np.full((len(tiles), 2), 0.5, np.float32), maps.astype(np.float32)


@pytest.fixture
def sample(tmp_path):
    """Write an image of four fields from the values of its first channel, and of its second one."""
    count = iter(range(1000))

    def make(label: str, first: list[int], second: list[int] | None = None) -> Sample:
        path = tmp_path / f"{next(count)}.png"
        pixels = np.zeros((2, 2, 3), np.uint8)
        pixels[..., 0] = np.reshape(first, (2, 2))
        pixels[..., 1] = np.reshape(second or [0] * 4, (2, 2))
        Image.fromarray(pixels.repeat(16, axis=0).repeat(16, axis=1)).save(path)
        return Sample(path.name, path, label, "train", mask=tmp_path / "absent.png")

    return make


def test_a_map_per_class_by_hand(sample):
    samples = [
        sample("normal", [90, 20, 20, 20], [4, 4, 4, 4]),
        sample("normal", [70, 10, 10, 10], [0, 0, 0, 8]),
        sample("normal", [50, 10, 10, 10], [9, 9, 9, 21]),
        sample("tumour", [10, 10, 10, 10], [100, 1, 1, 1]),
        sample("tumour", [0, 0, 40, 40], [200, 1, 1, 1]),
    ]
    # normal: maxima of its images 90, 70, 50; means of the tumour's 10, 20. tumour: 100, 200; means 4, 2, 12.
    found = learn_range(Grey(2), samples, CLASSES)
    assert found == EvidenceRange((15.0, 4.0), (70.0, 150.0), 5)


def test_one_map_for_all_classes_by_hand(sample):
    samples = [
        sample("normal", [3, 5, 7, 9]),
        sample("tumour", [1, 5, 7, 200]),
        sample("tumour", [2, 5, 7, 100]),
        sample("tumour", [8, 8, 8, 8]),
    ]
    assert learn_range(Grey(1), samples, CLASSES) == EvidenceRange((2.5,), (54.5,), 4)


@pytest.mark.parametrize(
    ("pixels", "labels", "reason"),
    [
        ([[5] * 4, [5] * 4], ["normal", "tumour"], "images of normal, tumour show no more evidence of it than others"),
        ([[5, 9, 9, 9], [9, 8, 7, 6]], ["tumour", "tumour"], "images of normal or of any other class are absent"),
        ([], [], "there are no training images"),
    ],
)
def test_no_range_is_said_aloud(sample, capsys, pixels, labels, reason):
    samples = [sample(label, values, values) for label, values in zip(labels, pixels, strict=True)]
    assert learn_range(Grey(2), samples, CLASSES) is None
    assert capsys.readouterr().err.startswith(f"note: no range of evidence was learned: {reason};")


def test_evidence_that_is_no_number_gives_no_range(sample):
    class Diverged(Grey):
        def evidence(self, tiles, /):
            probabilities, maps = super().evidence(tiles)
            return probabilities, maps * np.float32("nan")

    assert learn_range(Diverged(1), [sample("normal", [1, 2, 3, 4])], CLASSES) is None


def test_at_most_two_hundred_images_evenly_spaced(sample):
    one = sample("normal", [1, 2, 3, 4])
    grey = Grey(1)
    found = learn_range(grey, [one] * 401, CLASSES)
    assert found is not None
    assert found.images == grey.seen == 200
    numbered = [Sample(str(i), Path("x.png"), "normal") for i in range(401)]
    chosen = [int(s.name) for s in evenly(numbered, 200)]
    assert chosen[0] == 0
    assert chosen[-1] == 400
    assert set(np.diff(chosen)) <= {2, 3}
    assert evenly(numbered[:7], 200) == numbered[:7]


# --- as a part of training ---


def test_training_leaves_the_range_of_the_selected_weights(gap_run, tiny_table):
    method, config = load_model(gap_run)
    assert config.evidence_range is not None
    samples = read_table(tiny_table).split("train")
    assert config.evidence_range == learn_range(Predictor(method, config), samples, config.classes)
    assert config.evidence_range.images == 12
    assert len(config.evidence_range.low) == 2


@pytest.mark.parametrize(("method", "maps"), [("maxmin", 2), ("stain", 1), ("lse", 2), ("deepmil", 2)])
def test_the_range_of_other_methods(tiny, tmp_path, method, maps):
    config = read_model_config(train(tiny(method, epochs=1), tmp_path / "run", progress=False))
    assert config.evidence_range is not None
    assert len(config.evidence_range.high) == maps


@pytest.mark.parametrize(("method", "options"), [("pn", {}), ("maxmin", {"normalisation": "none"})])
def test_methods_that_need_none_have_none(tiny, tmp_path, method, options, monkeypatch):
    monkeypatch.setattr("histoloc.evidence.learn_range", lambda *a, **k: pytest.fail("nothing is to be learned"))
    out = train(tiny(method, epochs=1, options=options), tmp_path / "run", progress=False)
    assert read_model_config(out).evidence_range is None


def test_no_mask_is_opened(tiny, tmp_path, monkeypatch):
    for name in ("read_mask", "read_annotations"):
        monkeypatch.setattr(f"histoloc.data.pixels.{name}", lambda path, **k: pytest.fail(f"{path} was opened"))
    out = train(tiny("gap", epochs=1), tmp_path / "run", progress=False)
    assert read_model_config(out).evidence_range is not None


def test_it_is_not_learned_again_but_by_a_new_model(tiny, tmp_path, monkeypatch):
    options = {"selection": "last"}
    out = train(tiny("gap", epochs=1, **options), tmp_path / "run", progress=False)
    first = read_model_config(out).evidence_range
    with monkeypatch.context() as patch:
        patch.setattr("histoloc.evidence.learn_range", lambda *a, **k: pytest.fail("it was learned before"))
        train(tiny("gap", epochs=1, **options), out, resume=True, progress=False)
    train(tiny("gap", epochs=2, **options), out, resume=True, progress=False)
    whole = train(tiny("gap", epochs=2, **options), tmp_path / "whole", progress=False)
    assert read_model_config(out).evidence_range == read_model_config(whole).evidence_range != first


def test_killed_before_it_was_written_it_is_learned_when_resumed(tiny, gap_run, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("histoloc.evidence.learn_range", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny("gap"), out, progress=False)
    assert read_model_config(out).evidence_range is None
    train(tiny("gap"), out, resume=True, progress=False)
    assert read_model_config(out).evidence_range == read_model_config(gap_run).evidence_range
    assert (out / WEIGHTS).read_bytes() == (gap_run / WEIGHTS).read_bytes()


def test_a_threshold_chosen_by_masks_stays(tiny, tmp_path):
    config = read_model_config(train(tiny("gap", epochs=1, threshold="valid"), tmp_path / "run", progress=False))
    assert config.threshold.rule == "valid"
    assert config.evidence_range is not None


# --- in the model folder ---


@pytest.mark.parametrize(
    ("low", "high"),
    [((), ()), ((0.0,), (1.0, 2.0)), ((1.0,), (1.0,)), ((0.0, 2.0), (1.0, 1.0)), ((float("nan"),), (1.0,))],
)
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(InputError, match="each high above its low"):
        EvidenceRange(low, high, 1)


def test_it_is_read_back_and_folders_without_it_open(tiny, tmp_path):
    import json

    out = train(tiny("gap", epochs=1), tmp_path / "run", progress=False)
    method, config = load_model(out)
    save_model(tmp_path / "again", method.state_dict(), config)
    assert read_model_config(tmp_path / "again").evidence_range == config.evidence_range
    values = json.loads((out / CONFIG).read_text())
    values["evidence_range"]["high"] = [1e9]
    (out / CONFIG).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"config\.json: evidence_range"):
        load_model(out)
    del values["evidence_range"]
    (out / CONFIG).write_text(json.dumps(values))
    assert load_model(out)[1].evidence_range is None


def test_an_older_model_can_be_given_its_range(tiny, gap_run, tiny_table, tmp_path):
    import dataclasses

    method, config = load_model(gap_run)
    save_model(tmp_path / "old", method.state_dict(), dataclasses.replace(config, evidence_range=None))
    found = keep_range(tmp_path / "old", read_table(tiny_table))
    assert found == read_model_config(tmp_path / "old").evidence_range == config.evidence_range


# --- what it is good for ---


def test_normal_images_have_no_roi_and_others_keep_theirs(tmp_path):
    """Blots of haematoxylin on pink, seen by colour alone: no training, so that only the range is tried."""
    rng, truth = np.random.default_rng(0), {}
    lines = ["image,label,mask,split,group"]
    for i in range(24):
        blots = ndimage.gaussian_filter(rng.standard_normal((96, 96)), 12)
        truth[i] = blots > np.quantile(blots, rng.uniform(0.4, 0.75)) if i % 3 else np.zeros((96, 96), bool)
        pixels = np.array([214.0, 160, 190]) + rng.normal(0, 2, 3) + rng.normal(0, 10, (96, 96, 3))
        pixels[truth[i]] += np.array([-60.0, -40, -10])
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{CLASSES[i % 3 > 0]},,{'train' if i < 12 else 'valid'},")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    config = run_config(
        {
            "method": "stain",
            "data": str(tmp_path / "table.csv"),
            "input": {"small_side": 96, "crop": 96},
            "training": {"accelerator": "cpu"},
        },
        where="test",
    )
    run = train(config, tmp_path / "run", progress=False)
    predictor = load(run, "cpu")
    learned = predictor.config.evidence_range
    assert learned is not None
    for i in range(12, 24):
        tile = np.array(Image.open(tmp_path / f"{i}.png"))
        roi = predictor.roi_of(predictor.evidence([tile])[1], learned.low, learned.high)[0, 0] >= 0.5
        if i % 3:
            assert 2 * (roi & truth[i]).sum() / (roi.sum() + truth[i].sum()) > 0.8
        else:
            assert roi.mean() == 0
            assert predictor.predict(tile).roi_fraction > 0.1, "stretched by its own range it would have"
