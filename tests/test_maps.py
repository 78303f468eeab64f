import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from histoloc import maps
from histoloc.errors import InputError


def batch(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)[:, None, None, :]


def test_normalise_per_image_by_hand():
    got = maps.normalise_per_image(batch([1.0, 2.0, 5.0], [-10.0, 0.0, 10.0]))
    torch.testing.assert_close(got, batch([0.0, 0.25, 1.0], [0.0, 0.5, 1.0]))


def test_normalise_batch_by_hand():
    got = maps.normalise_batch(batch([1.0, 2.0], [5.0, 3.0]))
    torch.testing.assert_close(got, batch([0.0, 0.25], [1.0, 0.5]))


def test_per_image_ignores_neighbours_and_batch_does_not():
    one, both = batch([1.0, 3.0]), batch([1.0, 3.0], [0.0, 9.0])
    assert torch.equal(maps.normalise_per_image(both)[:1], maps.normalise_per_image(one))
    assert not torch.equal(maps.normalise_batch(both)[:1], maps.normalise_batch(one))


@pytest.mark.parametrize("normalise", [maps.normalise_per_image, maps.normalise_batch])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e30, 1e-42])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_map_is_zero_with_zero_gradient(normalise, value, dtype):
    map = torch.full((2, 1, 3, 4), value, dtype=dtype, requires_grad=True)
    got = normalise(map)
    got.square().sum().backward()
    assert torch.equal(got, torch.zeros_like(got))
    assert map.grad is not None
    assert torch.equal(map.grad, torch.zeros_like(map))


def test_constant_map_stays_constant_when_resized():
    resized = maps.resize(torch.full((1, 1, 13, 13), 0.1), (522, 775))
    assert torch.equal(maps.normalise_per_image(resized), torch.zeros_like(resized))


@pytest.mark.parametrize("spread", [1e-38, 1e-30, 1e-17, 1e-8, 1.0, 1e20])
def test_gradient_is_finite_at_any_scale(spread):
    map = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * spread).requires_grad_()
    maps.normalise_per_image(map).square().mean().backward()
    assert map.grad is not None
    assert torch.isfinite(map.grad).all()


def test_gradient_against_finite_differences():
    map = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(maps.normalise_per_image, map.requires_grad_())
    assert torch.autograd.gradcheck(maps.normalise_batch, map)


def test_nan_is_not_hidden():
    got = maps.normalise_per_image(batch([1.0, float("nan")], [0.0, 2.0]))
    assert torch.isnan(got[0]).all()
    torch.testing.assert_close(got[1:], batch([0.0, 1.0]))


def test_low_precision_is_computed_in_float32():
    map = batch([1.0, 1.5, 256.0]).bfloat16()
    got = maps.normalise_per_image(map)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, maps.normalise_per_image(map.float()), rtol=0, atol=0)
    assert maps.resize(map, (4, 8)).dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 100), st.floats(-50, 50))
def test_normalise_ignores_scale_and_offset(scale, offset):
    map = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = maps.normalise_per_image(scale * map + offset)
    torch.testing.assert_close(got, maps.normalise_per_image(map))
    assert got.amin() == 0
    assert got.amax() == 1


def test_resize_half_pixel_centres_by_hand():
    got = maps.resize(batch([0.0, 1.0]), (1, 4))
    torch.testing.assert_close(got, batch([0.0, 0.25, 0.75, 1.0]))


def test_resize_has_the_geometry_of_the_image_resize():
    image = torch.rand(1, 1, 27, 39, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(maps.resize(image, (33, 48)), tv.resize(image, [33, 48], antialias=True))
    assert maps.resize(image, (27, 39)) is image


def test_otsu_separates_two_levels():
    map = np.where(np.arange(100).reshape(10, 10) < 30, 0.2, 0.9).astype(np.float32)
    threshold = maps.otsu_threshold(map)
    assert 0.2 < threshold < 0.9
    assert (map >= threshold).mean() == 0.7


@pytest.mark.parametrize(("value", "share"), [(0.0, 0.0), (0.49, 0.0), (1.0, 1.0)])
def test_otsu_of_a_constant_map_is_the_default_threshold(value, share):
    map = np.full((4, 5), value, dtype=np.float32)
    assert maps.otsu_threshold(map) == 0.5
    assert (map >= maps.otsu_threshold(map)).mean() == share


@pytest.mark.parametrize("bad", [np.array([[0.1, np.nan]]), np.array([[0.1, np.inf]]), np.zeros((0, 4))])
def test_otsu_refuses_what_it_cannot_use(bad):
    with pytest.raises(InputError, match="finite"):
        maps.otsu_threshold(bad)
