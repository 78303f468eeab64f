"""Fixtures that every folder of tests shares."""

import contextvars
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported, here and in the processes that tests start: tiny networks are fastest on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test fails because the machine is busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

BACKBONE = "test_efficientnet_ln"  # 82,300 parameters, and no batch normalisation: images do not see each other
TINY: dict[str, dict[str, Any]] = {
    "backbone": {"backbone": BACKBONE, "stride": 0, "weights": "none"},
    "input": {"small_side": 64, "crop": 64},
    "training": {"epochs": 2, "batch": 4, "lr": 0.01, "precision": "32-true", "accelerator": "cpu", "workers": 0},
}


@pytest.fixture
def another_call() -> Callable[[Path], AbstractContextManager[None]]:
    """Hold the lock of a folder as another call does: `with another_call(folder): ...`."""
    from histoloc.work_folder import locked

    @contextmanager
    def hold(folder: Path) -> Iterator[None]:
        elsewhere, lock = contextvars.Context(), locked(folder)
        elsewhere.run(lock.__enter__)
        try:
            yield
        finally:
            elsewhere.run(lock.__exit__, None, None, None)

    return hold


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: HISTOLOC_DATA, or `../shared/data` beside the checkout; skips where absent."""
    folder = Path(os.environ.get("HISTOLOC_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent and HISTOLOC_DATA does not name a folder")
    return folder


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 20 synthetic images of 96 x 64 px with masks: 12 train, 4 valid, 4 test; do not write beside it."""
    from histoloc.datasets.synthetic.dataset import synthetic_table

    return synthetic_table(out=tmp_path_factory.mktemp("tiny"), count=20, height=64, width=96).table


@pytest.fixture(scope="session")
def tiny(tiny_table: Path) -> Callable[..., Any]:
    """Make a run's configuration that trains in a fraction of a second: tiny("gap", epochs=3, options={...})."""
    from histoloc.config import run_config

    def make(method: str = "gap", data: Path = tiny_table, *, options: dict[str, Any] | None = None, **changes: Any):
        values: dict[str, Any] = {name: dict(section) for name, section in TINY.items()}
        backbone = changes.pop("backbone", BACKBONE)
        values["backbone"]["backbone"] = backbone
        values["input"] |= changes.pop("input", {})
        values["training"] |= changes
        return run_config({"method": method, "data": str(data), "options": options, **values}, where="test")

    return make


@pytest.fixture(scope="session")
def tiny_flags(tiny_table: Path) -> Callable[..., list[str]]:
    """The same on the command line: tiny_flags(epochs=3, out="run", kmax=0.5); None leaves a flag out."""

    def make(**changes: Any) -> list[str]:
        settings = {key: value for section in TINY.values() for key, value in section.items()}
        values = {"data": tiny_table, **settings, **changes}
        result = {key.replace("_", "-"): str(value) for key, value in values.items() if value is not None}
        return [text for key, value in result.items() for text in (f"--{key}", value)]

    return make


@pytest.fixture(scope="session")
def gap_run(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished GAP run; do not write into it."""
    from histoloc.training import train

    return train(tiny("gap"), tmp_path_factory.mktemp("runs") / "gap", progress=False)


@pytest.fixture(scope="session")
def maxmin_run(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished max-min run; do not write into it."""
    from histoloc.training import train

    return train(tiny("maxmin", epochs=3), tmp_path_factory.mktemp("runs") / "maxmin", progress=False)


@pytest.fixture(scope="session")
def allones_run(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An all-ones run; do not write into it."""
    from histoloc.training import train

    return train(tiny("allones"), tmp_path_factory.mktemp("runs") / "allones", progress=False)


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of priors with one, `discs`, in half precision: it looks at 1 µm/px, and its map is 0.88 everywhere."""
    import torch

    from histoloc.data.transforms import InputConfig
    from histoloc.model_folder import ModelConfig, build_method, save_images, save_model
    from histoloc.nn.backbone import BackboneConfig

    config = ModelConfig(
        "prior",
        (),
        backbone=BackboneConfig(BACKBONE, stride=0, weights="none"),
        input=InputConfig(small_side=0, crop=64, mpp=1.0),
        mpp=1.0,
        extent=(64, 96),
        shorter_side=64,
        provenance={"structure": "disc"},
    )
    method = build_method(config, load_backbone=False)
    weights = {n: v.half() if v.is_floating_point() else v for n, v in method.state_dict().items()}
    weights |= {"decoder.head.weight": torch.zeros(1, 64, 1, 1).half(), "decoder.head.bias": torch.tensor([2.0]).half()}
    folder = tmp_path_factory.mktemp("priors")
    save_model(folder / "discs", weights, config)
    save_images(folder / "discs", ())
    return folder


@pytest.fixture
def shipped(prior_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name, as if it came with histoloc."""
    from histoloc import model_folder

    monkeypatch.setattr(model_folder, "PRIORS", prior_folder)
    return "prior:discs"


@pytest.fixture
def scene(tmp_path: Path, tiny_table: Path, gap_run: Path, tiny_flags: Callable[..., list[str]]) -> Any:
    """A folder to make a mess in, with a table whose rows can be changed and a finished run to copy."""
    from scene import Scene

    return Scene(tmp_path, tiny_table, gap_run, tiny_flags)
