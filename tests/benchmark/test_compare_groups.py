"""Differences between rows where several images are of one patient."""

import json

import numpy as np
import pandas as pd
import pytest
from fake_bench import write_cell, write_settings

from histoloc.benchmark.compare import best_baseline, compare, paired_difference, per_image
from histoloc.benchmark.report import write_benchmark_report
from histoloc.benchmark.results import read_bench, results_frame
from histoloc.benchmark.tables import benchmark_table
from histoloc.errors import InputError

PATIENTS, EACH = 6, 4
NAMES = [f"{patient}-{k}" for patient in range(PATIENTS) for k in range(EACH)]
GROUPS = [f"P{name[0]}" for name in NAMES]
GAIN = [0.0, 0.0, 3.0, 3.0, 9.0, 9.0]  # of max-min, by patient


def frame(values, groups=None) -> pd.DataFrame:
    made = pd.DataFrame({"f1_plus": values, "f1_minus": values}, index=pd.Index(NAMES, name="name"))
    return made if groups is None else made.assign(group=groups)


def by_patient(values: list[float]) -> list[float]:
    return [value for value in values for _ in range(EACH)]


def bench(tmp_path, grouped=("gap", "maxmin-sem"), groups=GROUPS):
    """A baseline and max-min on 24 images of 6 patients, whose group the cells of `grouped` name."""
    folder = write_settings(tmp_path / "bench", ["gap", "maxmin-sem"], folds=[0], seeds=[0])
    for row, gain in (("gap", [0.0] * PATIENTS), ("maxmin-sem", GAIN)):
        values = dict(zip(NAMES, [50 + g for g in by_patient(gain)], strict=True))
        run = write_cell(folder, row, 0, 0, values, values)
        if row in grouped:
            path = run / "evaluation" / "valid" / "per_image.csv"
            pd.read_csv(path).assign(group=groups).to_csv(path, index=False)
    return folder


