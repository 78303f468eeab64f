from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from histoloc.datasets.patches import (
    Box,
    Candidate,
    Patch,
    annotation_boxes,
    calibrate,
    calibration_size,
    draw_normals,
    equal_numbers,
    normal_candidates,
    random_for,
    scan_boxes,
    scan_strip,
)

LIMITS = {"min_tissue": 0.1, "p0": 0.2}


def brute_strip(tissue, tumour, width, step, min_tissue, p0):
    """The rule as it is told, pixel by pixel."""
    height, length = tumour.shape
    first = next((x for x in range(length) if any(tumour[y, x] for y in range(height))), None)
    if first is None:
        return []
    result, x = [], max(first - width, 0)
    while x + width <= length:
        shares = [sum(int(v) for v in m[:, x : x + width].ravel()) / (height * width) for m in (tissue, tumour)]
        good = shares[0] >= min_tissue and shares[1] >= p0
        if good:
            result.append((x, *shares))
        x += step if result else 1
    return result


masks = st.integers(1, 4).flatmap(
    lambda h: st.integers(1, 25).flatmap(
        lambda w: st.tuples(*[arrays(bool, (h, w), elements=st.sampled_from([False, True]), fill=st.just(False))] * 2)
    )
)


@given(masks, st.integers(1, 6), st.integers(1, 7), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.05, 0.2, 0.6]))
def test_strips_against_brute_force(pair, width, step, min_tissue, p0):
    tissue, tumour = pair
    result = scan_strip(tissue, tumour, width, step, min_tissue=min_tissue, p0=p0)
    assert result == brute_strip(tissue, tumour, width, step, min_tissue, p0)


def test_a_strip_in_closed_form():
    tumour = np.zeros((10, 100), bool)
    tumour[:, 37:60] = True
    # 10 px wide, p0 = 0.2: the first window ends two columns into the tumour.
    assert scan_strip(np.ones_like(tumour), tumour, 10, 10, **LIMITS) == [(29, 1, 0.2), (39, 1, 1), (49, 1, 1)]
    tissue = np.ones_like(tumour)
    tissue[:, :48] = False  # the first window with 10 % of tissue begins at 39
    assert scan_strip(tissue, tumour, 10, 10, **LIMITS) == [(39, 0.1, 1), (49, 1, 1)]
    assert scan_strip(tissue, np.zeros_like(tumour), 10, 10, **LIMITS) == []
    assert scan_strip(tissue[:, :8], tumour[:, 35:43], 10, 10, **LIMITS) == []


def test_a_slide_against_brute_force():
    rng = np.random.default_rng(0)
    coarse = rng.random((12, 15)) < 0.25
    tumour = np.kron(coarse, np.ones((9, 9), bool)).astype(bool)
    tissue = np.kron(rng.random((12, 15)) < 0.6, np.ones((9, 9), bool)).astype(bool) | tumour & (rng.random() < 2)
    slide = (tumour.shape[1], tumour.shape[0])
    boxes = [Box(20, 15, 70, 60), Box(100, 70, 135, 108), Box(0, 0, 4, 4)]
    items = []

    def cut(box):
        items.append(box)
        return tissue[box.top : box.bottom, box.left : box.right], tumour[box.top : box.bottom, box.left : box.right]

    for step in (8, 5):
        patches = list(scan_boxes(boxes, cut, 8, slide, step=step, **LIMITS))
        expected = []
        for region, (left, top, right, bottom) in enumerate(boxes):
            left, right = max(left - 8, 0), min(right + 8, slide[0])
            bottom = min(bottom + 8, slide[1])
            row, y = 0, max(top - 4, 0)
            while y + 8 <= bottom:
                strip = (slice(y, y + 8), slice(left, right))
                for j, (x, t, p) in enumerate(brute_strip(tissue[strip], tumour[strip], 8, step, 0.1, 0.2)):
                    expected.append(Patch(region, row, j, left + x, y, t, p))
                row, y = row + 1, y + step
        assert patches == expected
        assert len(patches) > 20
        assert all(box.bottom - box.top == 8 for box in items)
        for patch in patches:
            window = (slice(patch.y, patch.y + 8), slice(patch.x, patch.x + 8))
            assert (patch.tissue, patch.tumour) == (tissue[window].mean(), tumour[window].mean())
            assert patch.tissue >= 0.1
            assert patch.tumour >= 0.2
    assert list(scan_boxes([Box(2, 2, 4, 4)], cut, 8, (7, 20), step=8, **LIMITS)) == []  # no room for a patch


