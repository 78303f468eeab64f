import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from histoloc.errors import InputError
from histoloc.report import write_report
from histoloc.report.html import flatten


def page_of(runs, tmp_path):
    return write_report(runs, tmp_path / "out" / "report.html", title="Glands <1>").read_text("utf-8")


def edit_images(run, **columns):
    path = run / "evaluation" / "test" / "per_image.csv"
    pd.read_csv(path).assign(**columns).to_csv(path, index=False)


def test_the_page_shows_numbers_pictures_and_settings(runs, tmp_path):
    page = page_of(runs, tmp_path)
    assert "<h1>Glands &lt;1&gt;</h1>" in page
    assert "Published: Table I &lt;a&gt;." in page
    for text in (
        "16.67",
        "<b>70.00</b>",
        "[60.0, 81.0]",
        "71.94",
        "options.sigma.start",
        "p = 0.88",
        "(wrong)",
    ):
        assert text in page
    assert page.count("data:image/jpeg") == 5 * (2 + 2 * 2)
    assert page.count("data:image/svg+xml") == 4
    assert "train: size, total" in page
    assert "never" not in re.findall(r'alt="Curves[^"]*"', page)[1]


def test_the_page_needs_nothing_but_itself(runs, tmp_path):
    page = page_of(runs, tmp_path)
    assert not re.search(r"https?://", page)
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "url(" not in page
    assert all('alt="' in tag and 'alt=""' not in tag for tag in re.findall(r"<img[^>]*>", page))


def test_the_same_runs_give_the_same_page(runs, tmp_path):
    assert page_of(runs, tmp_path) == page_of(runs, tmp_path)


def test_missing_pieces_leave_a_page(runs, tmp_path):
    first, second = runs
    (first / "log.csv").unlink()
    shutil.rmtree(first / "model")
    shutil.rmtree(second / "evaluation" / "test" / "images")
    edit_images(first, mask="", f1_plus=None, f1_minus=None)
    edit_images(second, file="")
    page = page_of(runs, tmp_path)
    assert "second kept no maps on test" in page
    assert "no expert outline is known" in page
    assert page.count("data:image/jpeg") == 5 * 2  # image and heatmap


def test_null_metrics_are_dashes(runs, tmp_path):
    path = runs[0] / "evaluation" / "test" / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"] = {"cl_error": {"value": None, "low": None, "high": None, "n": 0}}
    content["threshold"] = {"rule": "otsu", "value": None}
    path.write_text(json.dumps(content))
    page = page_of(runs[:1], tmp_path)
    assert page.count("<td >–</td>") == 6
    assert "Cl. error" not in page, "no model says a class"
    assert "per image (otsu)" in page


def test_an_unreadable_picture_is_said_not_hidden(runs, tmp_path):
    (tmp_path / "data" / "3.png").write_bytes(b"no picture")
    assert "The image 3.png could not be read." in page_of(runs, tmp_path)


def test_a_run_without_evaluation_shows_its_curves(runs, tmp_path):
    shutil.rmtree(runs[0] / "evaluation")
    (runs[0] / "metrics.json").unlink()
    page = page_of(runs[:1], tmp_path)
    assert "Nothing was evaluated yet" in page
    assert page.count("data:image/svg+xml") == 2


def test_a_broken_metrics_file_is_named(runs, tmp_path):
    (runs[1] / "evaluation" / "test" / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"second.evaluation.test.metrics\.json"):
        page_of(runs, tmp_path)


def test_flatten():
    nested = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": None}
    assert flatten(nested) == [("a.b", "1"), ("a.c", "none"), ("d", "1, 2"), ("e", "none")]


def test_the_report_does_not_load_torch():
    code = "import sys, histoloc.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
