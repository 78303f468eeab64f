"""The viewer over folders of slide predictions: tiles, lists, hostile requests."""

import gc
import io
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from factory import blob, make_slide
from histoloc.errors import InputError
from histoloc.slides.reader import open_slide
from histoloc.viewer.app import make_app
from histoloc.viewer.catalog import Catalog
from histoloc.viewer.tiles import OPEN_FILES

WIDTH, HEIGHT, MPP, CELL = 3000, 2100, 0.5, 4
SECRET = "the secret of another folder"


def write_prediction(out: Path, slide: Path, score: float, *, seed: int = 0, **changes: Any) -> NDArray[np.uint8]:
    """A folder as `histoloc slides predict` writes it, of random cells; returns the map."""
    folder = out / slide.stem
    folder.mkdir(parents=True)
    width, height = -(-WIDTH // CELL), -(-HEIGHT // CELL)
    values = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    for name, level in (("map", values), ("uncertainty", 255 - values)):
        with tifffile.TiffWriter(folder / f"{name}.ome.tif", ome=True) as tiff:
            options: Any = {"tile": (128, 128), "compression": "deflate", "photometric": "minisblack"}
            tiff.write(level, subifds=1, metadata={"axes": "YX"}, **options)
            half = np.pad(level, ((0, height % 2), (0, width % 2)), mode="edge").reshape(-(-height // 2), 2, -1, 2)
            tiff.write(np.rint(half.mean(axis=(1, 3))).astype(np.uint8), subfiletype=1, **options)
    square = [[40, 40], [400, 40], [400, 400], [40, 400], [40, 40]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]}, "properties": {}}
    (folder / "regions.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    result = {
        "format": 1,
        "name": slide.stem,
        "slide": str(slide),
        "slide_mpp": None,
        "width": WIDTH,
        "height": HEIGHT,
        "mpp": MPP,
        "class": "metastatic",
        "probabilities": {"metastatic": score, "normal": 1 - score},
        "score": score,
        "roi": {"mm2": 0.25, "share": 0.1, "regions": 1},
        "map": {"file": "map.ome.tif", "mpp": MPP * CELL, "width": width, "height": height, "threshold": 0.4},
        "uncertainty": {"file": "uncertainty.ome.tif"},
        "regions": "regions.geojson",
        "model": {"method": "maxmin", "title": "Max-min"},
    }
    (folder / "slide.json").write_text(json.dumps(result | changes))
    return values


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    names = ["a.tif", "b <i>x.tif"]
    for seed, name in enumerate(names):
        make_slide(folder / name, (WIDTH, HEIGHT), MPP, [blob("tissue", 1400, 1000, 700, seed)], downsamples=(1, 4))
    return [folder / name for name in names]


@pytest.fixture
def out(tmp_path: Path, slides: list[Path]) -> Path:
    write_prediction(tmp_path / "out", slides[0], 0.2)
    write_prediction(tmp_path / "out", slides[1], 0.9, seed=1)
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "out" / "secret.txt").write_text(SECRET)
    return tmp_path / "out"


def client(*folders: Path) -> TestClient:
    return TestClient(make_app(Catalog(folders)), base_url="http://127.0.0.1:8000", raise_server_exceptions=True)


def listed(browser: TestClient) -> dict[str, Any]:
    answer = browser.get("/api/list")
    assert answer.status_code == 200
    return {item["name"]: item for item in answer.json()["items"]}


def key(browser: TestClient, name: str) -> str:
    return listed(browser)[name]["entries"][0]["key"]


def pixels(answer: Any) -> NDArray[np.uint8]:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_the_list_is_sorted_by_score_and_names_no_path(out: Path) -> None:
    browser = client(out)
    answer = browser.get("/api/list").json()
    assert [item["name"] for item in answer["items"]] == ["b <i>x", "a"]
    assert answer["models"] == [{"name": "out", "title": "Max-min"}]
    entry = answer["items"][0]["entries"][0]
    assert (entry["width"], entry["height"], entry["mpp"], entry["label"]) == (WIDTH, HEIGHT, MPP, "metastatic")
    assert entry["map"] == {"width": 750, "height": 525, "scale": CELL, "threshold": 0.4}
    assert ["ROI", "0.25 mm²"] in entry["facts"]
    assert str(out) not in json.dumps(answer)


