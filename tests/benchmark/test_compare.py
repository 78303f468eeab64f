import numpy as np
import pandas as pd
import pytest
from fake_bench import flat, write_bench, write_cell, write_settings
from scipy import stats

from histoloc.benchmark.compare import best_baseline, compare, paired_difference, per_image
from histoloc.benchmark.results import read_bench

NAN = float("nan")


def frame(plus, minus):
    return pd.DataFrame({"f1_plus": plus, "f1_minus": minus}, index=[f"{i:03d}" for i in range(len(plus))])


def test_seeds_are_averaged_and_folds_pooled(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap"])
    for seed in (0, 1):
        write_cell(folder, "gap", 0, seed, {"a": 60.0 + 10 * seed, "b": NAN}, {"a": 1.0, "b": 10.0 + 4 * seed})
        write_cell(folder, "gap", 1, seed, {"c": 30.0 + 2 * seed}, {"c": 5.0})
    result = per_image(read_bench(folder).cells)
    assert result["f1_plus"].to_dict() == pytest.approx({"a": 65.0, "b": NAN, "c": 31.0}, nan_ok=True)
    assert result["f1_minus"].to_dict() == {"a": 1.0, "b": 12.0, "c": 5.0}


def test_an_image_of_several_folds_is_averaged(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap"], split="test")
    for fold, value in ((0, 40.0), (1, 50.0)):
        write_cell(folder, "gap", fold, 0, flat(value), flat(0.0), split="test")
    assert per_image(read_bench(folder).cells)["f1_plus"].tolist() == [45.0] * 4


def test_differences_by_hand():
    ours = frame([70.0, NAN, 50.0], [10.0, 40.0, NAN])
    base = frame([60.0, NAN, 46.0], [13.0, 30.0, NAN])
    result = paired_difference(ours, base)
    plus, minus, mean = (result[name] for name in ("f1_plus", "f1_minus", "f1_mean"))
    assert plus is not None
    assert minus is not None
    assert mean is not None
    assert (plus.value, plus.n) == (pytest.approx(7.0), 2)  # (10 + 4) / 2 over the images with ROI
    assert (minus.value, minus.n) == (pytest.approx(3.5), 2)  # (-3 + 10) / 2 over those with background
    assert (mean.value, mean.n) == (pytest.approx(5.25), 3)
    assert (plus.low, plus.high, plus.above) == (pytest.approx(4.0), pytest.approx(10.0), 1.0)


def test_only_common_images_count():
    ours, base = frame([70.0, 80.0], [0.0, 0.0]), frame([60.0, 10.0, 10.0], [0.0, 0.0, 0.0])
    ours.index = pd.Index(["000", "elsewhere"])
    result = paired_difference(ours, base)["f1_plus"]
    assert result is not None
    assert (result.value, result.n) == (pytest.approx(10.0), 1)


def test_a_constant_difference_has_no_width():
    base = frame(np.linspace(10, 60, 7), np.linspace(5, 50, 7))
    result = paired_difference(base + 3, base)["f1_mean"]
    assert result is not None
    assert (result.low, result.high, result.above) == (pytest.approx(3.0), pytest.approx(3.0), 1.0)


def test_the_interval_agrees_with_scipy():
    random = np.random.default_rng(0)
    base = frame(random.uniform(20, 60, 40), random.uniform(20, 60, 40))
    ours = base + random.normal(1, 6, (40, 2))
    result = paired_difference(ours, base, replicates=8000)["f1_mean"]
    assert result is not None
    per = (ours - base).mean(axis=1).to_numpy()  # every image has both parts
    theirs = stats.bootstrap((per,), np.mean, n_resamples=8000, method="percentile", rng=random)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert result.value == pytest.approx(per.mean())
    assert result.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert result.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)
    assert result.above == pytest.approx((theirs.bootstrap_distribution > 0).mean(), abs=0.02)


def test_the_same_images_give_the_same_interval():
    random = np.random.default_rng(1)
    base, ours = (frame(random.uniform(0, 90, 9), random.uniform(0, 90, 9)) for _ in range(2))
    assert paired_difference(ours, base) == paired_difference(ours.sample(frac=1, random_state=0), base)


def test_nothing_in_common_is_undefined():
    ours, base = frame([1.0], [1.0]), frame([1.0], [NAN])
    assert paired_difference(ours, base)["f1_mean"] is None
    assert paired_difference(ours.set_axis(["x"]), base) == {"f1_plus": None, "f1_minus": None, "f1_mean": None}


def test_the_baseline_is_the_best_of_its_group(tmp_path):
    folder = write_settings(tmp_path / "bench", ["stain", "gap", "lse", "maxmin-sem"], folds=[0], seeds=[0])
    for row, value in (("stain", 90.0), ("gap", 50.0), ("lse", 60.0), ("maxmin-sem", 80.0)):
        write_cell(folder, row, 0, 0, flat(value), flat(20.0))
    bench = read_bench(folder)
    baseline = best_baseline(bench)
    assert baseline is not None
    assert baseline.name == "lse"
    result = compare(bench, baseline)
    assert list(result) == ["stain", "gap", "maxmin-sem"]
    assert [d.value for name in result if (d := result[name]["f1_plus"])] == pytest.approx([30.0, -10.0, 20.0])


def test_the_ablation_is_compared_with_its_first_row(tmp_path):
    folder = write_settings(tmp_path / "bench", ["fg", "fg-sem-asc"], kind="ablation", folds=[0], seeds=[0])
    for row, value in (("fg", 50.0), ("fg-sem-asc", 60.0)):
        write_cell(folder, row, 0, 0, flat(value), flat(20.0))
    bench = read_bench(folder)
    baseline = best_baseline(bench)
    assert baseline is not None
    assert baseline.name == "fg"


def test_without_a_finished_baseline_nothing_is_compared(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap", "maxmin-sem"], folds=[0], seeds=[0])
    write_cell(folder, "maxmin-sem", 0, 0, flat(80.0), flat(20.0))
    bench = read_bench(folder)
    assert best_baseline(bench) is None
    assert compare(bench, None) == {}


def test_rows_without_cells_are_left_out(tmp_path):
    bench = read_bench(write_bench(tmp_path / "bench"))
    result = compare(bench, bench.rows[0])
    mean = result["maxmin-sem"]["f1_mean"]
    assert mean is not None
    assert mean.value == pytest.approx((71.5 + 69.0) / 2 - (66.0 + 20.0) / 2)
