"""A model, or anybody's heatmaps, against a table: closed forms, and the same numbers by every way."""

import dataclasses
import json
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from histoloc.cli.main import main
from histoloc.data.images import read_image, read_map, read_mask
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.evaluation import evaluate, run_evaluation, summary_line
from histoloc.localization_files import predict as predict_files
from histoloc.metrics import dice
from histoloc.metrics.summary import Metrics
from histoloc.options import EvaluationOptions
from histoloc.prediction import load


def run(source: Path, table: Path, out: Path, **options) -> Metrics:
    return evaluate(source, table, out=out, device="cpu", progress=False, **options)


def truth(table: Path, split: str = "test") -> dict[str, np.ndarray]:
    return {s.image.stem: read_mask(cast(Path, s.mask)) for s in read_table(table).split(split)}


def write_maps(folder: Path, maps: dict[str, np.ndarray], kind: str) -> Path:
    """Write maps in [0, 1] as a foreign tool would."""
    folder.mkdir(exist_ok=True)
    for stem, roi in maps.items():
        if kind == "npy":
            np.save(folder / f"{stem}.npy", roi)
        elif kind == "float tif":
            tifffile.imwrite(folder / f"{stem}.tif", roi.astype(np.float32))
        elif kind == "16-bit png":
            Image.fromarray(np.rint(roi * 65535).astype(np.uint16)).save(folder / f"{stem}.png")
        else:
            Image.fromarray(np.rint(roi * 255).astype(np.uint8)).save(folder / f"{stem}.png")
    return folder


@pytest.fixture(scope="module")
def graded(tiny_table) -> dict[str, np.ndarray]:
    """Maps of 16-bit values that are neither right nor wrong altogether."""
    rng = np.random.default_rng(0)
    noise = {stem: 0.3 * mask + 0.7 * rng.random(mask.shape) ** 0.5 for stem, mask in truth(tiny_table).items()}
    return {stem: (np.rint(roi * 65535) / 65535).astype(np.float32) for stem, roi in noise.items()}


# --- closed forms ---


def test_all_ones_scores_the_closed_form(allones_run, tiny_table, tmp_path):
    shares = [mask.mean() for mask in truth(tiny_table).values()]
    metrics = run(allones_run, tiny_table, tmp_path / "out")
    assert metrics.f1_plus.value == pytest.approx(100 * np.mean([2 * p / (1 + p) for p in shares]))
    assert metrics.f1_minus.value == 0
    assert metrics.pxap.value == pytest.approx(100 * np.mean(shares)), "all images have one size"
    assert metrics.cl_error.value is None
    assert summary_line(metrics).startswith("4 images: Cl. error –, F1+ ")
    assert "specificity" not in summary_line(metrics)


def test_the_truth_as_heatmaps_scores_hundred(tiny_table, tmp_path):
    folder = write_maps(tmp_path / "maps", {k: m.astype(np.float32) for k, m in truth(tiny_table).items()}, "npy")
    metrics = run(folder, tiny_table, tmp_path / "out")
    assert [e.value for e in (metrics.f1_plus, metrics.f1_minus, metrics.pxap)] == [100, 100, 100]
    assert [e.n for e in (metrics.f1_plus, metrics.f1_minus, metrics.pxap)] == [4, 4, 4]
    turned = write_maps(tmp_path / "turned", {k: 1.0 - m for k, m in truth(tiny_table).items()}, "npy")
    metrics = run(turned, tiny_table, tmp_path / "out2")
    assert [e.value for e in (metrics.f1_plus, metrics.f1_minus)] == [0, 0]


def test_the_threshold_cuts_where_it_says(tiny_table, graded, tmp_path):
    folder = write_maps(tmp_path / "maps", graded, "npy")
    for t in (0.3, 0.5, 0.7):
        metrics = run(folder, tiny_table, tmp_path / f"out{t}", threshold=t)
        expected = np.mean([dice(graded[k] >= np.float32(t), mask) for k, mask in truth(tiny_table).items()])
        assert metrics.f1_plus.value == pytest.approx(expected)
        written = json.loads((tmp_path / f"out{t}" / "metrics.json").read_text())
        assert written["threshold"] == {"rule": "given", "value": t}


# --- files ---