def test_nested_boxes_are_dropped():
    outer, inner, below, crossing = [0, 0, 10, 10], [2.5, 2, 5.5, 9], [2, 20, 8, 30], [5, 5, 15, 9]
    bounds = np.array([inner, outer, below, crossing, outer])
    assert annotation_boxes(bounds) == [(0, 0, 10, 10), (2, 20, 8, 30), (5, 5, 15, 9)]
    assert annotation_boxes(np.zeros((0, 4))) == []
    assert annotation_boxes(np.array([[0.2, 0.9, 3.1, 4]])) == [(0, 0, 4, 4)]


box = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@given(st.lists(box, max_size=8))
def test_nested_boxes_against_brute_force(bounds):
    rest: list[tuple[int, ...]] = []
    for i, a in enumerate(bounds):
        within = [
            a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3] and (a != b or j < i)
            for j, b in enumerate(bounds)
            if j != i
        ]
        if not any(within):
            rest.append(tuple(a))
    assert annotation_boxes(np.array(bounds)) == rest


def choose(shares, wanted, rng):
    """Which of the patches are chosen, by their index."""
    names = [f"slide-{i % 7}_patch_{i:05}" for i in range(len(shares))]
    chosen = calibrate(dict(zip(names, shares, strict=True)), wanted, rng, p0=0.2, p1=0.5)
    return np.array([name in chosen for name in names], bool)


def uniform(count, seed=0):
    return np.random.default_rng(seed).random(count)


def test_calibration_keeps_and_draws():
    p = uniform(4000)
    p[:3] = (0.2, 0.5, 1.0)
    chosen = choose(p, 300, random_for(0, "train"))
    middle, large = (p >= 0.2) & (p <= 0.5), p > 0.5
    assert chosen[middle].all()
    assert chosen[large].sum() == 300
    assert not chosen[p < 0.2].any()
    # Bins are equally likely however many patches they have: 30 each expected, sd 5.2.
    counts = np.histogram(p[large & chosen], np.linspace(0.5, 1, 11))[0]
    assert counts.min() > 12
    assert counts.max() < 50


def test_bins_weigh_the_same_however_full_they_are():
    p = np.r_[np.full(900, 0.97), np.full(60, 0.52)]
    drawn = [choose(p, 60, random_for(seed, "x"))[900:].sum() for seed in range(40)]
    assert 26 < np.mean(drawn) < 34  # 30 in the mean; 3.75 if patches, not bins, were drawn


def test_borders_of_bins():
    # 0.55 and 0.6 begin their bins: with one patch in the bin before, two bins are equally likely.
    for border, bins in [(0.55, (0.54, 0.55)), (0.6, (0.59, 0.6)), (0.7, (0.69, 0.7)), (0.95, (0.94, 0.95))]:
        p = np.r_[bins[0], np.full(99, border)]
        hits = [choose(p, 1, random_for(s, "b"))[0] for s in range(60)]
        assert 15 < sum(hits) < 45, border
    p = np.r_[np.full(99, 1.0), 0.96]  # one bin, so the odd one is rarely drawn
    hits = [choose(p, 1, random_for(s, "b"))[99] for s in range(60)]
    assert sum(hits) < 6


def test_calibration_takes_all_where_fewer_are_left():
    p = uniform(100)
    assert (choose(p, 1000, random_for(0)) == (p >= 0.2)).all()
    assert (choose(p, 0, random_for(0)) == ((p >= 0.2) & (p <= 0.5))).all()
    assert calibrate({}, 5, random_for(0), p0=0.2, p1=0.5) == set()


def test_calibration_depends_on_names_and_seed_not_on_order():
    shares = {f"patch_{i}": share for i, share in enumerate(uniform(500))}
    backwards = dict(reversed(shares.items()))
    first, second, other = (
        calibrate(s, 40, random_for(seed, "train"), p0=0.2, p1=0.5)
        for s, seed in ((shares, 0), (backwards, 0), (shares, 1))
    )
    assert first == second != other


def test_published_counts():
    assert calibration_size(10_089, "train") == 6_514
    assert calibration_size(4_823, "test") == 3_009
    assert calibration_size(100, "train") == 65
    assert calibration_size(0, "test") == 0


