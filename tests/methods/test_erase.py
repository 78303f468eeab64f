"""ERASE: what a round mines, what the next one sees, and training in stages."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import answer, build, noise, noise_batch
from torch import Tensor

from histoloc.errors import InputError
from histoloc.maps import class_map, place
from histoloc.methods.erase import Erase, Round, mine
from histoloc.model_folder import load_model
from histoloc.training import train
from histoloc.work_folder import atomic_path


def erase(**options) -> Erase:
    method = build("erase", **options)
    assert isinstance(method, Erase)
    return method


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def share(mined: Tensor) -> float:
    """Of the positions that are mined."""
    return (mined >= 0.5).float().mean().item()


# --- which positions a round mines ---


def test_mine_by_hand():
    evidence = torch.tensor([[0.0, 2.0], [4.0, 8.0]]).view(1, 1, 2, 2)
    # u = 0, .25, .5, 1; the quantile 1 - 1/3 lies at .5.
    expected = torch.tensor([[0.0, 0.25], [0.5, 1.0]]).view(1, 1, 2, 2)
    torch.testing.assert_close(mine(evidence, 1 / 3), expected)


@given(st.floats(0.05, 0.95), st.integers(0, 1000), st.tuples(st.integers(1, 23), st.integers(1, 31)))
def test_half_marks_the_mined_share(wanted, seed, size):
    evidence = random(2, 1, *size, seed=seed)
    mined = mine(evidence, wanted)
    assert 0 <= mined.min() <= mined.max() <= 1
    for image in mined if evidence[0].numel() > 1 else ():
        assert share(image) == pytest.approx(wanted, abs=2 / image.numel())  # two values may tie by chance
    order = evidence.flatten(1).argsort(dim=1)
    assert (mined.flatten(1).gather(1, order).diff(dim=1) >= 0).all()


@pytest.mark.parametrize("level", [-9.0, -0.5, 0.0, 0.7, 1.2])
def test_a_tie_over_much_of_the_image_is_left_out_whole(level):
    # Glass over 73 % of a patch: its one value lay at the border and was mined whole, 73 % instead of 20 %.
    evidence = random(1, 1, 30, 40)
    evidence.view(-1)[:876] = level
    mined = mine(evidence, 0.2)
    higher = (evidence > level).float().mean().item()
    assert share(mined) == pytest.approx(min(higher, 0.2), abs=1 / 1200)
    assert share(mined.view(-1)[:876]) == 0
    order = evidence.view(-1).argsort()
    assert (mined.view(-1)[order].diff() >= -1e-6).all()


@given(st.floats(0.05, 0.95), st.integers(0, 1000), st.integers(1, 6), st.floats(0, 3e-7))
def test_never_more_than_the_share_whatever_is_tied(wanted, seed, levels, jitter):
    # A few levels, each of them one value up to float32 rounding.
    evidence = (random(1, 1, 9, 13, seed=seed) * levels / 2).round() + jitter * random(1, 1, 9, 13, seed=seed + 1)
    assert share(mine(evidence, wanted)) <= wanted + 1 / 117


def test_nothing_is_mined_where_the_highest_are_tied_or_all_are():
    assert not mine(torch.full((1, 1, 4, 4), 3.0), 0.2).any()
    assert not mine(torch.full((1, 1, 13, 13), 0.1) + 1e-9 * random(1, 1, 13, 13), 0.2).any()
    at_the_top = torch.zeros(1, 1, 5, 5)
    at_the_top[..., 1:] = 1
    mined = mine(at_the_top, 0.2)
    assert share(mined) == 0
    assert mined[..., 1:].min() > mined[..., :1].max()


# --- what the next round sees, and the map ---


def second_stage(**options) -> Erase:
    """Two rounds, the second of which is trained."""
    method = erase(rounds=2, **options)
    method.enter_stage(1)
    return method


def test_erased_pixels_get_the_mean_colour():
    image, mined = noise(1, 8, 8), torch.zeros(1, 1, 8, 8)
    mined[..., :4] = 1
    erased = erase().erase(image, mined)
    torch.testing.assert_close(erased[..., 4:], image[..., 4:])
    torch.testing.assert_close(erased[..., :4], image.mean(dim=(2, 3), keepdim=True).expand(1, 3, 8, 4))


def test_targets_are_what_the_earlier_rounds_mined():
    image = noise(3, 97, 131)
    assert erase().targets(image) is None, "the first round sees whole images"
    method = second_stage(erased_share=0.3)
    with torch.no_grad():
        targets, maps = method.targets(image), method.rounds[0](method.continued(image))
    assert targets is not None
    assert targets.shape == (3, 1, 97, 131)
    mined = mine(class_map(maps, maps.mean(dim=(2, 3)).argmax(dim=1)), 0.3)
    assert torch.equal(targets, (place(mined, 32, (97, 131)) >= 0.5).float())
    assert 0 < targets.mean() < 0.6


def test_targets_lie_where_they_do_in_an_image_of_another_size():
    # With padding by TensorFlow's rule they were 7 px off on GlaS, whose images are 641 px wide.
    method = erase(rounds=2, backbone="tf_efficientnet_lite0", stride=8)
    method.enter_stage(1)
    image = noise(1, 96, 161)
    with torch.no_grad():
        odd, whole = method.targets(image), method.targets(method.continued(image))
    assert odd is not None
    assert whole is not None
    assert whole.shape == (1, 1, 96, 168)
    assert torch.equal(odd, whole[..., :161])


def test_prepare_erases_the_targets_and_without_them_nothing():
    method, batch = second_stage(), noise_batch([0, 1])
    assert method.prepare(batch) is batch
    target = torch.zeros(2, 1, 64, 64)
    target[0, :, :20], target[1, ..., 50:] = 1, 1
    prepared = method.prepare(batch._replace(target=target))
    assert torch.equal(prepared.image, method.erase(batch.image, target))
    assert torch.equal(prepared.label, batch.label)


def test_in_training_a_round_sees_what_prepare_made_and_at_rest_every_round_runs():
    method, image = second_stage(), noise(2, 64, 64)
    with torch.no_grad():
        first = method.rounds[0](image)
        output = method(image)
        mined = place(mine(class_map(first, output.logits.argmax(dim=1)), 0.2), 32, (64, 64))
        second = method.rounds[1](method.erase(image, mined))
        method.train()
        method.rounds.eval()
        trained = method(image)
    torch.testing.assert_close(output.logits, first.mean(dim=(2, 3)))
    torch.testing.assert_close(output.terms["round"], second.mean(dim=(2, 3)))
    torch.testing.assert_close(output.evidence, torch.maximum(first, second))
    assert (output.evidence > first).any()
    torch.testing.assert_close(trained.evidence, method.rounds[1](image))
    torch.testing.assert_close(trained.terms["round"], trained.evidence.mean(dim=(2, 3)))


def test_the_papers_map_is_the_largest_over_the_rounds_whatever_class_is_asked_for():
    method, image = second_stage(), noise(2, 64, 96)
    with torch.no_grad():
        output = method.evidence(image)
        maps = [method.rounds[0](image)]
        label = output.logits.argmax(dim=1)
        mined = [mine(class_map(maps[0], label), 0.2)]
        erased = method.erase(image, place(mined[0], 32, (64, 96)))
        mined.append(mine(class_map(method.rounds[1](erased), label), 0.2))
    expected = place(torch.maximum(*mined), 32, (64, 96))
    torch.testing.assert_close(answer(method, image)[1], expected)
    assert torch.equal(
        method.image_map(output, output.evidence[:, :1], label),
        method.image_map(output, output.evidence[:, 1:], 1 - label),
    )
    assert not torch.equal(mined[0], output.terms["mined"])


def test_with_one_round_evidence_is_the_class_maps_and_a_tile_is_a_part_of_its_image():
    method, image = erase(), noise(2, 96, 96)
    with torch.no_grad():
        assert torch.equal(method.evidence(image).evidence, method.rounds[0](image))
    assert method.in_tiles == ""
    method.mined.fill_(2)
    assert "mined and erased in each tile" in method.in_tiles


# --- stages ---


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


@pytest.mark.parametrize(
    ("name", "value"), [("rounds", 0), ("erased_share", 0.0), ("erased_share", 1.0), ("stop_loss", 0.0)]
)
def test_bad_options(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value} is wrong"):
        erase(**{name: value})


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


def test_later_rounds_are_trained_on_erased_images(tiny, tmp_path, monkeypatch):
    seen: list[float] = []
    forward = Round.forward

    def watch(self, image):
        if self.training:
            colours = image[0].flatten(1).T
            seen.append((colours == colours.mode(dim=0).values).all(dim=1).float().mean().item())
        return forward(self, image)

    monkeypatch.setattr(Round, "forward", watch)
    config = tiny("erase", options={"rounds": 2, "stop_loss": 100.0, "erased_share": 0.4}, epochs=1)
    train(config, tmp_path / "run", progress=False)
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == len(second) == 3
    assert max(first) < 0.05, "share of the image that has one colour"
    assert 0.1 < np.mean(second) < 0.7


@pytest.mark.parametrize("epochs", [2, 5])  # between two stages, and within the last one
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
        patch.setattr(sys.modules["histoloc.training"], "atomic_path", stop)
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