def test_what_an_evaluation_writes(gap_run, tiny_table, tmp_path):
    out = tmp_path / "out"
    metrics = run(gap_run, tiny_table, out, maps=2)
    written = json.loads((out / "metrics.json").read_text())
    assert written["metrics"] == json.loads(json.dumps(metrics.to_dict()))
    known = {
        "method": "gap", "run": "gap", "table": "table.csv", "split": "test", "fold": None, "n_images": 4,
        "threshold": {"rule": "fixed", "value": 0.5}, "uses_masks": [],
    }  # fmt: skip
    assert written.items() >= known.items()
    rows = pd.read_csv(out / "per_image.csv", dtype=str, keep_default_na=False)
    samples = {s.name: s for s in read_table(tiny_table).split("test")}
    assert set(rows["name"]) == set(samples)
    predictor = load(gap_run, "cpu")
    for row in rows.to_dict("records"):
        sample, result = samples[row["name"]], predictor.predict(out / row["image"])
        assert (row["label"], (out / row["mask"]).resolve()) == (sample.label, sample.mask)
        assert row["predicted"] == result.label
        assert float(row["roi_fraction"]) == pytest.approx(result.roi_fraction)
        assert float(row["f1_plus"]) == pytest.approx(float(dice(result.mask, read_mask(cast(Path, sample.mask)))))
    rest = rows.loc[rows["file"] != "", ["file", "image"]]
    assert len(rest) == 2
    assert len(list((out / "images").iterdir())) == 4
    for file, image in rest.itertuples(index=False):
        result = predictor.predict(out / image)
        np.testing.assert_allclose(read_map(out / "images" / f"{file}_map.png"), result.roi, atol=0.5 / 255 + 1e-6)
        np.testing.assert_array_equal(read_mask(out / "images" / f"{file}_mask.png"), result.mask)


def test_evaluations_are_kept_apart_and_the_runs_own_numbers_stay(tiny_flags, tiny_table, tmp_path, capsys):
    out = tmp_path / "run"
    main(["train", "gap", *tiny_flags(out=out, epochs=1, seed=3)])
    own = (out / "metrics.json").read_bytes()
    assert own == (out / "evaluation" / "valid" / "metrics.json").read_bytes()
    other = tmp_path / "other.csv"
    rows = pd.read_csv(tiny_table, dtype=str, keep_default_na=False)
    for column in ("image", "mask"):
        rows[column] = [str(tiny_table.parent / cell) for cell in rows[column]]
    rows[rows["split"] != "test"].assign(split="test").to_csv(other, index=False)
    common = ["evaluate", str(out), "--device", "cpu", "--data"]
    for flags in ([], ["--threshold", "0.4"], ["--range", "image"], ["--class", "benign"], ["--empty-class", "benign"]):
        main([*common, str(tiny_table), *flags])
    main([*common, str(other)])
    rows[rows["split"] == "test"].to_csv(other, index=False)  # the same name, other content
    main([*common, str(other)])
    names = {
        "test",
        "test-threshold0.4",
        "test-image",
        "test-map-benign",
        "test-empty-benign",
        "other-test",
        "other-test-2",
    }
    assert {p.name for p in (out / "evaluation").iterdir()} == names | {"valid"}
    assert (out / "metrics.json").read_bytes() == own
    written = {n: json.loads((out / "evaluation" / n / "metrics.json").read_text()) for n in names}
    assert written["other-test"]["n_images"] == 16
    assert [written[n]["range"] for n in ("test", "test-image")] == ["learned", "image"]
    assert written["test"]["per_image_rule"]["f1_plus"]["value"] == pytest.approx(
        written["test-image"]["metrics"]["f1_plus"]["value"]
    )
    assert f"written: {out / 'evaluation' / 'test-map-benign'}" in capsys.readouterr().out
    stale = out / "evaluation" / "test" / "images" / "99999_old_map.png"
    stale.write_bytes(b"of an earlier call")
    main([*common, str(tiny_table)])  # the same once more takes its own place
    assert not stale.exists()
    assert len(list((out / "evaluation").iterdir())) == len(names) + 1
    with pytest.raises(SystemExit, match="2"):
        main([*common, str(other), "--out", str(out / "evaluation" / "test")])
    assert "has the evaluation of another table, model or option" in capsys.readouterr().err


