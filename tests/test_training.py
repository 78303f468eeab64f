"""The loop: what it leaves behind, what it selects, what it looks at, and that nothing but the seed is chance."""

import dataclasses
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from histoloc.config import TrainingConfig, read_run
from histoloc.data.images import read_image, read_mask
from histoloc.data.table import read_table
from histoloc.data.trainset import Key, TrainSet, collate, seed_of
from histoloc.errors import InputError
from histoloc.evaluation import evaluate
from histoloc.methods.maxmin import MaxMin
from histoloc.metrics import dice
from histoloc.model_folder import build_method, load_model, read_model_config
from histoloc.prediction import load
from histoloc.training import describe, train
from histoloc.training_state import selection_key

WEIGHTS = "model/model.safetensors"
SIGMA = {"sigma_start": 0.15, "sigma_step": 0.01, "sigma_cap": 0.3}
GAP_COLUMNS = ["epoch", "lr", "train/classification", "train/total", "valid/cross_entropy", "valid/cl_error"]
LAST_COLUMNS = ["seconds", "valid_seconds", "selected"]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def without_times(log):
    return pd.read_csv(log).drop(columns=["seconds", "valid_seconds"])


def write_changed(table, to, change):
    """The same table with other cells, beside the images."""
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    change(rows)
    for column in ("image", "mask"):
        rows[column] = [str(table.parent / cell) if cell else "" for cell in rows[column]]
    rows.to_csv(to, index=False)
    return to


def no_valid_masks(rows):
    rows.loc[rows["split"] == "valid", "mask"] = ""


# --- chance ---


def test_a_seed_fixes_every_bit_and_another_seed_does_not(tiny, gap_run, tmp_path):
    same = train(tiny("gap"), tmp_path / "same", progress=False)
    other = train(tiny("gap", seed=1), tmp_path / "other", progress=False)
    assert (same / WEIGHTS).read_bytes() == (gap_run / WEIGHTS).read_bytes() != (other / WEIGHTS).read_bytes()
    pd.testing.assert_frame_equal(without_times(same / "log.csv"), without_times(gap_run / "log.csv"))


def test_the_number_of_workers_and_the_cache_change_no_bit(tiny, gap_run, tmp_path):
    out = train(tiny("gap", workers=2, cache_gb=0), tmp_path / "run", progress=False)
    assert (out / WEIGHTS).read_bytes() == (gap_run / WEIGHTS).read_bytes()


# --- numbers ---


def test_the_first_step_has_the_loss_of_the_untrained_network_on_the_augmented_images(tiny, tmp_path):
    config = tiny("gap", epochs=1, batch=12)
    out = train(config, tmp_path / "run", progress=False)
    table = read_table(config.data)
    samples = TrainSet(table, table.split("train"), config.input, seed=0)
    batch = collate([samples[Key(0, i)] for i in range(12)], 2)
    torch.manual_seed(seed_of(0))
    untrained = build_method(describe(config, table)[0], load_backbone=True)
    expected = F.cross_entropy(untrained(batch.image).logits, batch.label).item()
    assert pd.read_csv(out / "log.csv")["train/classification"].tolist() == pytest.approx([expected], rel=1e-5)


def test_the_last_smaller_batch_counts_by_its_images(tiny, tmp_path):
    """Without learning, the epoch's mean is the mean over images, however they were batched."""
    losses = [
        pd.read_csv(train(tiny(batch=batch, epochs=1, lr=1e-30), tmp_path / str(batch), progress=False) / "log.csv")
        for batch in (12, 5)
    ]
    assert losses[0]["train/total"][0] == pytest.approx(losses[1]["train/total"][0], rel=1e-6)


def test_validation_numbers_are_those_of_the_saved_model(tiny, tmp_path):
    config = tiny("gap", selection="last")
    out = train(config, tmp_path / "run", progress=False)
    table, predictor, last = read_table(config.data), load(out, "cpu"), pd.read_csv(out / "log.csv").iloc[-1]
    result = {s.name: np.asarray(predictor.predict(s.image).probabilities) for s in table.split("valid")}
    true = [float(result[s.name][table.label_indices(s)[0]]) for s in table.split("valid")]
    wrong = [result[s.name].argmax() != table.label_indices(s)[0] for s in table.split("valid")]
    assert last["valid/cross_entropy"] == pytest.approx(-np.log(true).mean(), rel=1e-5)
    assert last["valid/cl_error"] == 100 * np.mean(wrong)


# --- what a run leaves ---


def test_a_run_folder_holds_what_it_should_and_nothing_else(gap_run):
    names = set(contents(gap_run))
    events = {name for name in names if re.fullmatch(r"tensorboard/events\.out\.tfevents\..*", name)}
    assert names - events == {
        "run.yaml", "inputs.json", "log.csv", "last.ckpt", WEIGHTS, "model/config.json", "model/images.txt"
    }  # fmt: skip
    assert len(events) == 1


