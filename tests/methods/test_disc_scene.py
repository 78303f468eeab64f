"""Where the best map is known, max-min finds more of it than every class activation map does."""

import numpy as np
import pytest

from histoloc.config import run_config
from histoloc.datasets.synthetic.dataset import synthetic_table
from histoloc.evaluation import evaluate
from histoloc.methods import METHODS
from histoloc.training import train

CAMS = ("gap", "maxpool", "lse", "wildcat", "gradcam")


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Classification error, F1⁺ and F1⁻ on the test images, by method."""
    folder = tmp_path_factory.mktemp("discs")
    table = synthetic_table(out=folder / "data", count=100, height=128, width=160, scene="disc").table
    result = {}
    for name in (*CAMS, "maxmin"):
        config = run_config(
            {
                "method": name,
                "data": str(table),
                "input": {"small_side": 128, "crop": 112},
                "training": {
                    "epochs": 15,
                    "batch": 8,
                    "lr": min(1e-2, METHODS[name].highest_lr),
                    "selection": "error-latest",
                },
            },
            where="test",
        )
        run = train(config, folder / name, progress=False)
        metrics = evaluate(run, table, split="test", progress=False)
        result[name] = np.array([getattr(metrics, key).value for key in ("cl_error", "f1_plus", "f1_minus")])
    return result


@pytest.mark.slow
def test_maxmin_exceeds_every_class_activation_map(scores):
    assert scores["maxmin"][0] <= 5
    for name in CAMS:
        assert (scores["maxmin"][1:] > scores[name][1:]).all(), (name, scores)