def test_what_learns_nothing_stands_beside(gap_run, allones_run, tiny_table, tmp_path, capsys):
    evaluated = run_evaluation(gap_run, tiny_table, EvaluationOptions(device="cpu"), out=tmp_path / "a", progress=False)
    written = json.loads((tmp_path / "a" / "metrics.json").read_text())
    alone = run(allones_run, tiny_table, tmp_path / "b")
    assert written["floors"]["allones"]["f1_plus"] == pytest.approx(alone.f1_plus.value)
    assert written["floors"]["stain"]["pxap"] > 60
    assert evaluated.lines[1].startswith("beside it, learning nothing: All-ones F1+ ")
    assert any(line.startswith("note: Stain (per image), which learns nothing, has ") for line in evaluated.lines)


def test_masks_of_the_class_without_roi_are_overruled_aloud(gap_run, tiny_table, tmp_path):
    options = EvaluationOptions(empty_class="benign", device="cpu")
    evaluated = run_evaluation(gap_run, tiny_table, options, out=tmp_path / "a", progress=False)
    plain = run(gap_run, tiny_table, tmp_path / "b")
    assert (evaluated.metrics.f1_plus.n, plain.f1_plus.n) == (2, 4)
    assert evaluated.metrics.specificity_without_roi.value is not None
    assert "note: 2 images of the class without ROI have masks with ROI" in "\n".join(evaluated.lines)


# --- one answer by every way ---


@pytest.mark.parametrize("kind", ["float tif", "16-bit png"])
def test_heatmaps_give_the_same_numbers_in_every_format(tiny_table, graded, tmp_path, kind):
    expected = run(write_maps(tmp_path / "npy", graded, "npy"), tiny_table, tmp_path / "a")
    assert run(write_maps(tmp_path / "other", graded, kind), tiny_table, tmp_path / "b") == expected
    assert 20 < cast(float, expected.pxap.value) < 100


@pytest.mark.parametrize("name", ["gap_run", "maxmin_run"])
def test_predict_then_evaluate_the_files_equals_evaluating_the_model(name, request, tiny_table, tmp_path):
    model, samples = request.getfixturevalue(name), read_table(tiny_table).split("test")
    predict_files(model, [s.image for s in samples], tmp_path / "predicted", device="cpu", progress=False)
    of_files = run(tmp_path / "predicted", tiny_table, tmp_path / "a")
    of_model = run(model, tiny_table, tmp_path / "b")
    assert of_files.cl_error == of_model.cl_error
    assert of_files.confusion == of_model.confusion
    for key in ("f1_plus", "f1_minus", "pxap"):
        assert getattr(of_files, key).value == pytest.approx(getattr(of_model, key).value, abs=1), key


def test_one_answer_from_path_array_and_evaluation(maxmin_run, tiny_table, tmp_path):
    predictor, probabilities, scores = load(maxmin_run, "cpu"), [], []
    for sample in read_table(tiny_table).split("test"):
        by_path, by_array = predictor.predict(sample.image), predictor.predict(read_image(sample.image))
        np.testing.assert_array_equal(by_path.roi, by_array.roi)
        np.testing.assert_array_equal(np.asarray(by_path.probabilities), np.asarray(by_array.probabilities))
        probabilities.append(np.asarray(by_path.probabilities))
        scores.append(dice(by_path.mask, read_mask(cast(Path, sample.mask))))
    metrics = run(maxmin_run, tiny_table, tmp_path / "out")
    rows = pd.read_csv(tmp_path / "out" / "per_image.csv").set_index("name")
    order = [s.name for s in read_table(tiny_table).split("test")]
    np.testing.assert_allclose(rows.loc[order, ["prob_benign", "prob_malignant"]], probabilities, rtol=1e-6)
    assert metrics.f1_plus.value == pytest.approx(np.mean(scores))


def test_predictions_csv_gives_the_classification_error(tiny_table, graded, tmp_path):
    folder = write_maps(tmp_path / "maps", graded, "npy")
    assert run(folder, tiny_table, tmp_path / "none").cl_error.value is None
    samples = read_table(tiny_table).split("test")
    items = [s.label for s in samples]
    items[0] = "malignant" if items[0] == "benign" else "benign"
    rows = pd.DataFrame({"image": [s.image.name for s in samples], "class": items})
    rows.to_csv(folder / "predictions.csv", index=False)
    assert run(folder, tiny_table, tmp_path / "some").cl_error.value == 25.0


# --- the table ---


