"""Patients and slides: what is resampled together, and what that does to intervals."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histoloc.cli.main import main
from histoloc.errors import InputError
from histoloc.evaluation import summary_line
from histoloc.metrics import LocalizationMetrics, Metrics
from histoloc.metrics.bootstrap import Units, bootstrap, percentile_interval, resampling_weights, weighted_ratio
from histoloc.metrics.summary import Split

CLASSES = ("benign", "malignant")
SIZE = (6, 7)


def images(count: int) -> list[tuple]:
    """Arguments of `update` but the group; every fourth image has no ROI."""
    random = np.random.default_rng(1)
    made = []
    for i in range(count):
        truth = random.random(SIZE) < (0.4 if i % 4 else 0)
        roi = np.clip(0.4 * truth + 0.6 * random.random(SIZE), 0, 1)
        score = random.random()
        made.append((f"{i:02d}.png", i % 2, [1 - score, score], roi, roi >= 0.5, truth))
    return made


def collect(groups: list[str | None]) -> LocalizationMetrics:
    metrics = LocalizationMetrics(CLASSES)
    for row, group in zip(images(len(groups)), groups, strict=True):
        metrics.update(*row, group=group)
    return metrics


def without_groups(value):
    """Results as plain values, less what names groups."""
    if isinstance(value, dict):
        return {key: without_groups(part) for key, part in value.items() if key not in ("groups", "resampled")}
    return value


# --- what is drawn ---


def test_units_are_numbered_as_they_appear():
    units = Units(["b", "a", "", "b", "", "a"])
    assert units.index.tolist() == [0, 1, 2, 0, 3, 1]
    assert (units.count, units.grouped, units.ungrouped) == (4, True, 2)
    assert units.among(np.array([True, False, False, True, True, False])) == 2
    images = Units(["", "", ""])
    assert (images.index.tolist(), images.count, images.grouped) == ([0, 1, 2], 3, False)


def test_images_of_a_group_are_drawn_together():
    units = Units(["a", "b", "b", "a", "b"])
    drawn = bootstrap(lambda w: {f"{i}": w[:, i] for i in range(5)}, units, 50, seed=4)
    (weights,) = resampling_weights(2, 50, seed=4)
    assert np.array_equal(np.stack([drawn[f"{i}"] for i in range(5)], axis=1), weights[:, [0, 1, 1, 0, 1]])


def test_blocks_hold_rows_of_images_not_of_groups(monkeypatch):
    monkeypatch.setattr("histoloc.metrics.bootstrap._WEIGHTS_PER_BLOCK", 20)
    sizes: list[int] = []

    def statistics(weights):
        sizes.append(weights.size)
        return {"images": weights.sum(axis=1)}

    bootstrap(statistics, Units(["a", "b"] * 5), 7, seed=0)
    assert sizes == [20, 20, 20, 10]


def test_one_image_per_group_changes_no_bit():
    plain, grouped = collect([None] * 12), collect([f"patient {i * 5 % 12}" for i in range(12)])
    by_image, by_group = plain.compute(bootstrap=200, seed=3), grouped.compute(bootstrap=200, seed=3)
    assert (by_image.resampled, by_image.groups, by_image.notes) == ("images", None, [])
    assert (by_group.resampled, by_group.groups, by_group.notes) == ("groups", 12, [])
    assert without_groups(by_group.to_dict()) == without_groups(by_image.to_dict())
    assert (by_image.f1_plus.groups, by_group.f1_plus.groups, by_group.f1_plus.n) == (None, 9, 9)


def test_the_interval_is_that_of_resampled_groups():
    groups: list[str | None] = [*"abcabcaabb", *"cd"]
    got = collect(groups).compute(bootstrap=100, seed=5)
    random, rows, names = np.random.default_rng(5), images(12), np.array(groups)
    again: list[Metrics] = []
    for _ in range(100):
        metrics = LocalizationMetrics(CLASSES)
        for copy, k in enumerate(random.integers(4, size=4)):
            for i in np.flatnonzero(names == "abcd"[k]):
                metrics.update(f"{copy} {i}", *rows[i][1:])
        again.append(metrics.compute(bootstrap=0))
    for key in ("cl_error", "f1_mean", "tpr", "pxap", "pxap_with_roi", "auc", "kappa", "balanced_accuracy"):
        values = [value for one in again if (value := getattr(one, key).value) is not None]
        low, high = np.percentile(values, [2.5, 97.5])
        assert (getattr(got, key).low, getattr(got, key).high) == pytest.approx((low, high)), key
    assert (got.groups, got.cl_error.groups) == (4, 4)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=8, max_size=8), st.sampled_from("abc"))
def test_a_group_twice_is_a_group_of_weight_two(groups, twice):
    metrics = collect(groups)
    weights = np.array([[1.0 + (group == twice) for group in groups]])
    weighted = Split(metrics.state()).statistics(weights)
    for row, group in zip(images(8), groups, strict=True):
        if group == twice:
            metrics.update(f"again {row[0]}", *row[1:], group=group)
    repeated = Split(metrics.state()).statistics(np.ones((1, len(metrics))))
    for key, value in weighted.items():
        np.testing.assert_allclose(value, repeated[key], rtol=1e-12, err_msg=key)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(8)))
def test_the_order_of_images_changes_nothing(order):
    groups = ["a", "b", None, "a", "c", "b", None, "c"]
    metrics = LocalizationMetrics(CLASSES)
    for i in order:
        metrics.update(*images(8)[i], group=groups[i])
    assert metrics.compute(bootstrap=20) == collect(groups).compute(bootstrap=20)


# --- what is said ---


def test_images_without_a_group_stand_for_themselves():
    got = collect(["a", None, "a", "", "b"]).compute(bootstrap=20)
    assert (got.resampled, got.groups) == ("groups", 4)
    assert got.notes == ["Images without a group: 2 of 5; each is resampled as a group of its own."]


@pytest.mark.parametrize(
    ("groups", "note"),
    [
        (["a"] * 5, "All images are of one group: no interval can be computed."),
        ([None], "There is one image only: no interval can be computed."),
    ],
)
def test_one_group_has_no_interval(groups, note):
    got = collect(groups).compute(bootstrap=20)
    assert got.cl_error.value is not None
    assert (got.cl_error.low, got.cl_error.high, got.cl_error.n) == (None, None, len(groups))
    assert got.notes == [note]
    assert f"Cl. error {got.cl_error.value:.2f}, F1+" in summary_line(got)
    assert summary_line(got).endswith(f"({note})")


def test_a_metric_that_rests_on_one_group_has_no_interval():
    """One group has all ROI: resamples of the others say nothing of F1⁺."""
    metrics = LocalizationMetrics(CLASSES)
    some, none = np.eye(3, dtype=bool), np.zeros((3, 3), dtype=bool)
    for i, group in enumerate("aabbcc"):
        metrics.update(f"{i}", 0, None, None, some if i % 2 else none, some if group == "a" else none, group)
    got = metrics.compute(bootstrap=50)
    assert (got.f1_plus.value, got.f1_plus.low, got.f1_plus.n, got.f1_plus.groups) == (50, None, 2, 1)
    assert (got.f1_minus.n, got.f1_minus.groups) == (6, 3)
    assert got.f1_minus.low is not None
    assert got.recall["malignant"].groups == 0


def test_per_image_names_groups_where_there_are_any():
    assert "group" not in collect([None, None]).per_image()
    table = collect(["a", None]).per_image()
    assert list(table.columns)[:3] == ["name", "label", "group"]
    assert table["group"].fillna("unknown").tolist() == ["a", "unknown"]


@pytest.mark.parametrize("parts", [2, 3])
def test_groups_survive_processes(parts):
    groups: list[str | None] = ["a", "b", None, "a", "cc", "b", None]
    expected, merged = collect(groups), LocalizationMetrics(CLASSES)
    for part in range(parts):
        own = LocalizationMetrics(CLASSES)
        for row, group in list(zip(images(7), groups, strict=True))[part::parts]:
            own.update(*row, group=group)
        merged.merge(own.state())
    assert merged.compute(bootstrap=30) == expected.compute(bootstrap=30)
    assert merged.per_image().equals(expected.per_image())
    with pytest.raises(InputError, match=r"00\.png: two processes give different results"):
        merged.merge(collect(["b"]).state())


# --- what it is good for ---


def test_only_the_interval_by_group_covers_where_images_of_a_patient_are_alike():
    """20 patients with 8 images each; how often a patient's images are wrong is drawn per patient, 30 % on average."""
    covered = {"image": 0, "group": 0}
    once = np.ones((160, 1))
    for trial in range(200):
        random = np.random.default_rng(trial)
        wrong = random.random((20, 8)) < random.beta(0.3, 0.7, (20, 1))
        for kind, groups in (("image", [""] * 160), ("group", [f"{i // 8}" for i in range(160)])):
            errors = bootstrap(
                lambda w, wrong=wrong: {"error": weighted_ratio(w, wrong.reshape(160, 1).astype(float), once)[:, 0]},
                Units(groups),
                200,
                0,
            )
            low, high = percentile_interval(errors["error"])
            covered[kind] += low <= 30 <= high
    assert covered["image"] / 200 == pytest.approx(0.66, abs=0.1)
    assert covered["group"] / 200 == pytest.approx(0.92, abs=0.03)