def test_the_log_has_a_row_per_epoch_and_a_column_per_loss_term(gap_run, maxmin_run):
    gap, maxmin = pd.read_csv(gap_run / "log.csv"), pd.read_csv(maxmin_run / "log.csv")
    assert list(gap) == [*GAP_COLUMNS, *LAST_COLUMNS]
    terms = [f"train/{name}" for name in ("foreground", "localizer", "background", "size")]
    assert list(maxmin) == ["epoch", "lr", *terms, "train/total", *GAP_COLUMNS[4:], *LAST_COLUMNS]
    np.testing.assert_allclose(maxmin[terms].sum(axis=1), maxmin["train/total"], rtol=1e-5)
    assert maxmin["epoch"].tolist() == [0, 1, 2]
    assert gap["selected"].isin([0, 1]).all()
    assert gap["selected"][0] == 1


def test_tensorboard_shows_the_numbers_of_the_log(gap_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(gap_run / "tensorboard"))
    events.Reload()
    log = pd.read_csv(gap_run / "log.csv")
    for column in GAP_COLUMNS[1:]:
        values = events.Scalars(column)
        assert [e.step for e in values] == [0, 1]
        np.testing.assert_allclose([e.value for e in values], log[column], rtol=1e-6)


def test_the_model_folder_says_where_it_comes_from(tiny, tiny_table, tmp_path):
    out = train(dataclasses.replace(tiny("gap", epochs=1, seed=7), recipe="mine"), tmp_path / "run", progress=False)
    config = read_model_config(out)
    assert config.classes == ("benign", "malignant")
    assert config.mpp == 1.0
    known = {"table": tiny_table.name, "fold": None, "seed": 7, "recipe": "mine", "torch": version("torch")}
    assert config.provenance.items() >= known.items()


