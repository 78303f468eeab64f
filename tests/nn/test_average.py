"""The running average: by hand, of weights and of statistics."""

import pytest
import torch
from torch import nn

from histoloc.nn.average import Average, averaged


def network(weight: float = 1.0) -> nn.Sequential:
    linear, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1)
    nn.init.constant_(linear.weight, weight)
    return nn.Sequential(linear, norm)


def weight(average: Average) -> float:
    return float(average.module.state_dict()["0.weight"])


def test_weights_follow_by_hand():
    average, trained = Average(network(5), 0.9), network(1)
    average.update(trained)
    assert weight(average) == 1, "the first one, whatever it was made from"
    for value, expected in ((2.0, 0.9 * 1 + 0.1 * 2), (0.0, 0.9 * 1.1)):
        nn.init.constant_(trained.get_parameter("0.weight"), value)
        average.update(trained)
        assert weight(average) == pytest.approx(expected)
    assert trained.get_parameter("0.weight").item() == 0


def test_statistics_follow_the_module_or_not():
    trained = network()
    for statistics, expected in ((True, 0.9 * 0.0 + 0.1 * 3.0), (False, 0.0)):
        average = Average(network(), 0.9)
        average.update(trained, statistics=statistics)
        trained[1].running_mean = torch.tensor([3.0])
        average.update(trained, statistics=statistics)
        assert float(average.module.state_dict()["1.running_mean"]) == pytest.approx(expected)
        trained[1].running_mean = torch.tensor([0.0])


def test_statistics_follow_images_first_quickly():
    average = Average(network(), 0.9)
    images = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    mean = 0.0
    for call in range(60):
        average.follow(lambda: average.module(images))
        share = max(0.02, 1 / (call + 2))
        mean = (1 - share) * mean + share * 2
        assert float(average.module.state_dict()["1.running_mean"]) == pytest.approx(mean, rel=1e-4)
    before = average.module(images)
    assert torch.equal(average.module(images[:1]), before[:1]), "in eval mode again"


def test_it_is_never_trained():
    average = Average(network(), 0.9)
    nn.ModuleList([average]).train()
    assert not any(module.training for module in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_averaged_weights_take_the_place_of_the_others():
    method = nn.Module()
    method.backbone = network(1)
    method.head = nn.Linear(1, 1)
    method.average = Average(nn.ModuleDict({"backbone": network(2)}), 0.9)
    state = averaged(method.state_dict())
    assert set(state) == {name for name in method.state_dict() if not name.startswith("average.")}
    assert float(state["backbone.0.weight"]) == 2
    assert torch.equal(state["head.weight"], method.head.weight)
