import torch
from small import answer, build, noise


def test_roi_everywhere_and_no_class():
    method = build("allones")
    probabilities, roi = answer(method, noise(2, 33, 47))
    torch.testing.assert_close(roi, torch.ones(2, 1, 33, 47))
    assert torch.equal(probabilities, torch.full((2, 2), 0.5))
    assert not list(method.parameters())
    assert not type(method).classifies
    assert not type(method).supervision
