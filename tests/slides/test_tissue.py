import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import color, filters

from factory import KINDS, blob, box, kinds_at, make_slide, render
from histoloc.slides.reader import open_slide
from histoloc.slides.tissue import find_tissue, protocol_tissue, share, tissue, tissue_picture

SIZE = (12000, 8000)  # 3 x 2 mm at 0.25 µm/px
TISSUE = blob("tissue", 4500, 4000, 2500, seed=3)
METASTASIS = blob("metastasis", 4800, 3500, 800, seed=4)


def direct_rule(rgb: np.ndarray, rgb_min: int) -> np.ndarray:
    """The protocol's words, channel by channel, in floats."""
    channels = [rgb[..., 0], rgb[..., 1], rgb[..., 2], color.rgb2hsv(rgb)[..., 1]]
    if any(channel.min() == channel.max() for channel in channels):
        return np.zeros(rgb.shape[:2], bool)
    red, green, blue, saturation = (channel > filters.threshold_otsu(channel) for channel in channels)
    return ~(red & green & blue) & saturation & (rgb > rgb_min).all(axis=2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 40), columns=st.integers(1, 40),
    low=st.integers(0, 200), span=st.integers(1, 56), rgb_min=st.sampled_from([0, 10, 100]),
)  # fmt: skip
def test_the_protocols_rule_is_that_of_skimage(seed, rows, columns, low, span, rgb_min):
    rgb = np.random.default_rng(seed).integers(low, low + span, (rows, columns, 3), dtype=np.uint8)
    assert (protocol_tissue(rgb, rgb_min) == direct_rule(rgb, rgb_min)).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 70), columns=st.integers(1, 300),
    kind=st.sampled_from(["noise", "few", "grey", "flat"]), rgb_min=st.sampled_from([10, 100]),
)  # fmt: skip
def test_a_picture_judged_in_pieces_is_judged_as_a_whole(seed, rows, columns, kind, rgb_min):
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    if kind == "few":
        rgb = rng.integers(0, 256, (3, 3), dtype=np.uint8)[rng.integers(0, 3, (rows, columns))]
    elif kind == "grey":
        rgb[...] = rgb[..., :1]
    elif kind == "flat":
        rgb[...] = rgb[0, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histoloc.slides.tissue._PIECE", 1000)
        mask = protocol_tissue(rgb, rgb_min)
    assert (mask == direct_rule(rgb, rgb_min)).all()


def test_the_protocols_rule_on_tissue():
    regions = [blob("tissue", 200, 150, 100), blob("metastasis", 200, 150, 40), box("border", 0, 0, 400, 20)]
    rgb = render(regions, 0, 0, 400, 300)
    mask = protocol_tissue(rgb)
    assert (mask == direct_rule(rgb, 10)).all()
    kinds = kinds_at(regions, 0, 0, 400, 300)
    names = list(KINDS)
    assert not mask[kinds == names.index("border")].any()
    assert not mask[kinds == names.index("glass")].any()
    assert mask[kinds == names.index("metastasis")].mean() > 0.95


def test_the_protocols_rule_on_the_real_slide(shared_data):
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        rgb = slide.read(600, 1000, 900, 700, slide.mpp)
    mask = protocol_tissue(rgb)
    assert (mask == direct_rule(rgb, 10)).all()
    assert 0.1 < mask.mean() < 0.9


@pytest.mark.parametrize("channel", [0, 1, 2, None])
def test_a_constant_channel_rejects_everything(channel):
    rgb = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    if channel is None:
        rgb[...] = rgb[..., :1]  # grey: saturation is 0 everywhere
    else:
        rgb[..., channel] = 128
    assert not protocol_tissue(rgb).any()
    for empty in (rgb[:0], rgb[:, :0]):
        assert protocol_tissue(empty).shape == empty.shape[:2]


def truth(regions, size=SIZE, factor=32) -> np.ndarray:
    names = list(KINDS)
    kinds = kinds_at(regions, 0, 0, -(-size[0] // factor), -(-size[1] // factor), factor)
    return np.isin(kinds, [names.index(kind) for kind in ("tissue", "pale", "metastasis")])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def tissue_of(tmp_path, regions, **extras):
    path = tmp_path / "slide.tif"
    painted = make_slide(path, SIZE, 0.25, regions, **extras)
    with open_slide(path) as slide:
        mask = tissue(slide)
        assert mask.shape == (250, 375)
        assert tissue_picture(slide, mask).shape == (250, 375, 3)
    return mask, truth(painted)


@pytest.mark.parametrize("ink", ["pen_black", "pen_blue", "pen_green", "pen_red"])
def test_pen_beside_tissue_is_left_out(tmp_path, ink):
    mask, expected = tissue_of(tmp_path, [TISSUE, METASTASIS], pen=box(ink, 9000, 1000, 500, 6000))
    assert dice(mask, expected) > 0.97
    assert not mask[:, 270:].any()


@pytest.mark.parametrize("ink", ["pen_black", "pen_blue", "pen_green", "pen_red"])
def test_pen_on_tissue_leaves_the_rest(tmp_path, ink):
    mask, expected = tissue_of(tmp_path, [TISSUE, METASTASIS], pen=box(ink, 3000, 3000, 4500, 400))
    assert dice(mask, expected) > 0.93
    assert mask[103, 100:220].mean() < 0.1  # the middle of the pen's line, 32 px of level 0 per pixel


def test_borders_gaps_and_dust_are_left_out(tmp_path):
    dust = [blob("dust", 9500 + 300 * i, 1500 + 900 * i, 150, seed=i) for i in range(5)]
    specks = [box("tissue", 9000 + 400 * i, 6000, 40, 40) for i in range(5)]
    mask, expected = tissue_of(tmp_path, [TISSUE, METASTASIS, *dust, *specks], border=300, gap=(7800, 0, 1000, 8000))
    assert dice(mask, expected) > 0.97
    assert not mask[:, 245:].any()
    assert not mask[:9].any()


def test_pale_tissue_counts_and_holes_stay_by_their_size(tmp_path):
    pale = blob("pale", 9300, 4000, 1500, seed=9)
    holes = [box("hole", 3500, 4500, 1600, 1200), box("hole", 6200, 3500, 200, 200)]  # 0.12 and 0.0025 mm²
    mask, expected = tissue_of(tmp_path, [TISSUE, METASTASIS, pale, *holes])
    assert dice(mask, expected) > 0.97
    assert not mask[150:170, 120:150].any()
    assert mask[110:114, 195:199].all()


def test_slides_of_tissue_alone_and_of_glass_alone():
    for kind in ("tissue", "pale", "metastasis"):
        assert find_tissue(render([box(kind, 0, 0, 12800, 9600)], 0, 0, 400, 300, 32), 8.0).all(), kind
    for kind in ("glass", "gap", "border", "dust"):
        assert not find_tissue(render([box(kind, 0, 0, 12800, 9600)], 0, 0, 400, 300, 32), 8.0).any(), kind


def test_stains_other_than_h_and_e_and_tinted_glass():
    rgb = np.full((200, 300, 3), (236, 232, 226), np.uint8)
    rgb[50:150, 20:80] = (120, 130, 180)  # haematoxylin alone
    rgb[50:150, 120:180] = (120, 70, 40)  # DAB
    rgb[50:150, 220:280] = (190, 80, 130)  # strong eosin
    mask = find_tissue(rgb, 8.0)
    expected = (rgb != (236, 232, 226)).any(axis=2)
    assert dice(mask, expected) > 0.97


def test_the_least_area_is_in_square_millimetres():
    for side, counts in ((20, False), (36, True)):  # of 8 µm/px: 0.0256 and 0.083 mm²
        rgb = render([box("tissue", 1600, 1600, 32 * side, 32 * side)], 0, 0, 200, 200, 32)
        assert find_tissue(rgb, 8.0).any() == counts


def test_tissue_of_the_real_slide(shared_data):
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        mask = tissue(slide)
        assert mask.shape == slide.size_at(8.0)[::-1]
        assert 0.25 < mask.mean() < 0.5
        fine = tissue(slide, mpp=4.0)
        half = np.asarray(Image.fromarray(fine).resize(mask.shape[::-1], Image.Resampling.NEAREST))
        assert dice(mask, half) > 0.95


def test_share_is_that_of_counting(tmp_path):
    make_slide(tmp_path / "s.tif", (640, 480), 1.0, [], downsamples=(1,))
    mask = np.random.default_rng(0).random((60, 80)) < 0.4
    fine = np.zeros((480 * 3, 640 * 3), bool)
    fine[480:960, 640:1280] = mask.repeat(8, axis=0).repeat(8, axis=1)
    rng = np.random.default_rng(1)
    x, y = rng.integers(-600, 900, 200), rng.integers(-400, 700, 200)
    width, height = rng.integers(1, 300, 200), rng.integers(1, 200, 200)
    with open_slide(tmp_path / "s.tif") as slide:
        shares = share(mask, 8.0, x, y, width, height, slide)
        assert share(mask, 8.0, 0, 0, 640, 480, slide) == pytest.approx(mask.mean())
        with pytest.raises(ValueError, match="80x60 px is not that of"):
            share(mask, 4.0, 0, 0, 8, 8, slide)
        with pytest.raises(ValueError, match="empty"):
            share(mask, 8.0, 0, 0, 0, 8, slide)
    boxes = zip(x + 640, y + 480, width, height, strict=True)
    assert shares == pytest.approx([fine[b : b + h, a : a + w].mean() for a, b, w, h in boxes], abs=1e-9)
