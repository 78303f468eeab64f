"""The learning rate, of every step and of every parameter."""

import pandas as pd
import pytest
import torch

from histoloc.config import TrainingConfig
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.model_folder import build_method
from histoloc.training import train
from histoloc.training_setup import describe
from histoloc.training_state import learning_rate, make_optimizer, set_learning_rate


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.1), (9, 0.1), (10, 0.09), (25, 0.081), (40, 0.06561)])
def test_learning_rate_steps(epoch, expected):
    training = TrainingConfig(lr=0.1, lr_factor=0.9, lr_every=10)
    assert learning_rate(training, epoch) == pytest.approx(expected)


def test_learning_rate_has_a_floor():
    assert learning_rate(TrainingConfig(lr=1e-3, lr_factor=0.1, lr_every=1, lr_floor=1e-5), 7) == 1e-5


@pytest.mark.parametrize(("epochs", "steps"), [(3, 7), (1, 100), (16, 21), (2, 1)])
def test_one_cycle_is_that_of_torch(epochs, steps):
    training = TrainingConfig(lr=0.02, schedule="one-cycle", epochs=epochs)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.02, total_steps=max(epochs * steps, 4), cycle_momentum=False
    )
    for epoch in range(epochs):
        for step in range(steps):
            if epochs * steps >= 4:
                assert learning_rate(training, epoch, step, steps) == pytest.approx(cycle.get_last_lr()[0], rel=1e-6)
            else:
                assert 0 < learning_rate(training, epoch, step, steps) <= 0.02
            optimizer.step()
            cycle.step()


def test_one_cycle_sets_the_rate_of_every_step_and_its_length_cannot_change(tiny, tmp_path, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))
    )
    config = tiny(schedule="one-cycle", epochs=2)
    out = train(config, tmp_path / "run", progress=False)
    expected = [learning_rate(config.training, epoch, step, 3) for epoch in range(2) for step in range(3)]
    assert rates == pytest.approx(expected)
    assert pd.read_csv(out / "log.csv")["lr"].tolist() == pytest.approx([expected[0], expected[3]])
    with pytest.raises(InputError, match=r"other settings \(epochs of one-cycle was 2 and is 3\)"):
        train(tiny(schedule="one-cycle", epochs=3), out, resume=True, progress=False)


def test_heads_learn_at_their_own_rate_and_every_parameter_once(tiny):
    config = tiny("gap", head_lr=10.0, lr_every=1)
    method = build_method(describe(config, read_table(config.data))[0], load_backbone=True)
    optimizer = make_optimizer(method, config.training)
    set_learning_rate(optimizer, config.training, 2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(rates) == len(list(method.parameters()))
    for name, parameter in method.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.01 * 0.9**2 * (10 if name.startswith("head") else 1)), name