def test_the_model_predicts_with_the_normalisation_of_its_backbones_weights(tiny, tiny_table, gap_run):
    """Whose weights are ImageNet's; the default backbone has 0.5 for all."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    method, config = load_model(gap_run)
    written = json.loads((gap_run / "model" / "config.json").read_text())["input"]
    assert (tuple(written["mean"]), tuple(written["std"])) == (config.input.mean, config.input.std) == (mean, std)
    assert read_run(gap_run / "run.yaml").input == tiny("gap").input == config.input
    image = read_image(read_table(tiny_table).split("valid")[0].image)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = method((pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    probabilities, _ = load(gap_run, "cpu").evidence([image])
    np.testing.assert_allclose(probabilities, expected.logits.softmax(1), atol=1e-5)


def test_all_ones_needs_no_training(allones_run, tiny):
    assert set(contents(allones_run)) == {"run.yaml", "inputs.json", WEIGHTS, "model/config.json", "model/images.txt"}
    before = contents(allones_run)
    train(tiny("allones"), allones_run, resume=True, progress=False)
    assert contents(allones_run) == before


# --- selection ---


@pytest.mark.parametrize(
    ("rule", "epochs", "chosen"),
    [
        # (error, cross-entropy, PxAP) per epoch
        ("error-loss", [(10, 0.5, 0), (0, 0.9, 0), (0, 0.8, 0), (0, 0.85, 0)], 2),
        ("error-loss", [(0, 0.5, 0), (0, 0.5, 0), (5, 0.1, 0)], 1),
        ("error-latest", [(0, 0.1, 0), (0, 0.9, 0), (5, 0.0, 0)], 1),
        ("last", [(0, 0.1, 90), (50, 0.9, 10)], 1),
        ("pxap-masks", [(50, 2.0, 60), (0, 0.1, 59)], 0),
        ("pxap-masks", [(0, 0.1, 60), (50, 2.0, 60)], 1),
    ],
)
def test_the_epoch_is_selected_by_the_rule_and_the_latest_of_equal_ones(rule, epochs, chosen):
    training = TrainingConfig(selection=rule)
    keys = [
        selection_key({"valid/cl_error": e, "valid/cross_entropy": c, "valid/pxap": p}, training) for e, c, p in epochs
    ]
    assert max(range(len(keys)), key=lambda i: (keys[i], i)) == chosen


def test_the_model_folder_holds_the_selected_epoch_and_its_sigma(tiny, tmp_path):
    config = tiny("maxmin", epochs=4, lr=0.02, options=SIGMA)
    out = train(config, tmp_path / "run", progress=False)
    log = pd.read_csv(out / "log.csv")
    chosen = int(log.loc[log["selected"] == 1, "epoch"].iloc[-1])
    keys = list(zip(-log["valid/cl_error"], -log["valid/cross_entropy"], log["epoch"], strict=True))
    assert chosen == max(keys)[2] < 3, "the test needs a run whose last epoch is not the best"
    selection = read_model_config(out).selection
    assert (selection.rule, selection.epoch, selection.masks_used, selection.uses_masks) == (
        "error-loss", chosen, 0, False,
    )  # fmt: skip
    shorter = tiny("maxmin", epochs=chosen + 1, lr=0.02, options=SIGMA, selection="last")
    as_it_was = train(shorter, tmp_path / "shorter", progress=False)
    assert (out / WEIGHTS).read_bytes() == (as_it_was / WEIGHTS).read_bytes()
    method = cast(MaxMin, load_model(out)[0])
    assert load_file(out / WEIGHTS)["epoch"].item() == chosen
    assert float(method.sigma()) == pytest.approx(0.15 + 0.01 * chosen)


def test_selection_by_masks_says_so_and_takes_the_best(tiny, tmp_path):
    out = train(tiny("gap", epochs=3, selection="pxap-masks"), tmp_path / "run", progress=False)
    log, written = pd.read_csv(out / "log.csv"), json.loads((out / "model" / "config.json").read_text())
    assert {"valid/pxap", "valid/f1_plus", "valid/f1_minus"} <= set(log)
    assert written["selection"] == {
        "rule": "pxap-masks", "epoch": int(log["valid/pxap"].to_numpy().argmax()), "masks_used": 4, "uses_masks": True,
    }  # fmt: skip


# --- weak supervision ---


@pytest.fixture
def _no_mask_may_be_read(monkeypatch):
    def refuse(path):
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr("histoloc.data.pixels.read_mask", refuse)
    monkeypatch.setattr("histoloc.data.pixels.read_annotations", refuse)


@pytest.mark.usefixtures("_no_mask_may_be_read")
@pytest.mark.parametrize("selection", ["error-loss", "error-latest", "last"])
def test_no_mask_is_opened_unless_it_was_asked_for(tiny, tmp_path, selection):
    out = train(tiny("maxmin", epochs=1, selection=selection), tmp_path / "run", progress=False)
    assert not any(name in str(column) for column in pd.read_csv(out / "log.csv") for name in ("f1", "pxap"))


@pytest.mark.usefixtures("_no_mask_may_be_read")
@pytest.mark.parametrize("option", [{"monitor": "masks"}, {"selection": "pxap-masks"}, {"threshold": "valid"}])
def test_the_test_above_would_see_a_mask_being_opened(tiny, tmp_path, option):
    with pytest.raises(AssertionError, match="was opened"):
        train(tiny("gap", epochs=1, **option), tmp_path / "run", progress=False)


def test_masks_that_are_watched_select_nothing(tiny, gap_run, tmp_path):
    out = train(tiny("gap", monitor="masks"), tmp_path / "run", progress=False)
    assert (out / WEIGHTS).read_bytes() == (gap_run / WEIGHTS).read_bytes()
    assert not read_model_config(out).selection.uses_masks
    assert {"valid/f1_plus", "valid/f1_minus", "valid/pxap"} <= set(pd.read_csv(out / "log.csv"))


# --- threshold ---


def test_the_threshold_on_validation_masks_is_the_best_of_all(tiny, gap_run, tiny_table, tmp_path):
    out = train(tiny("gap", threshold="valid"), tmp_path / "run", progress=False)
    threshold = read_model_config(out).threshold
    assert (threshold.rule, threshold.masks_used, threshold.uses_masks) == ("valid", 4, True)
    assert (out / WEIGHTS).read_bytes() == (gap_run / WEIGHTS).read_bytes()
    predictor, valid = load(out, "cpu"), read_table(tiny_table).split("valid")
    maps, truth = [predictor.predict(s.image).roi for s in valid], [read_mask(cast(Path, s.mask)) for s in valid]

    def mean_f1(t):
        pairs = [((m >= np.float32(t)), y) for m, y in zip(maps, truth, strict=True)]
        return np.mean([[dice(p, y), dice(~p, ~y)] for p, y in pairs])

    scores = [mean_f1(i / 100) for i in range(101)]
    assert threshold.value == np.argmax(scores) / 100
    assert predictor.predict(valid[0].image).threshold == threshold.value


def test_the_chosen_threshold_is_named_where_the_model_is_evaluated(tiny, tiny_table, tmp_path):
    out = train(tiny("gap", epochs=1, threshold="valid"), tmp_path / "run", progress=False)
    evaluate(out, tiny_table, device="cpu", progress=False)
    written = json.loads((out / "metrics.json").read_text())
    assert written["uses_masks"] == ["threshold chosen on 4 validation masks (learned maps)"]
    assert written["threshold"]["rule"] == "valid"


def test_a_finished_choice_is_not_made_again_but_a_new_model_gets_one(tiny, tmp_path):
    options = {"threshold": "valid", "selection": "last"}
    out = train(tiny("gap", epochs=1, **options), tmp_path / "run", progress=False)
    before = contents(out)
    train(tiny("gap", epochs=1, **options), out, resume=True, progress=False)
    assert contents(out) == before
    train(tiny("gap", epochs=2, **options), out, resume=True, progress=False)
    whole = train(tiny("gap", epochs=2, **options), tmp_path / "whole", progress=False)
    assert read_model_config(out).threshold == read_model_config(whole).threshold
    assert read_model_config(out).selection.epoch == 1


def test_otsu_is_noted_without_a_value(tiny, tmp_path):
    out = train(tiny("gap", epochs=1, threshold="otsu"), tmp_path / "run", progress=False)
    threshold = read_model_config(out).threshold
    assert (threshold.rule, threshold.value, threshold.masks_used) == ("otsu", None, 0)


@pytest.mark.parametrize("option", [{"monitor": "masks"}, {"selection": "pxap-masks"}, {"threshold": "valid"}])
def test_masks_that_are_needed_and_absent_are_named_before_training(tiny, tiny_table, tmp_path, option):
    table = write_changed(tiny_table, tmp_path / "table.csv", no_valid_masks)
    with pytest.raises(InputError, match=f"--{next(iter(option))} .* needs masks"):
        train(tiny("gap", table, **option), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_validation_masks_without_roi_choose_no_threshold(tiny, tiny_table, tmp_path):
    from histoloc.data.images import write_mask

    write_mask(tmp_path / "empty.png", np.zeros((64, 96), dtype=bool))

    def empty(rows):
        rows.loc[rows["split"] == "valid", "mask"] = str(tmp_path / "empty.png")

    table = write_changed(tiny_table, tmp_path / "table.csv", empty)
    with pytest.raises(InputError, match="needs both ROI and background"):
        train(tiny("gap", table, epochs=1, threshold="valid"), tmp_path / "run", progress=False)


# --- what may not be done ---


def test_resuming_a_finished_run_changes_nothing(tiny, gap_run):
    before = contents(gap_run)
    train(tiny("gap"), gap_run, resume=True, progress=False)
    assert contents(gap_run) == before


@pytest.mark.parametrize("changes", [{}, {"channels_last": False}, {"backbone": "test_efficientnet"}])
def test_more_epochs_on_resume_give_the_bits_of_a_longer_run(tiny, tmp_path, changes):
    part = train(tiny("maxmin", epochs=1, **changes), tmp_path / "part", progress=False)
    train(tiny("maxmin", epochs=3, **changes), part, resume=True, progress=False)
    whole = train(tiny("maxmin", epochs=3, **changes), tmp_path / "whole", progress=False)
    assert (part / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    pd.testing.assert_frame_equal(without_times(part / "log.csv"), without_times(whole / "log.csv"))
    assert (part / "run.yaml").read_bytes() == (whole / "run.yaml").read_bytes()


def test_a_loss_that_is_not_finite_stops_with_epoch_batch_and_images(tiny, tmp_path):
    with pytest.raises(InputError, match="no longer finite in epoch 0, batch 1") as stopped:
        train(tiny("gap", lr=1e30), tmp_path / "run", progress=False)
    assert len(re.findall(r"images/(?:benign|malignant)_\d+\.png", str(stopped.value))) == 4
    assert "lower --lr" in str(stopped.value)


def test_a_run_that_never_started_does_not_stand_in_the_way(tiny, tmp_path):
    with pytest.raises(InputError, match="not a timm model"):
        train(tiny("gap", backbone="resnot18"), tmp_path / "run", progress=False)
    assert contents(tmp_path) == {}
    with pytest.raises(InputError, match="no longer finite"):
        train(tiny("gap", lr=1e30), tmp_path / "run", progress=False)
    train(tiny("gap", epochs=1), tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / WEIGHTS).is_file()


def test_an_error_inside_a_worker_is_one_sentence(tiny, tiny_table, tmp_path):
    rows = pd.read_csv(tiny_table)
    broken = tmp_path / "broken.png"
    whole = (tiny_table.parent / rows["image"][2]).read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])

    def damage(rows):
        rows.loc[2, "image"] = str(broken)

    table = write_changed(tiny_table, tmp_path / "table.csv", damage)
    with pytest.raises(InputError) as stopped:
        train(tiny("gap", table, workers=1, cache_gb=0), tmp_path / "run", progress=False)
    assert str(stopped.value).startswith(f"{broken}: ")
    assert "Traceback" not in str(stopped.value)
