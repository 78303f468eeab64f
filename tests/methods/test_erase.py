"""ERASE: what a round mines, what the next one sees, and training in stages."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import build, noise

from histoloc.checkpoint import load_model
from histoloc.errors import InputError
from histoloc.files import atomic_path
from histoloc.methods.erase import Erase, mine
from histoloc.train import train


def erase(**options) -> Erase:
    method = build("erase", **options)
    assert isinstance(method, Erase)
    return method


def test_mine_by_hand():
    evidence = torch.tensor([[0.0, 2.0], [4.0, 8.0]]).view(1, 1, 2, 2)
    # u = 0, .25, .5, 1; the quantile 1 - 1/3 lies at .5.
    expected = torch.tensor([[0.0, 0.25], [0.5, 1.0]]).view(1, 1, 2, 2)
    torch.testing.assert_close(mine(evidence, 1 / 3), expected)


@given(st.floats(0.05, 0.95), st.integers(0, 1000))
def test_half_marks_the_mined_share(share, seed):
    evidence = torch.randn(2, 1, 20, 30, generator=torch.Generator().manual_seed(seed))
    found = mine(evidence, share)
    assert 0 <= found.min() <= found.max() <= 1
    for image in found:
        assert (image >= 0.5).float().mean().item() == pytest.approx(share, abs=2 / 600)
    order = evidence.flatten(1).argsort(dim=1)
    assert (found.flatten(1).gather(1, order).diff(dim=1) >= 0).all()


def test_nothing_is_mined_from_a_constant():
    assert not mine(torch.full((1, 1, 4, 4), 3.0), 0.2).any()


def test_erased_pixels_get_the_mean_colour():
    image = noise(1, 8, 8)
    fused = torch.zeros(1, 1, 8, 8)
    fused[..., :4] = 1
    erased = erase().erase(image, fused)
    torch.testing.assert_close(erased[..., 4:], image[..., 4:])
    torch.testing.assert_close(erased[..., :4], image.mean(dim=(2, 3), keepdim=True).expand(1, 3, 8, 4))


def test_fused_map_is_the_maximum_over_rounds():
    method, image = erase(rounds=2), noise(2, 64, 64)
    with torch.no_grad():
        first = method(image).roi
        method.enter_stage(1)
        fused = method(image).roi
        alone = method.rounds[1](method.erase(image, first))
        label = method(image).logits.argmax(dim=1)
        second = mine(alone[torch.arange(2), label][:, None], 0.2)
    assert not torch.equal(fused, first)
    torch.testing.assert_close(fused, torch.maximum(first, second))


def test_only_the_round_of_the_stage_learns():
    method = erase(rounds=3)
    method.enter_stage(1)
    method.train()
    for index, classifier in enumerate(method.rounds):
        assert all(p.requires_grad == (index == 1) for p in classifier.parameters())
    assert [classifier.training for classifier in method.rounds] == [False, True, True]


@pytest.mark.parametrize(("loss", "goes_on", "mined"), [(0.1, True, 2), (0.65, False, 1)])
def test_stop_rule(loss, goes_on, mined):
    method = erase(rounds=3, stop_loss=0.9)  # 0.9 log 2 = 0.62
    method.enter_stage(1)
    assert method.end_stage([{"train/classification": 9.0}, {"train/classification": loss}]) is goes_on
    assert int(method.mined) == mined


def test_the_first_round_always_counts():
    method = erase(rounds=2)
    assert method.end_stage([{"train/classification": 2 * math.log(2)}]) is False
    assert int(method.mined) == 1


@pytest.mark.parametrize("options", [{"rounds": 0}, {"erased_share": 0.0}, {"erased_share": 1.0}, {"stop_loss": 0.0}])
def test_bad_options(options):
    with pytest.raises(InputError, match="--rounds must be at least 1"):
        erase(**options)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    options = {"rounds": 3, "stop_loss": 100.0}
    return train(tiny("erase", options=options), tmp_path_factory.mktemp("erase") / "whole", progress=False)


def test_stages_in_the_log(whole):
    log = pd.read_csv(whole / "log.csv")
    assert log["epoch"].tolist() == list(range(6))
    assert log["stage"].tolist() == [0, 0, 1, 1, 2, 2]
    method, config = load_model(whole)
    assert isinstance(method, Erase)
    assert int(method.mined) == 3
    assert config.selection.epoch == 5  # later rounds have no error of their own: their last epoch


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5])
def test_resumed_at_any_epoch_has_the_same_bits(whole, tiny, tmp_path, epochs, monkeypatch):
    config, out = tiny("erase", options={"rounds": 3, "stop_loss": 100.0}), tmp_path / "run"
    writes = 0

    def stop(path):
        nonlocal writes
        if path.name == "log.csv":
            writes += 1
            if writes > epochs:
                raise KeyboardInterrupt
        return atomic_path(path)

    with monkeypatch.context() as patch:
        # By name histoloc.train is the function.
        patch.setattr(sys.modules["histoloc.train"], "atomic_path", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, out, progress=False)
    assert len(pd.read_csv(out / "log.csv")) == epochs
    train(config, out, resume=True, progress=False)
    assert (out / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    timeless = [c for c in pd.read_csv(whole / "log.csv") if "seconds" not in str(c)]
    np.testing.assert_array_equal(pd.read_csv(out / "log.csv")[timeless], pd.read_csv(whole / "log.csv")[timeless])


def test_epochs_cannot_change_between_stages(tiny, tmp_path):
    config, out = tiny("erase", options={"rounds": 2, "stop_loss": 100.0}, epochs=1), tmp_path / "run"
    train(config, out, progress=False)
    with pytest.raises(InputError, match="--epochs cannot change between two stages"):
        train(tiny("erase", options={"rounds": 2, "stop_loss": 100.0}, epochs=2), out, resume=True, progress=False)


def test_a_round_that_learns_nothing_ends_the_mining(tiny, tmp_path):
    run = train(tiny("erase", options={"rounds": 3, "stop_loss": 1e-6}), tmp_path / "run", progress=False)
    assert len(pd.read_csv(run / "log.csv")) == 2
    method, _ = load_model(run)
    assert isinstance(method, Erase)
    assert int(method.mined) == 1
