import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histoloc.nn.pooling import WildcatHead, count_of, wildcat_score


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


def test_low_precision_is_pooled_in_float32():
    maps = torch.full((1, 1, 16, 16), 1.0, dtype=torch.bfloat16)
    maps[..., 0] = 1.0078125
    assert wildcat_score(maps, 256, 0, 0).item() == 1 + 0.0078125 / 16


def test_head_averages_modalities_class_by_class():
    head = WildcatHead(4, 2, modalities=3, kmax=0.5, dropout=0.0)
    features = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    scores, maps = head(features)
    every = head.maps(features)
    for channel in range(2):
        torch.testing.assert_close(maps[:, channel], every[:, 3 * channel : 3 * channel + 3].mean(dim=1))
    torch.testing.assert_close(scores, wildcat_score(maps, 0.5, 0.0, 0.6))


def test_dropout_only_in_training():
    torch.manual_seed(0)
    head = WildcatHead(4, 2, kmax=0.5, kmin=0.5, dropout=0.5)
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