def with_folds(table: Path, to: Path) -> Path:
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    rows["fold"] = ["" if s == "test" else str(i // 2 % 2) for i, s in enumerate(rows["split"])]
    rows["split"] = rows["split"].replace("valid", "train")
    for column in ("image", "mask"):
        rows[column] = [str(table.parent / cell) for cell in rows[column]]
    rows.to_csv(to, index=False)
    return to


def test_the_fold_is_that_of_training_where_the_table_has_it(tiny, tiny_table, tmp_path):
    from histoloc.training import train

    folds = with_folds(tiny_table, tmp_path / "folds.csv")
    config = dataclasses.replace(tiny("gap", folds, epochs=1), fold=1)
    out = train(config, tmp_path / "run", progress=False)
    run(out, folds, tmp_path / "a", split="valid")
    written = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert (written["fold"], written["n_images"]) == (1, 8)
    run(out, tiny_table, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["fold"] is None


def test_images_of_the_empty_class_need_no_mask(tiny, tiny_table, tmp_path):
    from histoloc.training import train

    rows = pd.read_csv(tiny_table, dtype=str, keep_default_na=False)
    rows.loc[rows["label"] == "benign", "mask"] = ""
    for column in ("image", "mask"):
        rows[column] = [str(tiny_table.parent / cell) if cell else "" for cell in rows[column]]
    rows.to_csv(tmp_path / "table.csv", index=False)
    config = tiny("maxmin", tmp_path / "table.csv", epochs=1, options={"normalisation": "none"}, monitor="masks")
    config = dataclasses.replace(config, empty_class="benign")
    out = train(config, tmp_path / "run", progress=False)
    metrics = run(out, tmp_path / "table.csv", tmp_path / "out")
    assert (metrics.f1_plus.n, metrics.f1_minus.n) == (2, 4)
    log, again = pd.read_csv(out / "log.csv"), run(out, tmp_path / "table.csv", tmp_path / "valid", split="valid")
    assert log["valid/f1_minus"][0] == pytest.approx(again.f1_minus.value)


def test_two_images_that_would_share_a_heatmap_are_not_measured(tiny_table, graded, tmp_path):
    rows = pd.read_csv(tiny_table, dtype=str, keep_default_na=False)
    for column in ("image", "mask"):
        rows[column] = [str(tiny_table.parent / cell) for cell in rows[column]]
    test = rows.index[rows["split"] == "test"]
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / Path(str(rows.loc[test[0], "image"])).name
    twin.write_bytes(Path(str(rows.loc[test[1], "image"])).read_bytes())
    rows.loc[test[1], "image"] = str(twin)
    rows.to_csv(tmp_path / "table.csv", index=False)
    folder = write_maps(tmp_path / "maps", graded, "npy")
    run(folder, tmp_path / "table.csv", tmp_path / "out")
    failed = json.loads((tmp_path / "out" / "metrics.json").read_text())["failed"]
    assert list(failed) == list(rows.loc[test[:2], "image"])
    assert all("is also the heatmap of" in reason for reason in failed.values())


def test_images_of_the_empty_class_have_no_roi_without_a_mask_file(gap_run, tiny_table, tmp_path):
    rows = pd.read_csv(tiny_table)
    rows["image"] = [str(tiny_table.parent / name) for name in rows["image"]]
    rows["mask"] = [
        "" if label == "benign" else str(tiny_table.parent / name)
        for label, name in zip(rows["label"], rows["mask"], strict=True)
    ]
    rows.to_csv(tmp_path / "t.csv", index=False)
    unknown = evaluate(gap_run, tmp_path / "t.csv", out=tmp_path / "a", progress=False)
    known = evaluate(gap_run, tmp_path / "t.csv", out=tmp_path / "b", empty_class="benign", progress=False)
    assert unknown.specificity_without_roi.value is None
    assert ", specificity without ROI " in summary_line(known)
    items = [json.loads((tmp_path / out / "metrics.json").read_text())["empty_class"] for out in ("a", "b")]
    assert items == [None, "benign"]
    images = pd.read_csv(tmp_path / "b" / "per_image.csv")
    outside = 1 - images.loc[images["label"] == "benign", "roi_fraction"].mean()
    assert known.specificity_without_roi.value == pytest.approx(100 * outside)
    assert known.f1_plus.n == unknown.f1_plus.n
    assert known.f1_minus.n == unknown.f1_minus.n + 2
    with pytest.raises(InputError, match=r"--empty-class 'normal' is not a class"):
        evaluate(gap_run, tmp_path / "t.csv", out=tmp_path / "c", empty_class="normal", progress=False)
