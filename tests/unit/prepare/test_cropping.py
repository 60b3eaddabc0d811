import os

import numpy as np
import pytest
from PIL import Image

from tests.mistakes import refused
from utils.prepare import cropping
from utils.prepare.cropping import Crop, clamp, clear_target, crop_all, crop_one

BOX = (4, 6, 24, 20)


def make_photo(path, mode="RGB", size=(40, 30), **save):
    """A smooth photo, so that JPEG changes little."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return pixels


def only(outcomes):
    (outcome,) = outcomes
    return outcome


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ((-5, -1, 50, 31), (0, 0, 40, 30)),
        ((1.4, 1.6, 9.4, 9.6), (1, 2, 9, 10)),
        ((35, 10, 60, 20), (35, 10, 40, 20)),
    ],
)
def test_boxes_are_rounded_and_cut_at_the_border(box, expected):
    assert clamp(box, (40, 30)) == expected


def test_a_crop_has_the_pixels_of_its_box(tmp_path):
    pixels = make_photo(tmp_path / "photo.png")
    outcome = crop_one(Crop(tmp_path / "photo.png", BOX, "train/a/1.jpg"), tmp_path)
    assert (outcome.made, outcome.clamped, outcome.problem) == (True, False, None)
    with Image.open(tmp_path / "train/a/1.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (20, 14))
        difference = np.abs(np.asarray(image, dtype=int) - pixels[6:20, 4:24])
    assert difference.mean() < 2


def test_a_box_over_the_border_is_clamped_and_counted(tmp_path):
    make_photo(tmp_path / "photo.png")
    outcome = crop_one(Crop(tmp_path / "photo.png", (30, 20, 99, 99), "train/a/1.jpg"), tmp_path)
    assert outcome.made
    assert outcome.clamped
    with Image.open(tmp_path / "train/a/1.jpg") as image:
        assert image.size == (10, 10)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png")],
)
def test_every_colour_mode_becomes_rgb(tmp_path, mode, suffix):
    make_photo(tmp_path / f"photo.{suffix}", mode)
    outcome = crop_one(Crop(tmp_path / f"photo.{suffix}", BOX, "train/a/1.jpg"), tmp_path)
    assert outcome.mode == mode
    with (
        Image.open(tmp_path / f"photo.{suffix}") as photo,
        Image.open(tmp_path / "train/a/1.jpg") as image,
    ):
        assert image.mode == "RGB"
        difference = np.asarray(photo.convert("RGB").crop(BOX), dtype=int) - np.asarray(
            image, dtype=int
        )
    assert np.abs(difference).mean() < 25


def test_exif_orientation_does_not_turn_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    make_photo(tmp_path / "photo.jpg", exif=exif)
    crop_one(Crop(tmp_path / "photo.jpg", BOX, "train/a/1.jpg"), tmp_path)
    with Image.open(tmp_path / "train/a/1.jpg") as image:
        assert image.size == (20, 14)
        assert 0x0112 not in image.getexif()


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 20), (8, 5, 3, 20), (50, 5, 60, 20), (-9, -9, 0, 0), (0, 30, 9, 40)]
)
def test_a_box_without_area_is_a_problem(tmp_path, box):
    make_photo(tmp_path / "photo.png")
    problem = crop_one(Crop(tmp_path / "photo.png", box, "train/a/1.jpg"), tmp_path).problem
    assert problem.kind == "empty box"
    assert "photo.png" in problem.where
    assert not (tmp_path / "train").exists()


def test_unreadable_and_missing_photos_are_problems(tmp_path):
    make_photo(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:700])
    (tmp_path / "text.jpg").write_text("not a photo")
    make_photo(tmp_path / "good.jpg")
    names = ["cut.jpg", "text.jpg", "missing.jpg", "good.jpg"]
    crops = [Crop(tmp_path / name, BOX, f"train/a/{name}") for name in names]
    outcomes = crop_all(crops, tmp_path / "out", workers=1)
    problems = [outcome.problem for outcome in outcomes[:3]]
    assert [problem.kind for problem in problems] == [
        "unreadable photo",
        "unreadable photo",
        "missing photo",
    ]
    assert all(name in problem.where for name, problem in zip(names, problems))
    assert [path.name for path in (tmp_path / "out").rglob("*.jpg")] == ["good.jpg"]
    not_a_number = crop_one(
        Crop(tmp_path / "good.jpg", (float("nan"), 0, 9, 9), "train/a/1.jpg"), tmp_path
    )
    assert not_a_number.problem.kind == "unreadable photo"


def test_what_is_up_to_date_is_left_alone(tmp_path):
    make_photo(tmp_path / "photo.png")
    output = tmp_path / "train/a/1.jpg"
    crop = Crop(tmp_path / "photo.png", BOX, "train/a/1.jpg")
    crop_one(crop, tmp_path)
    first = output.stat().st_mtime_ns
    again = crop_one(crop, tmp_path)
    assert (again.made, again.problem) == (False, None)
    assert output.stat().st_mtime_ns == first


@pytest.mark.parametrize("change", ["box", "photo", "torn crop", "foreign crop"])
def test_what_is_out_of_date_is_made_again(tmp_path, change):
    make_photo(tmp_path / "photo.png")
    output, box = tmp_path / "train/a/1.jpg", BOX
    crop_one(Crop(tmp_path / "photo.png", BOX, "train/a/1.jpg"), tmp_path)
    before = output.read_bytes()
    if change == "box":
        box = (0, 0, 40, 30)
    elif change == "photo":
        make_photo(tmp_path / "photo.png", "L", (50, 50))
    elif change == "torn crop":
        output.write_bytes(before[:-20])
    else:
        make_photo(output)
    assert crop_one(Crop(tmp_path / "photo.png", box, "train/a/1.jpg"), tmp_path).made
    assert (output.read_bytes() == before) == (change in ("torn crop", "foreign crop"))


def test_processes_write_what_one_process_writes(tmp_path):
    crops = []
    for number in range(40):
        make_photo(tmp_path / f"{number}.png", size=(40 + number, 30))
        crops.append(
            Crop(tmp_path / f"{number}.png", (number, 0, number + 20, 20), f"test/a/{number}.jpg")
        )
    (tmp_path / "7.png").unlink()
    one, two = (crop_all(crops, tmp_path / f"out{workers}", workers) for workers in (1, 2))
    assert one == two
    assert [number for number, outcome in enumerate(two) if outcome.problem] == [7]
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / f"out{n}").rglob("*.jpg")}
        for n in (1, 2)
    ]
    assert written[0] == written[1]
    assert len(written[0]) == 39


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_the_run_and_leaves_no_torn_file(tmp_path, monkeypatch, workers):
    make_photo(tmp_path / "photo.png")

    def save(self, path, *args, **kwargs):
        path.write_bytes(b"the first half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with refused(tmp_path / "out", "No space left on device"):
        crop_all([Crop(tmp_path / "photo.png", BOX, "train/a/1.jpg")], tmp_path / "out", workers)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_killed_process_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cropping, "crop_one", die)
    with refused("-j"):
        crop_all([Crop(tmp_path / "photo.png", BOX, "train/a/1.jpg")], tmp_path, workers=2)


def die(crop, target):
    import os

    os._exit(9)


def test_two_crops_with_one_name_are_refused(tmp_path):
    crops = [Crop(tmp_path / f"1.{suffix}", BOX, "train/a/1.jpg") for suffix in ("png", "jpg")]
    with refused(tmp_path / "train/a/1.jpg"):
        crop_all(crops, tmp_path, workers=1)


def test_leftovers_of_a_killed_run_vanish_and_nothing_else(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for name in ("1.jpg", ".1.jpg.x1.part.jpg", ".DS_Store"):
        (folder / name).touch()
    clear_target(tmp_path, {"train/a/1.jpg", "train/a/2.jpg"})
    assert {path.name for path in folder.iterdir()} == {"1.jpg", ".DS_Store"}


def test_images_of_other_options_are_not_mixed_in(tmp_path):
    (tmp_path / "test" / "b").mkdir(parents=True)
    (tmp_path / "test" / "b" / "old.jpg").touch()
    with refused(tmp_path, "1", "test/b/old.jpg", "--out"):
        clear_target(tmp_path, {"train/a/1.jpg"})
    assert (tmp_path / "test/b/old.jpg").exists()


def test_a_pipe_is_no_photo(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    outcome = crop_one(Crop(tmp_path / "pipe.png", BOX, "train/a/1.jpg"), tmp_path)
    assert not outcome.made and "pipe.png" in outcome.problem.where
