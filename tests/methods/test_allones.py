import torch
from small import build, noise


def test_roi_everywhere_and_no_class():
    method = build("allones")
    found = method.localize(noise(2, 33, 47))
    assert torch.equal(found.roi, torch.ones(2, 1, 33, 47))
    assert torch.equal(found.probabilities, torch.full((2, 2), 0.5))
    assert not list(method.parameters())
    assert not type(method).classifies
