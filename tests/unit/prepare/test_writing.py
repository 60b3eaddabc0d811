import io

import numpy as np
import pytest
from PIL import Image

from tests.mistakes import refused
from utils.prepare.writing import png, write_all


def test_a_png_loses_nothing():
    colours = np.random.default_rng(0).integers(0, 256, (32, 31, 3), dtype=np.uint8)
    for pixels, expected in (
        (colours, colours),
        (colours[..., 0], np.repeat(colours[..., :1], 3, axis=2)),
    ):
        with Image.open(io.BytesIO(png(pixels))) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_there_with_the_same_bytes_is_left_alone(tmp_path, workers):
    files = {
        f"train/{number % 3}/{number}.png": lambda number=number: b"%d" % number
        for number in range(50)
    }
    assert write_all(files, tmp_path, workers) == 50
    assert {
        path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.png")
    } == {name: content() for name, content in files.items()}
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in files}
    (tmp_path / "train/0/0.png").unlink()
    (tmp_path / "train/1/1.png").write_bytes(b"torn")
    assert write_all(files, tmp_path, workers) == 2
    assert (tmp_path / "train/1/1.png").read_bytes() == b"1"
    kept = set(files) - {"train/0/0.png", "train/1/1.png"}
    assert all((tmp_path / name).stat().st_mtime_ns == times[name] for name in kept)


def test_what_cannot_be_read_or_written_is_one_sentence_and_leaves_no_torn_file(tmp_path):
    def missing():
        return (tmp_path / "nothing.JPEG").read_bytes()

    with refused(tmp_path, tmp_path / "nothing.JPEG"):
        write_all({"train/a/1.png": missing}, tmp_path, 1)
    (tmp_path / "train").write_text("a file in the way")
    with refused(tmp_path / "train/a"):
        write_all({"train/a/1.png": lambda: b"1"}, tmp_path, 1)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["train"]