def test_the_interval_by_patient_is_that_of_the_patients_means():
    ours, base = frame(by_patient(GAIN), GROUPS), frame([0.0] * len(NAMES), GROUPS)
    result, image = (paired_difference(ours, other)["f1_mean"] for other in (base, base.drop(columns="group")))
    assert result is not None
    assert (result.value, result.n, result.groups, result.ungrouped) == (pytest.approx(4.0), 24, 6, 0)
    random = np.random.default_rng(0)
    means = [np.array(GAIN)[random.integers(6, size=6)].mean() for _ in range(2000)]
    assert (result.low, result.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert result.above == pytest.approx(np.mean(np.array(means) > 0))
    assert image == result, "one of the two names the groups"
    plain = paired_difference(ours.drop(columns="group"), base.drop(columns="group"))["f1_mean"]
    assert plain is not None
    assert (plain.value, plain.groups) == (result.value, None)
    assert plain.high - plain.low < 0.6 * (result.high - result.low)


def test_one_image_per_patient_changes_no_bit():
    random = np.random.default_rng(2)
    ours, base = frame(random.uniform(0, 90, 24)), frame(random.uniform(0, 90, 24))
    for name, plain in paired_difference(ours, base).items():
        result = paired_difference(ours.assign(group=NAMES[::-1]), base)[name]
        assert plain is not None
        assert result is not None
        assert (result.low, result.high, result.above) == (plain.low, plain.high, plain.above)


def test_one_patient_has_a_difference_but_no_interval():
    result = paired_difference(frame([2.0] * 24, ["P"] * 24), frame([1.0] * 24))["f1_plus"]
    assert result is not None
    assert (result.value, result.groups) == (pytest.approx(1.0), 1)
    assert np.isnan([result.low, result.high, result.above]).all()


def test_an_image_of_two_patients_is_refused(tmp_path):
    ours, base = frame([1.0] * 24, GROUPS), frame([1.0] * 24, ["P9", *GROUPS[1:]])
    with pytest.raises(InputError, match=r"^0-0: is of group P0 in one per_image\.csv and of group P9 in another"):
        paired_difference(ours, base)


def test_the_groups_of_a_row_are_those_of_any_cell_that_names_them(tmp_path):
    result = read_bench(bench(tmp_path, grouped=("gap",)))
    assert per_image(result.of(result.rows[0]))["group"].tolist() == GROUPS
    assert set(per_image(result.of(result.rows[1]))["group"]) == {""}
    mean = compare(result, best_baseline(result))["maxmin-sem"]["f1_mean"]
    assert mean is not None
    assert mean.groups == 6


@pytest.mark.parametrize(
    ("grouped", "groups", "said"),
    [
        (("gap", "maxmin-sem"), GROUPS, "over 6 groups (patients, slides), all images of a group together (2000"),
        ((), GROUPS, "over images (per_image.csv names no groups) (2000"),
        (("gap",), ["", *GROUPS[1:]], "of a group together; images without a group are groups of their own (2000"),
    ],
)
def test_the_footnote_says_what_was_resampled(tmp_path, grouped, groups, said):
    folder = bench(tmp_path, grouped, groups)
    assert said in " ".join(benchmark_table(read_bench(folder)).general)
    page = " ".join(write_benchmark_report(folder).read_text("utf-8").split())
    assert page.count(said.removesuffix(" (2000")) == 2
    assert "bootstrap over images." not in page


def test_rows_without_groups_are_named(tmp_path):
    folder = bench(tmp_path)
    settings = json.loads((folder / "benchmark.json").read_text())
    (folder / "benchmark.json").write_text(json.dumps(settings | {"rows": ["gap", "lse", "maxmin-sem"]}))
    write_cell(folder, "lse", 0, 0, {"elsewhere": 40.0, "too": 42.0}, {"elsewhere": 40.0, "too": 42.0})
    path = folder / "cells" / "gap" / "fold0-seed0" / "evaluation" / "valid" / "per_image.csv"
    both = pd.concat(
        [pd.read_csv(path), pd.DataFrame({"name": ["elsewhere", "too"], "f1_plus": 50.0, "f1_minus": 50.0})]
    )
    both.to_csv(path, index=False)
    message = "over 6 groups (patients, slides), all images of a group together; over images for CAM-LSE, whose"
    assert message in " ".join(benchmark_table(read_bench(folder)).general)


def test_a_difference_without_interval_is_shown_without_one(tmp_path):
    folder = bench(tmp_path, groups=["P"] * 24)
    (line,) = [line for line in benchmark_table(read_bench(folder)).rows if line.title == "Max-min (SEM)"]
    assert [(e.text, e.spread) for e in line.cells if e.text.startswith("+")] == [("+4.00", "")]
    page = write_benchmark_report(folder).read_text("utf-8")
    assert "+4.00 points against GAP on the images that both have (no interval: too few images or groups)." in page
    assert "nan" not in page.split("<body>")[1].split("base64")[0]


def test_results_name_what_was_resampled_and_every_class(tmp_path):
    folder = bench(tmp_path)
    path = folder / "cells" / "gap" / "fold0-seed0" / "evaluation" / "valid" / "metrics.json"
    content = json.loads(path.read_text())
    estimate = {"value": -4.0, "low": -20.0, "high": 10.0, "n": 24, "groups": 6}
    content["metrics"] |= {"resampled": "groups", "groups": 6, "notes": [], "kappa": estimate}
    content["metrics"] |= {"precision": {"plus": estimate | {"value": 30.0}}, "class_f1": {"plus": estimate}}
    path.write_text(json.dumps(content))
    new, old = results_frame(read_bench(folder)).to_dict("records")
    assert (new["resampled"], new["image_groups"], old["resampled"]) == ("groups", 6, "images")
    assert (new["kappa"], new["kappa_low"], new["precision_plus"], new["class_f1_plus"]) == (-4.0, -20.0, 30.0, -4.0)
    assert new["f1_plus"] == 50.0


def test_pxap_over_the_images_with_roi_stands_beside_that_over_all(tmp_path):
    folder = bench(tmp_path)
    plain = [text for _, text in benchmark_table(read_bench(folder)).headings]
    path = folder / "cells" / "gap" / "fold0-seed0" / "evaluation" / "valid" / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"] |= {"pxap_with_roi": {"value": 71.0, "low": None, "high": None, "n": 4}}
    content["metrics"] |= {"pxap_images_without_roi": 20}
    path.write_text(json.dumps(content))
    table = benchmark_table(read_bench(folder))
    assert [text for _, text in table.headings if text not in plain] == ["PxAP, images with ROI"]
    assert "71.00" in [cell.text for cell in table.rows[0].cells]
    assert "known, 20 of them without ROI" in " ".join(table.general)