def write_table(folder: Path, patients: int, each: int, grouped: bool) -> Path:
    """Images, a heatmap for each, and predictions that are wrong for one patient and right for all others."""
    (folder / "maps").mkdir(parents=True)
    rows, predictions = [], []
    truth = np.zeros((32, 32), dtype=np.uint8)
    truth[:, :16] = 255
    Image.fromarray(truth).save(folder / "mask.png")
    for patient in range(patients):
        for k in range(each):
            name, label = f"{patient:02d}-{k}", CLASSES[patient % 2]
            Image.fromarray(np.full((32, 32, 3), 200, dtype=np.uint8)).save(folder / f"{name}.png")
            np.save(folder / "maps" / f"{name}.npy", truth / 255)
            rows.append((f"{name}.png", label, "mask.png", "test", f"P{patient}" if grouped else ""))
            predictions.append((f"{name}.png", CLASSES[(patient + (patient == 0)) % 2]))
    pd.DataFrame(predictions, columns=["image", "class"]).to_csv(folder / "maps" / "predictions.csv", index=False)
    table = folder / "table.csv"
    pd.DataFrame(rows, columns=["image", "label", "mask", "split", "group"]).to_csv(table, index=False)
    return table


@pytest.mark.parametrize(
    ("grouped", "high", "said"), [(True, 23.1, "52 images (13 groups): "), (False, 15.4, "52 images: ")]
)
def test_evaluate_resamples_the_groups_of_the_table(tmp_path, capsys, grouped, high, said):
    table = write_table(tmp_path, 13, 4, grouped)
    main(["evaluate", str(tmp_path / "maps"), "--data", str(table), "--out", str(tmp_path / "out")])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert metrics["resampled"] == ("groups" if grouped else "images")
    assert metrics["groups"] == (13 if grouped else None)
    assert metrics["cl_error"]["value"] == pytest.approx(100 / 13)
    assert metrics["cl_error"]["high"] == pytest.approx(high, abs=0.05)
    assert said in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "out" / "per_image.csv")
    assert ("group" in rows) == grouped
    if grouped:
        assert rows["group"].value_counts().unique().tolist() == [4]
