import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histoloc.methods.cam import WildcatOptions
from histoloc.nn.pooling import WildcatHead, count_of, lse_score, wildcat_score


@pytest.mark.parametrize(
    ("share", "positions", "expected"),
    [
        (0, 10, 0),
        (-1, 10, 0),
        (0.3, 10, 3),
        (0.25, 10, 3),  # halves round up
        (0.24, 10, 2),
        (0.001, 10, 1),  # a share is never nothing
        (0.99, 10, 10),
        (1, 10, 1),  # from 1 up: a number, not a share
        (1.0, 10, 1),
        (4, 10, 4),
        (50, 10, 10),
        (0.3, 169, 51),  # 13 x 13 positions of a 416-pixel image
    ],
)
def test_count_of(share, positions, expected):
    assert count_of(share, positions) == expected


def by_hand(maps: np.ndarray, kmax: float, kmin: float, alpha: float) -> np.ndarray:
    scores = np.zeros(maps.shape[:2])
    for image in range(maps.shape[0]):
        for channel in range(maps.shape[1]):
            ordered = sorted(float(v) for v in maps[image, channel].ravel())
            highest = ordered[::-1][: count_of(kmax, len(ordered))]
            scores[image, channel] = sum(highest) / len(highest)
            lowest = ordered[: count_of(kmin, len(ordered))]
            if lowest:
                scores[image, channel] += alpha * sum(lowest) / len(lowest)
    return scores


counts = st.one_of(st.floats(0.01, 0.99), st.integers(1, 12).map(float))


@settings(max_examples=60, deadline=None)
@given(
    kmax=counts,
    kmin=st.one_of(st.just(0.0), counts),
    alpha=st.floats(0, 2),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 1000),
)
def test_against_a_loop(kmax, kmin, alpha, size, seed):
    maps = np.random.default_rng(seed).normal(size=(2, 3, *size)).astype(np.float32)
    got = wildcat_score(torch.from_numpy(maps), kmax, kmin, alpha).numpy()
    np.testing.assert_allclose(got, by_hand(maps, kmax, kmin, alpha), rtol=1e-5, atol=1e-6)


def test_lowest_activations_count_by_alpha():
    maps = torch.tensor([[[[4.0, 2.0, -1.0, -3.0]]]])
    assert wildcat_score(maps, 2, 0, 0.6).item() == 3.0
    assert wildcat_score(maps, 2, 2, 0.6).item() == pytest.approx(3.0 + 0.6 * -2.0)
    assert wildcat_score(maps, 2, 1, 0.6).item() == pytest.approx(3.0 + 0.6 * -3.0)
    assert wildcat_score(maps, 2, 2, 0.0).item() == 3.0


def test_lowest_activations_have_gradient():
    maps = torch.tensor([[[[4.0, 2.0, -1.0, -3.0]]]], requires_grad=True)
    wildcat_score(maps, 2, 1, 0.6).sum().backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, torch.tensor([[[[0.5, 0.5, 0.0, 0.6]]]]))


def test_all_positions_is_the_mean_and_one_is_the_maximum():
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wildcat_score(maps, 20, 0, 0), maps.mean(dim=(2, 3)))
    torch.testing.assert_close(wildcat_score(maps, 1.0, 0, 0), maps.amax(dim=(2, 3)))


@pytest.mark.parametrize("changed", [{"alpha": 0.0}, {"kmin": 0.0}])
def test_lowest_activations_of_the_published_defaults_are_not_lost(changed):
    maps = torch.randn(2, 3, 13, 13, generator=torch.Generator().manual_seed(0))
    published = {"kmax": 0.1, "kmin": 0.1, "alpha": 0.6}
    got = wildcat_score(maps, **published)
    np.testing.assert_allclose(got.numpy(), by_hand(maps.numpy(), **published), rtol=1e-5)
    lowest = maps.flatten(2).sort(dim=2).values[..., :17].mean(dim=2)  # 17 = a tenth of 169
    torch.testing.assert_close(got - wildcat_score(maps, **published | changed), 0.6 * lowest)


def test_low_precision_is_pooled_in_float32():
    maps = torch.full((1, 1, 16, 16), 1.0, dtype=torch.bfloat16)
    maps[..., 0] = 1.0078125
    assert wildcat_score(maps, 256, 0, 0).item() == 1 + 0.0078125 / 16