@pytest.mark.parametrize(
    ("level", "column", "row"), [(4, 3, 2), (4, 11, 8), (3, 1, 1), (2, 0, 0), (1, 1, 1), (0, 0, 0)]
)
def test_slide_tiles_are_the_readers_pixels(out: Path, slides: list[Path], level: int, column: int, row: int) -> None:
    browser = client(out)
    result = pixels(browser.get(f"/tiles/{key(browser, 'a')}/picture/{level}/{column}_{row}"))
    factor = 2 ** (4 - level)
    x, y = 256 * column, 256 * row
    across, down = min(256, -(-WIDTH // factor) - x), min(256, -(-HEIGHT // factor) - y)
    with open_slide(slides[0]) as slide:
        expected = slide.read(x * factor, y * factor, across, down, MPP * factor)
    buffer = io.BytesIO()
    Image.fromarray(expected).save(buffer, "JPEG", quality=85)
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result, np.asarray(Image.open(buffer)))


def test_map_tiles_are_the_map(out: Path, tmp_path: Path, slides: list[Path]) -> None:
    values = write_prediction(tmp_path / "other", slides[0], 0.2)
    browser = client(out)
    base = f"/tiles/{key(browser, 'a')}"
    for row in range(3):
        for column in range(3):
            part = values[256 * row : 256 * row + 256, 256 * column : 256 * column + 256]
            np.testing.assert_array_equal(pixels(browser.get(f"{base}/map/2/{column}_{row}")), part)
            np.testing.assert_array_equal(pixels(browser.get(f"{base}/uncertainty/2/{column}_{row}")), 255 - part)
    padded = np.pad(values, ((0, 1), (0, 0)), mode="edge").astype(float)
    half = np.rint(padded.reshape(263, 2, 375, 2).mean(axis=(1, 3)))
    np.testing.assert_array_equal(pixels(browser.get(f"{base}/map/1/1_0")), half[:256, 256:])
    # One level more than the file has: means of the level above, over what there is of each square.
    quarter = np.pad(half, ((0, 1), (0, 1)), constant_values=np.nan).reshape(132, 2, 188, 2)
    whole = pixels(browser.get(f"{base}/map/0/0_0"))
    np.testing.assert_allclose(whole, np.nanmean(quarter, axis=(1, 3)), atol=0.5)


def test_outlines_are_the_file(out: Path) -> None:
    browser = client(out)
    answer = browser.get(f"/api/outlines/{key(browser, 'a')}")
    assert answer.json() == json.loads((out / "a" / "regions.geojson").read_text())
    assert browser.get(f"/api/truth/{key(browser, 'a')}").status_code == 404


def test_facts_say_which_regions_are_counted_and_how_the_answer_was_made(tmp_path: Path, slides: list[Path]) -> None:
    roi = {"mm2": 0.06, "share": 0.1, "regions": 0, "largest_mm2": None}
    changes = {"roi": roi, "settings": {"min_area_mm2": 0.001}, "aggregation": "mean of the tiles"}
    write_prediction(tmp_path, slides[0], 0.5, **changes)
    entry = listed(client(tmp_path))["a"]["entries"][0]
    assert entry["facts"] == [["ROI", "0.06 mm²"], ["ROI of tissue", "10.0 %"], ["Regions", "0 of 0.001 mm² or more"]]
    assert entry["rule"] == "mean of the tiles"


def test_several_folders_are_side_by_side(out: Path, tmp_path: Path, slides: list[Path]) -> None:
    write_prediction(tmp_path / "second" / "out", slides[0], 0.95)
    answer = client(out, tmp_path / "second" / "out").get("/api/list").json()
    assert [model["name"] for model in answer["models"]] == [f"{tmp_path.name}/out", "second/out"]
    assert [(item["name"], item["score"]) for item in answer["items"]] == [("a", 0.95), ("b <i>x", 0.9)]
    assert [entry["model"] for entry in answer["items"][0]["entries"]] == [0, 1]


def test_a_running_prediction_shows_its_new_slides(tmp_path: Path, slides: list[Path]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text('{"mpp": 0.5}')  # as another command leaves it
    with pytest.raises(InputError, match="holds neither slides"):
        client(tmp_path / "out")
    (tmp_path / "out" / "settings.json").write_text('{"weights_sha256": "0"}')
    browser = client(tmp_path / "out")
    assert listed(browser) == {}
    write_prediction(tmp_path / "out", slides[0], 0.5)
    assert list(listed(browser)) == ["a"]


def test_a_moved_slide_is_said_and_its_map_is_still_shown(out: Path, tmp_path: Path, slides: list[Path]) -> None:
    moved = tmp_path / "moved.tif"
    shutil.copy(slides[0], moved)
    write_prediction(out, moved, 0.7)
    browser = client(out)
    before = key(browser, "moved")
    assert browser.get(f"/tiles/{before}/picture/0/0_0").status_code == 200
    moved.unlink()
    assert "is not there any more" in listed(browser)["moved"]["entries"][0]["problem"]
    assert browser.get(f"/tiles/{before}/picture/0/0_0").status_code == 404
    after = key(browser, "moved")
    assert browser.get(f"/tiles/{after}/picture/0/0_0").status_code == 410
    assert browser.get(f"/tiles/{after}/map/0/0_0").status_code == 200
    assert browser.get(f"/tiles/{key(browser, 'a')}/picture/0/0_0").status_code == 200


def test_unreadable_files_are_said(out: Path, tmp_path: Path, slides: list[Path]) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(slides[0].read_bytes()[:3000])
    write_prediction(out, broken, 0.7)
    (out / "broken" / "map.ome.tif").write_bytes(b"II*\0 no tiff")
    (out / "cut").mkdir()
    (out / "cut" / "slide.json").write_text('{"name": "cu')
    browser = client(out)
    assert "slide.json: cannot be read" in listed(browser)["cut"]["entries"][0]["problem"]
    name = key(browser, "broken")
    for layer in ("picture", "map"):
        answer = browser.get(f"/tiles/{name}/{layer}/0/0_0")
        assert answer.status_code == 410, layer
        assert "cannot be read" in answer.text or "truncated" in answer.text
        assert str(tmp_path) not in answer.text
    assert listed(browser)["broken"]["entries"][0]["problem"].startswith("broken.tif: ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"score": 0.7', '"score": ' + "9" * 400),
        ('"name": "b"', '"name": "\\ud800"'),
        ('"width": 750', '"width": -1'),
        ('"width": 750', '"width": ' + "9" * 400),
        ('"mpp": 0.5', '"mpp": NaN'),
        ('"roi": {', '"roi": ' + "[" * 50000 + "{"),
    ],
    ids=["400 digits", "lone surrogate", "negative", "400 digits of width", "NaN", "50,000 brackets"],
)
def test_a_bad_slide_is_one_slides_problem(out: Path, slides: list[Path], old: str, new: str) -> None:
    write_prediction(out, slides[0].with_name("b.tif"), 0.7)
    file = out / "b" / "slide.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    items = listed(client(out))
    assert set(items) == {"a", "b", "b <i>x"}
    (entry,) = items["b"]["entries"]
    assert entry["problem"].startswith("b/slide.json: cannot be read")
    assert not items["a"]["entries"][0]["problem"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files")
def test_few_files_stay_open(tmp_path: Path, slides: list[Path]) -> None:
    for number in range(20):
        file = tmp_path / f"{number}.tif"
        file.symlink_to(slides[0])
        write_prediction(tmp_path / "out", file, 0.5)
    browser = client(tmp_path / "out")
    names = [item["entries"][0]["key"] for item in listed(browser).values()]
    assert len(names) == 20
    addresses = [f"/tiles/{name}/{layer}/0/0_0" for name in names for layer in ("picture", "map")]
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ThreadPoolExecutor(8) as pool:
        codes = [answer.status_code for answer in pool.map(browser.get, addresses)]
    gc.collect()
    assert codes == [200] * len(addresses)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 2 * OPEN_FILES + 8  # the client has some too


def test_slide_json_cannot_name_files_elsewhere(out: Path, slides: list[Path], tmp_path: Path) -> None:
    bad = {"map": {"file": "../secret.txt", "mpp": 2, "width": 750, "height": 525}, "regions": "../secret.txt"}
    (tmp_path / "bad").mkdir()
    shutil.copy(slides[0], tmp_path / "bad.tif")
    write_prediction(out, tmp_path / "bad.tif", 0.7, **bad)
    (out / "bad" / "regions.geojson").unlink()
    (out / "bad" / "regions.geojson").symlink_to(tmp_path / "secret.txt")
    browser = client(out)
    for regions in ("../secret.txt", str(tmp_path / "secret.txt"), "regions.geojson", "a\0b", "x" * 5000):
        record = json.loads((out / "bad" / "slide.json").read_text())
        (out / "bad" / "slide.json").write_text(json.dumps(record | {"regions": regions}))
        entry = listed(browser)["bad"]["entries"][0]
        assert (entry["regions"], entry["map"]) == (False, None)
        assert browser.get(f"/api/outlines/{entry['key']}").status_code == 404


HOSTILE = [
    "/../secret.txt",
    "/static/../app.py",
    "/static/../../../../../../etc/passwd",
    "/static/%2e%2e/app.py",
    "/static/..%2fapp.py",
    "/static/%252e%252e%252fapp.py",
    "/static/..%5capp.py",
    "/static//etc/passwd",
    "/static/%2Fetc%2Fpasswd",
    "/static/main.js%00.txt",
    "/static/",
    "/static/openseadragon",
    "/static/C:%5cwindows",
    "/static/..%c0%afapp.py",
    "/api/outlines/..%2fsecret.txt",
    "/api/outlines/%00",
    "/api/outlines/a",
    "/api/truth/{key}",
    "/tiles/{key}/picture/0/-1_0",
    "/tiles/{key}/picture/-1/0_0",
    "/tiles/{key}/picture/0/1_0",
    "/tiles/{key}/picture/5/0_0",
    "/tiles/{key}/picture/99/0_0",
    "/tiles/{key}/picture/4/12_0",
    "/tiles/{key}/picture/4/999999_999999",
    "/tiles/{key}/picture/4/99999999999999999999_0",
    "/tiles/{key}/picture/4/1e3_0",
    "/tiles/{key}/picture/4/0x1_0",
    "/tiles/{key}/picture/4/%D9%A1_0",
    "/tiles/{key}/picture/4/ 1_0",
    "/tiles/{key}/picture/4/1_0%0a",
    "/tiles/{key}/picture/nan/0_0",
    "/tiles/{key}/secret/0/0_0",
    "/tiles/{key}/..%2f..%2fsecret.txt/0/0_0",
    "/tiles/{key}%00/picture/0/0_0",
    "/tiles/../picture/0/0_0",
    "/tiles/0000000000000000/picture/0/0_0",
    "/tiles/secret.txt/picture/0/0_0",
    "/secret.txt",
    "/" + "a" * 5000,
    "/api/list?" + "a" * 5000,
]


def refused(browser: TestClient, address: str) -> bool:
    started = time.perf_counter()
    answer = browser.get(address)
    quick = time.perf_counter() - started < 5
    clean = not any(word in answer.text for word in ("Traceback", SECRET, "root:", "import "))
    return 400 <= answer.status_code < 500 and quick and clean


@pytest.mark.parametrize("address", HOSTILE)
def test_hostile_requests_are_refused(out: Path, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    browser = client(out)
    assert refused(browser, address.replace("{key}", key(browser, "a")))
    assert "Traceback" not in "".join(capfd.readouterr())


def test_something_unforeseen_is_one_line(out: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> bytes:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr("histoloc.viewer.app.render_tile", fail)
    browser = TestClient(make_app(Catalog([out])), base_url="http://localhost", raise_server_exceptions=False)
    answer = browser.get(f"/tiles/{key(browser, 'a')}/picture/0/0_0")
    assert (answer.status_code, answer.text) == (500, "something unforeseen happened")
    assert [record.message.count("\n") for record in caplog.records if record.levelname == "ERROR"] == [0]


def test_wrong_methods_are_refused(out: Path) -> None:
    browser = client(out)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for address in ("/", "/api/list", "/static/main.js", f"/tiles/{key(browser, 'a')}/picture/0/0_0"):
            assert browser.request(method, address).status_code == 405


def test_200_requests_at_once(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with client(out) as browser:
        name = key(browser, "a")
        good = f"/tiles/{name}/picture/4/5_4"
        addresses = [a.replace("{key}", name) for a in HOSTILE if "%00" not in a][:19] * 8
        addresses += [good, f"/tiles/{name}/map/2/1_1"] * 24
        started = time.perf_counter()
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(browser.get, addresses))
        assert time.perf_counter() - started < 15
    codes = [answer.status_code for answer in answers]
    assert len(codes) == 200
    assert codes[-48:] == [200] * 48
    assert all(400 <= code < 500 for code in codes[:-48])
    assert "Traceback" not in "".join(capfd.readouterr())


def test_names_with_markup_stay_names(out: Path) -> None:
    browser = client(out)
    assert "b <i>x" in listed(browser)
    assert browser.get("/tiles/" + quote("b <i>x") + "/picture/0/0_0").status_code == 404


def test_folders_that_cannot_be_shown(tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such folder"):
        Catalog([tmp_path / "absent"])
    with pytest.raises(InputError, match="holds neither slides"):
        Catalog([tmp_path / "empty"])
    with pytest.raises(InputError, match="given twice"):
        Catalog([out, out / ".." / "out"])
    assert len(listed(client(out / "a"))) == 1  # the folder of one slide


def test_the_real_slide(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(file) as slide:
        size = {"width": slide.width, "height": slide.height, "mpp": slide.mpp}
        expected = slide.read(512, 768, 256, 256, slide.mpp).astype(int)
    write_prediction(tmp_path, file, 0.5, **size)
    browser = client(tmp_path)
    result = pixels(browser.get(f"/tiles/{key(browser, file.stem)}/picture/4/2_3"))
    assert np.abs(result - expected).mean() < 4  # JPEG
