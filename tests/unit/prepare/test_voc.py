import pickle

import pytest

from tests.mistakes import refused
from tests.unit.official_layouts import make_voc
from tests.unit.photos import real_data
from utils.data.datasets import VOC_CLASSES
from utils.prepare.voc import VOC_ANIMALS, read_voc, read_voc_lists


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path / "VOCdevkit" / "VOC2012")


def entry(source, number, box=("1", "2", "31", "22"), category=None):
    edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), box))
    return {
        "source": source,
        "category": category or VOC_CLASSES[number],
        "class": number,
        "bndbox": edges,
    }


def write_list(path, entries):
    path.write_bytes(pickle.dumps(entries))
    return path


def outputs(listing):
    return {crop.output: crop.box for crop in listing.crops}


def test_every_object_that_is_not_difficult_is_cropped_in_the_official_split(voc, tmp_path):
    listing = read_voc([tmp_path], VOC_CLASSES)
    assert (listing.problems, listing.notes) == ([], [])
    assert outputs(listing) == {
        "train/02_cat/2008_01_0.jpg": (1, 1, 11, 11),
        "train/02_cat/2008_01_1.jpg": (5, 5, 25, 15),
        "train/10_person/2008_01_0.jpg": (2, 2, 30, 25),
        "train/00_cow/2008_02_0.jpg": (3, 3, 23, 13),
        "test/19_car/2008_03_0.jpg": (1, 1, 40, 30),
        "test/13_sheep/2008_04_0.jpg": (1, 1, 21, 16),
    }


def test_animals_are_six_classes_with_the_ids_of_the_twenty(voc):
    listing = read_voc([voc], VOC_ANIMALS)
    assert listing.classes == ["00_cow", "02_cat", "05_horse", "06_bird", "07_dog", "13_sheep"]
    assert {name.split("/")[1] for name in outputs(listing)} == {"00_cow", "02_cat", "13_sheep"}


def test_the_first_classes_are_the_first_that_have_an_object(voc, tmp_path):
    assert read_voc([voc], VOC_CLASSES, 2).classes == ["00_cow", "02_cat"]
    assert {name.split("/")[1] for name in outputs(read_voc([voc], VOC_CLASSES, 2))} == {
        "00_cow",
        "02_cat",
    }
    assert {name.split("/")[1] for name in outputs(read_voc([voc], VOC_ANIMALS, 3))} == {
        "00_cow",
        "02_cat",
        "13_sheep",
    }
    lists = [
        write_list(
            tmp_path / "a.pkl", [entry("2008_04", 13), entry("2008_01", 2), entry("2008_03", 19)]
        )
    ]
    assert set(outputs(read_voc_lists([voc], lists, VOC_CLASSES, 1))) == {
        "train/02_cat/2008_01_0.jpg"
    }


def test_without_image_sets_every_second_photo_is_for_test(tmp_path):
    listing = read_voc([make_voc(tmp_path, image_sets=False)], VOC_CLASSES)
    splits = {name.split("/")[2][:7]: name.split("/")[0] for name in outputs(listing)}
    assert splits == {"2008_01": "train", "2008_02": "test", "2008_03": "train", "2008_04": "test"}
    assert "every second photo goes to test" in listing.notes[0]


def test_faults_are_named(voc):
    (voc / "Annotations/2008_01.xml").unlink()
    (voc / "Annotations/2008_02.xml").write_text("no XML")
    (voc / "JPEGImages/notes.txt").touch()
    text = (voc / "Annotations/2008_04.xml").read_text()
    (voc / "Annotations/2008_04.xml").write_text(text.replace("sheep", "unicorn"))
    listing = read_voc([voc], VOC_CLASSES)
    assert sorted(
        (problem.kind, problem.where.split("/")[-1].split(": ")[0]) for problem in listing.problems
    ) == [
        ("file that is no photo", "notes.txt"),
        ("missing annotation", "2008_01.xml"),
        ("unknown class", "2008_04"),
        ("unreadable annotation", "2008_02.xml"),
    ]
    assert list(outputs(listing)) == ["test/19_car/2008_03_0.jpg"]


def test_lists_give_exactly_their_objects_by_number_of_the_class(voc, tmp_path):
    train = write_list(
        tmp_path / "a.pkl", [entry("2008_01", 2), entry("2008_01", 10, category="hand")]
    )
    test = write_list(
        tmp_path / "b.pkl", [entry("2008_04", 13), entry("2008_04", 13, ("3", "3", "9", "9"))]
    )
    listing = read_voc_lists([voc], [train, test], VOC_CLASSES)
    assert outputs(listing) == {
        "train/02_cat/2008_01_0.jpg": (1, 2, 31, 22),
        "train/10_person/2008_01_0.jpg": (1, 2, 31, 22),
        "test/13_sheep/2008_04_0.jpg": (1, 2, 31, 22),
        "test/13_sheep/2008_04_1.jpg": (3, 3, 9, 9),
    }
    assert set(outputs(read_voc_lists([voc], [train], VOC_ANIMALS))) == {
        "train/02_cat/2008_01_0.jpg"
    }


@pytest.mark.parametrize(
    "entries",
    [
        [{"source": "a"}],
        [entry("a", 2) | {"class": 20}],
        [entry("a", 2) | {"class": -1}],
        [entry("a", 2, ("1", "2", "three", "4"))],
        {"source": "a"},
        7,
    ],
)
def test_other_lists_are_refused(voc, tmp_path, entries):
    with refused("a.pkl", "source", "class", "bndbox"):
        read_voc_lists([voc], [write_list(tmp_path / "a.pkl", entries)], VOC_CLASSES)


def test_a_source_of_a_list_cannot_lead_out_of_the_folders(voc, tmp_path):
    path = write_list(tmp_path / "a.pkl", [entry("../../../2008_01", 2)])
    (crop,) = read_voc_lists([voc], [path], VOC_CLASSES).crops
    assert crop.output == "train/02_cat/2008_01_0.jpg"
    assert crop.source == voc / "JPEGImages/2008_01.jpg"


def test_real_photos():
    listing = read_voc([real_data() / "VOC2012_mini"], VOC_CLASSES)
    assert listing.problems == []
    assert len(listing.crops) == 115  # of 135 objects 20 are difficult


def test_real_lists():
    lists = [real_data() / "reference_lists" / f"VOC_{name}data.pkl" for name in ("train", "val")]
    listing = read_voc_lists([real_data() / "VOC2012_mini"], lists, VOC_CLASSES)
    assert len({crop.output for crop in listing.crops}) == len(listing.crops) == 13609 + 13841
    in_sample = [crop for crop in listing.crops if crop.source.is_file()]
    assert [(crop.output, crop.box) for crop in in_sample] == [
        ("train/02_cat/2008_006599_0.jpg", (34, 1, 281, 283))
    ]