def test_head_averages_modalities_class_by_class():
    head = WildcatHead(4, 2, WildcatOptions(modalities=3, kmax=0.5, kmin=0.0))
    features = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    scores, maps = head(features)
    every = head.maps(features)
    for channel in range(2):
        torch.testing.assert_close(maps[:, channel], every[:, 3 * channel : 3 * channel + 3].mean(dim=1))
    torch.testing.assert_close(scores, wildcat_score(maps, 0.5, 0.0, 0.6))


def test_dropout_only_in_training():
    torch.manual_seed(0)
    head = WildcatHead(4, 2, WildcatOptions(kmax=0.5, kmin=0.5, dropout=0.5))
    features = torch.randn(1, 4, 6, 6)
    head.eval()
    assert torch.equal(head(features)[0], head(features)[0])
    torch.testing.assert_close(head(features)[0], wildcat_score(head(features)[1], 0.5, 0.5, 0.6))
    head.train()
    assert not torch.equal(head(features)[0], head(features)[0])


def test_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    maps = torch.randn(1, 1, 6, 6).expand(4000, 1, 6, 6)
    dropped, whole = wildcat_score(maps, 0.5, 0.5, 0.6, dropout=0.3), wildcat_score(maps[:1], 0.5, 0.5, 0.6)
    assert dropped.mean().item() == pytest.approx(whole.item(), abs=4 * dropped.std().item() / 4000**0.5)


def test_lse_by_hand():
    # (1/2) log [(e^0 + e^2 + e^4 + e^6) / 4]
    maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert lse_score(maps, 2.0).item() == pytest.approx(2.379392, abs=1e-6)


finite_maps = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(values=finite_maps, r=st.floats(1e-2, 100), shift=st.floats(-1e3, 1e3))
def test_lse_moves_with_its_maps_and_lies_between_mean_and_maximum(values, r, shift):
    maps = torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)
    score = lse_score(maps, r)
    torch.testing.assert_close(lse_score(maps + shift, r), score + shift, rtol=0, atol=1e-9)
    assert maps.mean() - 1e-9 <= score.item() <= maps.max() + 1e-9
    assert score.item() >= maps.max() - np.log(maps.numel()) / r - 1e-9


def test_lse_grows_from_the_mean_to_the_maximum():
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = torch.stack([lse_score(maps, r) for r in (1e-6, 0.1, 1.0, 10.0, 1e6)])
    assert (scores.diff(dim=0) > 0).all()
    torch.testing.assert_close(scores[0], maps.mean(dim=(2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[-1], maps.amax(dim=(2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("magnitude", [1e4, -1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lse_of_large_scores(magnitude, dtype):
    maps = torch.full((1, 1, 8, 8), magnitude, dtype=dtype, requires_grad=True)
    score = lse_score(maps, 10.0)
    score.sum().backward()
    assert score.dtype == torch.float32
    assert score.item() == pytest.approx(maps[0, 0, 0, 0].item(), rel=1e-6)
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad.float(), torch.full((1, 1, 8, 8), 1 / 64))


def test_lse_of_half_precision_is_float32():
    maps = torch.tensor([[[[6e4, -6e4, 0.0, 5.0]]]], dtype=torch.float16)
    assert lse_score(maps, 10.0).item() == pytest.approx(maps[0, 0, 0, 0].item() - np.log(4) / 10, rel=1e-7)


@pytest.mark.parametrize("r", [0.1, 1.0, 10.0])
def test_lse_gradient_is_the_softmax(r):
    maps = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: lse_score(m, r), maps)
    assert torch.autograd.gradgradcheck(lambda m: lse_score(m, r), maps)
    (gradient,) = torch.autograd.grad(lse_score(maps, r).sum(), maps)
    torch.testing.assert_close(gradient.flatten(2), (r * maps.flatten(2)).softmax(dim=2))


def test_lse_shares_the_gradient_among_equal_maxima():
    maps = torch.tensor([[[[5.0, 5.0, -100.0]]]], requires_grad=True)
    lse_score(maps, 10.0).sum().backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, torch.tensor([[[[0.5, 0.5, 0.0]]]]))