@settings(max_examples=50)
@given(
    arrays(bool, st.tuples(st.integers(2, 12), st.integers(2, 12))),
    st.sampled_from([1, 2, 3.5, 4]),
    st.integers(4, 9),
    st.integers(3, 9),
    st.sampled_from([0.1, 0.5]),
)
def test_candidates_against_brute_force(tissue, downsample, size, step, share):
    slide = (int(tissue.shape[1] * downsample), int(tissue.shape[0] * downsample))
    expected = []
    for y in range(0, slide[1] - size + 1, step):
        for x in range(0, slide[0] - size + 1, step):
            rows = slice(round(y / downsample), max(round((y + size) / downsample), round(y / downsample) + 1))
            columns = slice(round(x / downsample), max(round((x + size) / downsample), round(x / downsample) + 1))
            mean = tissue[rows, columns].mean()
            if mean >= share:
                expected.append((x, y, mean))
    result = normal_candidates(tissue, downsample, slide, size, step=step, min_tissue=share)
    assert [c[:2] for c in result] == [e[:2] for e in expected]
    assert [c.tissue for c in result] == pytest.approx([e[2] for e in expected])


def test_candidates_of_whole_cells():
    tissue = np.zeros((16, 24), bool)
    tissue[8:16, 0:8] = True
    tissue[0, 16:24] = True  # 8 of 64 pixels
    slide = (24 * 64 + 500, 16 * 64)  # 500 px more on the right are no cell
    result = normal_candidates(tissue, 64, slide, 512, step=512, min_tissue=0.1)
    assert result == [Candidate(1024, 0, 0.125), Candidate(0, 512, 1.0)]
    assert normal_candidates(tissue, 64, (500, 500), 512, step=512, min_tissue=0.1) == []


def test_normals_do_not_depend_on_workers_or_order():
    cells = {f"normal_{k:03}": [Candidate(512 * i, 512 * k, 0.5) for i in range(40)] for k in range(8)}

    def tissue(cell):
        return 0.05 if cell.x % 3 else 0.25

    def draw(slides, seed=0):
        return {s: draw_normals(cells[s], 5, tissue, 0.1, random_for(seed, s, "normal")) for s in slides}

    one = draw(sorted(cells))
    four: dict[str, list[Candidate]] = {}
    for worker in range(4):  # each takes its slides from the last to the first
        four |= draw(sorted(cells)[worker::4][::-1])
    assert one == four
    assert draw(cells, seed=1) != one
    assert len({tuple(c.x for c in drawn) for drawn in one.values()}) > 1  # slides differ from one another
    for slide, drawn in one.items():
        assert len({c.x for c in drawn}) == 5
        assert all(c.tissue == 0.25 and c.x % 3 == 0 for c in drawn)
        backwards = draw_normals(cells[slide][::-1], 3, tissue, 0.1, random_for(0, slide, "normal"))
        assert backwards == drawn[:3]


def test_normals_are_drawn_evenly_and_run_out():
    cells = [Candidate(i, 0, 1.0) for i in range(4)]
    counts = Counter(draw_normals(cells, 1, lambda c: 1.0, 0.1, random_for(s, "a"))[0].x for s in range(400))
    assert min(counts[i] for i in range(4)) > 70
    assert len(draw_normals(cells, 9, lambda c: 1.0, 0.1, random_for(0, "a"))) == 4
    assert draw_normals([], 2, lambda c: 1.0, 0.1, random_for(0, "a")) == []


def test_generators_depend_on_all_names():
    keys = [(0, "a", "b"), (0, "ab"), (0, "b", "a"), (1, "a", "b"), (0, "a", "b", ""), (0,)]
    first = {random_for(seed, *names).random() for seed, *names in keys}
    assert len(first) == len(keys)
    assert random_for(3, "täst").random() == random_for(3, "täst").random()


def test_equal_numbers():
    assert equal_numbers(11, {"c": 99, "a": 99, "b": 99}) == {"a": 5, "b": 3, "c": 3}
    assert equal_numbers(11, {"a": 2, "b": 5, "c": 9}) == {"a": 2, "b": 5, "c": 4}
    assert equal_numbers(11, {"a": 9, "b": 9, "c": 1}) == {"a": 7, "b": 3, "c": 1}
    assert equal_numbers(11, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    assert equal_numbers(3, {}) == {}


@given(st.integers(0, 60), st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_equal_numbers_fill_what_there_is(total, available):
    limits = {f"s{i}": n for i, n in enumerate(available)}
    numbers = equal_numbers(total, limits)
    assert sum(numbers.values()) == min(total, sum(available))
    assert all(0 <= numbers[name] <= limits[name] for name in limits)
