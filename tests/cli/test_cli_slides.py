import numpy as np
import pytest
from PIL import Image

from factory import blob, make_slide
from histoloc.cli.main import main


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "slide.tif"
    make_slide(path, (2048, 1024), 0.5, [blob("tissue", 700, 500, 350)])
    return path


def test_info(slide, capsys):
    main(["slides", "info", str(slide)])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "level" not in line)
    assert (lines["width"], lines["height"], float(lines["mpp"])) == ("2048", "1024", 0.5)
    main(["slides", "info", str(slide)])
    assert "level 1      512 x 256 px, 2 µm/px" in capsys.readouterr().out


def test_tissue_writes_a_picture(slide, tmp_path, capsys):
    main(["slides", "tissue", str(slide), "--out", str(tmp_path / "t.png"), "--at", "4"])
    output = capsys.readouterr().out
    share = float(output.split("tissue on ")[1].split(" %")[0]) / 100
    truth = np.pi * 350**2 / (2048 * 1024)  # a star about a circle of this radius
    assert share == pytest.approx(truth, rel=0.1)
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.size == (256, 128)


@pytest.mark.parametrize("command", [["info"], ["tissue", "--out", "t.png"]])
def test_what_is_no_slide_ends_with_one_sentence(command, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("nothing")
    with pytest.raises(SystemExit) as stopped:
        main(["slides", command[0], str(tmp_path / "note.txt"), *command[1:]])
    assert stopped.value.code == 2
    assert "note.txt: is no readable image" in capsys.readouterr().err


def test_a_picture_without_scale_names_the_flag(tmp_path, capsys):
    Image.new("RGB", (64, 64), "pink").save(tmp_path / "p.png")
    with pytest.raises(SystemExit) as stopped:
        main(["slides", "info", str(tmp_path / "p.png")])
    assert stopped.value.code == 2
    assert "--mpp" in capsys.readouterr().err
    main(["slides", "info", str(tmp_path / "p.png"), "--mpp", "0.25"])
    assert "64 x 64 px, 0.25 µm/px" in capsys.readouterr().out
