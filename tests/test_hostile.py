"""Files that are made to break a reader: one sentence, quickly."""

import io
import json
import struct
import time

import numpy as np
import pytest
import tifffile

from histoloc.cli.main import main
from histoloc.data.images import read_image
from histoloc.errors import InputError
from histoloc.model_folder import read_model_config
from histoloc.slides.annotations import read_annotations
from histoloc.slides.reader import open_slide
from histoloc.work_folder import read_json, read_yaml
from mutations import ALIASES

MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11))
YAML = {
    "aliases that multiply": ("options:\n  " + ALIASES.replace("\n", "\n  "), "more than 10000 values"),
    "merges that multiply": (MERGES, "more than 10000 values"),
    "an alias that holds itself": ("a: &a [*a]", "an alias that holds itself"),
    "brackets": ("a: " + "[" * 50_000, "more than 1000 brackets"),
    "nested blocks": ("a:\n " + "- " * 60_000, "nested too deeply"),
    "a date that does not exist": ("a: 2023-02-30", "day is out of range"),
    "a tag that does not fit": ("a: !!int foo", "invalid literal"),
    "a timestamp that is none": ("a: !!timestamp 5", "not valid YAML"),
    "a zero byte": ("a: \0", "not valid YAML"),
    "an endless number": ("a: " + "9" * 5000, "4300 digits"),
    "half a character": ('a: "\\ud800"', "surrogates not allowed"),
    "a large file": ("a: " + "x" * 200_000, "more than 128 kB"),
    "a key that is there twice": (
        "method: gap\ntraining: {lr: 1}\ntraining: {lr: 2}",
        "the key training is there twice",
    ),
    "code": ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
}


@pytest.mark.parametrize("what", YAML)
def test_hostile_yaml_is_one_sentence_at_once(what, tmp_path, capsys):
    text, says = YAML[what]
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    started = time.perf_counter()
    with pytest.raises(InputError, match=says) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 500
    with pytest.raises(SystemExit, match="2"):
        main(["train", "gap", "--data", "t.csv", "--out", str(tmp_path / "out"), "--recipe", str(path)])
    assert capsys.readouterr().err.count("\n") == 1
    assert time.perf_counter() - started < 10


def test_anchors_that_mean_one_thing_are_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("\ufeffa: &x {lr: 1}\nb: *x\nc:\n  <<: *x\n  d: 2\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"lr": 1}, "b": {"lr": 1}, "c": {"lr": 1, "d": 2}}


JSON = {
    "brackets": ("[" * 200_000, "nested too deeply"),
    "braces": ('{"a":' * 200_000, "nested too deeply"),
    "an endless number": ('{"mpp": ' + "9" * 5000 + "}", "4300 digits"),
    "half a character": ('{"classes": ["\\ud800"]}', "surrogates not allowed"),
    "a list": ("[]", "no mapping"),
    "nothing": ("", "Expecting value"),
}


@pytest.mark.parametrize("what", JSON)
def test_hostile_json_is_one_sentence(what, scene, capsys):
    text, says = JSON[what]
    model = scene.model()
    (model / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_json(model / "config.json")
    with pytest.raises(InputError, match=rf"config\.json: cannot be read \(.*{says}"):
        read_model_config(model)
    with pytest.raises(SystemExit, match="2"):
        main(scene.evaluate(model))
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "text"),
    [("range", r"range = '9{50,}\.\.\. is wrong"), ("method", r"config.json: method '9{100}' is unknown")],
)
def test_a_long_value_does_not_fill_the_screen(scene, key, text):
    model = scene.model()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {key: "9" * 5000}))
    with pytest.raises(InputError, match=text) as caught:
        read_model_config(model)
    assert len(str(caught.value)) < 400


# --- TIFF ---


def changed_tag(tag: int, value: int, **options) -> bytes:
    """A TIFF of one page with another number in a tag."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="rgb", metadata=None, **options)
    raw = bytearray(buffer.getvalue())
    at = struct.unpack_from("<I", raw, 4)[0]
    for number in range(struct.unpack_from("<H", raw, at)[0]):
        entry = at + 2 + 12 * number
        if struct.unpack_from("<H", raw, entry)[0] == tag:
            struct.pack_into("<H", raw, entry + 8, value)
            return bytes(raw)
    raise AssertionError("no such tag")


def test_colours_that_may_lie_in_two_ways_are_refused_everywhere(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(changed_tag(284, 0, planarconfig="contig"))
    for read in (read_image, lambda p: open_slide(p, mpp=0.5)):
        with pytest.raises(InputError, match=r"a\.tif: does not say whether its colours lie by pixel or by plane"):
            read(path)


@pytest.mark.parametrize("tag", [256, 257])
def test_a_slide_without_a_side_is_one_sentence(tag, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(changed_tag(tag, 0, tile=(32, 32)))
    with pytest.raises(InputError, match=r"a\.tif: "), open_slide(path, mpp=0.5) as slide:
        slide.read(0, 0, slide.width, slide.height, 0.5)


def test_vertices_follow_the_order_that_asap_gives_them(tmp_path):
    corners = {0: (0, 0), 2: (10, 10), 1: (10, 0), 3: (0, 10)}
    lines = [f'<Coordinate Order="{k}" X="{x}" Y="{y}" />' for k, (x, y) in corners.items()]
    path = tmp_path / "a.xml"
    path.write_text(
        '<ASAP_Annotations><Annotations><Annotation Type="Polygon" PartOfGroup="Tumor"><Coordinates>'
        + "".join(lines)
        + "</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    assert read_annotations(path).regions[0].polygon.area == 100
