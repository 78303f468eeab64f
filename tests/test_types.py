import pytest

from histoloc.types import tier


@pytest.mark.parametrize(
    ("supervision", "name"),
    [
        ((), "learns nothing"),
        (("image",), "labels only"),
        (("cue", "image"), "labels + cue"),
        (("synthetic",), "synthetic prior (no human masks)"),
        (("synthetic", "image"), "labels + synthetic prior (no human masks)"),
        (("synthetic", "cue", "image"), "labels + cue + synthetic prior (no human masks)"),
        (("pixel",), "masks"),
        (("pixel", "synthetic", "image"), "labels + synthetic prior + masks"),
    ],
)
def test_tiers_of_supervision(supervision, name):
    assert tier(supervision) == name
    assert tier(frozenset(supervision)) == name
