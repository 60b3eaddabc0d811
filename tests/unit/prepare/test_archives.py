import os

import pytest

from tests.mistakes import check_line, refused
from tests.unit.official_layouts import make_cub, make_dogs
from tests.unit.photos import real_data
from utils.prepare.archives import read_cub, read_dogs
from utils.prepare.cropping import Problem


@pytest.fixture
def cub(tmp_path):
    return make_cub(tmp_path / "CUB_200_2011")


@pytest.fixture
def dogs(tmp_path):
    return make_dogs(tmp_path / "dogs")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_cub_has_the_official_split_classes_and_boxes(cub, tmp_path):
    listing = read_cub([tmp_path])
    assert listing.classes == ["001.Albatross", "002.Ani", "003.Auklet"]
    assert (len(listing.crops), listing.problems, listing.notes) == (10, [], [])
    second, third = listing.crops[1:3]
    assert second.output == "train/001.Albatross/bird_2.jpg"
    assert second.box == (2.0, 2.0, 22.0, 17.0)
    assert second.source == cub / "images/001.Albatross/bird_2.jpg"
    assert third.output == "test/001.Albatross/bird_3.jpg"


def test_cub_can_be_cut_to_the_first_classes(cub):
    listing = read_cub([cub], 2)
    assert listing.classes == ["001.Albatross", "002.Ani"]
    assert {crop.output.split("/")[1] for crop in listing.crops} == {"001.Albatross", "002.Ani"}


def remove_class(folder):
    for photo in folder.iterdir():
        photo.unlink()
    folder.rmdir()


def test_the_first_classes_are_the_first_that_have_a_folder(cub, dogs):
    remove_class(cub / "images/001.Albatross")
    listing = read_cub([cub], 1)
    assert listing.classes == ["002.Ani"]
    assert {crop.output.split("/")[1] for crop in listing.crops} == {"002.Ani"} and len(
        listing.crops
    ) == 3
    assert listing.notes == [f"4 listed photos of 1 classes are not in {cub}/images"]
    assert read_cub([cub], 9).classes == ["002.Ani", "003.Auklet"]
    remove_class(dogs / "Images/n02085620-Chihuahua")
    assert read_dogs([dogs], 1).classes == ["n02085782-Japanese_spaniel"]


def test_a_class_without_a_folder_is_a_note_and_a_missing_photo_a_crop_that_fails(cub):
    remove_class(cub / "images/002.Ani")
    (cub / "images/001.Albatross/bird_1.jpg").unlink()
    listing = read_cub([cub])
    assert listing.notes == [f"3 listed photos of 1 classes are not in {cub}/images"]
    assert listing.classes == ["001.Albatross", "003.Auklet"]
    assert listing.problems == []
    assert cub / "images/001.Albatross/bird_1.jpg" in [crop.source for crop in listing.crops]
    assert len(listing.crops) == 7


@pytest.mark.parametrize(
    ("file", "line"), [("bounding_boxes", "4 4.0 2.0 20.0 15.0\n"), ("train_test_split", "4 1\n")]
)
def test_a_photo_that_a_list_lacks_is_named(cub, file, line):
    edit(cub / f"{file}.txt", line, "")
    listing = read_cub([cub])
    assert listing.problems == [
        Problem("missing list entry", f"001.Albatross/bird_4.jpg: no line 4 in {file}.txt")
    ]
    assert len(listing.crops) == 9


def test_files_that_no_list_names_are_problems(cub):
    (cub / "images/002.Ani/notes.txt").touch()
    (cub / "images/002.Ani/.DS_Store").touch()
    kinds = [(problem.kind, problem.where) for problem in read_cub([cub]).problems]
    assert kinds == [("file that no list names", f"{cub}/images/002.Ani/notes.txt")]


def test_names_that_are_no_utf8_get_a_valid_name(cub):
    photo = cub / "images/003.Auklet/bird_8.jpg"
    photo.rename(photo.with_name(os.fsdecode(b"caf\xe9.jpg")))
    lines = (cub / "images.txt").read_bytes().replace(b"bird_8.jpg", b"caf\xe9.jpg")
    (cub / "images.txt").write_bytes(lines)
    listing = read_cub([cub])
    assert listing.problems == []
    crop = next(crop for crop in listing.crops if "caf" in crop.output)
    assert crop.output == "train/003.Auklet/caf%xe9.jpg"
    assert crop.source.is_file()


@pytest.mark.parametrize(
    ("file", "old", "new", "facts"),
    [
        ("bounding_boxes", "20.0 15.0", "20.0", ("bounding_boxes.txt", "4", "1.0 2.0 20.0")),
        ("bounding_boxes", "20.0 15.0", "20.0 wide", ("bounding_boxes.txt", "wide")),
        ("images", "001.Albatross/bird_1.jpg", "../../bird_1.jpg", ("'../../bird_1.jpg'",)),
        ("images", "001.Albatross/bird_1.jpg", "../bird_1.jpg", ("'../bird_1.jpg'",)),
    ],
)
def test_malformed_lists_are_refused(cub, file, old, new, facts):
    edit(cub / f"{file}.txt", old, new)
    with refused(*facts):
        read_cub([cub])


def test_a_missing_list_is_named(cub):
    (cub / "bounding_boxes.txt").unlink()
    with refused("bounding_boxes.txt"):
        read_cub([cub])


def test_dogs_have_one_crop_a_photo_of_the_largest_dog(dogs):
    listing = read_dogs([dogs])
    assert listing.classes == ["n02085620-Chihuahua", "n02085782-Japanese_spaniel"]
    assert (len(listing.crops), listing.problems) == (7, [])
    boxes = {crop.output: crop.box for crop in listing.crops}
    assert boxes["train/n02085620-Chihuahua/n02085620_1.jpg"] == (0, 0, 30, 25)
    assert boxes["test/n02085620-Chihuahua/n02085620_2.jpg"] == (1, 2, 11, 12)
    assert sum(name.startswith("test/") for name in boxes) == 2


def test_dogs_can_come_in_separate_folders(dogs):
    (dogs / "lists").mkdir()
    for name in ("train_list.mat", "test_list.mat"):
        (dogs / name).rename(dogs / "lists" / name)
    assert len(read_dogs([dogs / "lists", dogs / "Images", dogs / "Annotation"]).crops) == 7


def test_faulty_annotations_of_dogs_are_named(dogs):
    folder = dogs / "Annotation/n02085620-Chihuahua"
    (folder / "n02085620_1").unlink()
    (folder / "n02085620_2").write_text("<annotation>")
    (folder / "n02085620_3").write_text("<annotation></annotation>")
    edit(folder / "n02085620_4", "<xmin>1</xmin>", "<xmin>left</xmin>")
    listing = read_dogs([dogs])
    assert sorted(problem.kind for problem in listing.problems) == [
        "annotation without a dog",
        "missing annotation",
        "unreadable annotation",
        "unreadable annotation",
    ]
    assert len(listing.crops) == 3


@pytest.mark.parametrize("content", [None, b"no MATLAB file"])
def test_dogs_need_the_official_lists(dogs, content):
    if content is None:
        (dogs / "test_list.mat").unlink()
    else:
        (dogs / "test_list.mat").write_bytes(content)
    with refused("test_list.mat", "file_list"):
        read_dogs([dogs])


def test_real_cub():
    listing = read_cub([real_data() / "CUB_200_2011"])
    assert len(listing.classes) == 40
    assert len(listing.crops) == 2290
    assert sum(crop.output.startswith("train/") for crop in listing.crops) == 1200
    assert listing.problems == []
    check_line(listing.notes[0], "9,498", "160")
