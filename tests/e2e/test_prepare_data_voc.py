"""PrepareData.py of VOC 2012: objects, animals, and lists."""

import pickle

import pytest
from PIL import Image

from tests.e2e.prepared import images, row
from tests.unit.official_layouts import make_voc
from tests.unit.photos import real_data

pytestmark = pytest.mark.e2e


def test_voc_objects_and_animals(prepare, tmp_path):
    voc = make_voc(tmp_path / "VOC2012")
    assert row(prepare("VOC2012_crop", "--src", voc)[1], "VOC2012_crop") == [5, 4, 2, 0]
    assert row(prepare("VOC2012_animal", "--src", voc)[1], "VOC2012_animal") == [3, 3, 1, 0]
    assert images(tmp_path / "data/VOC2012_animal") == [
        "test/13_sheep/2008_04_0.jpg",
        "train/00_cow/2008_02_0.jpg",
        "train/02_cat/2008_01_0.jpg",
        "train/02_cat/2008_01_1.jpg",
    ]


@pytest.mark.parametrize(
    "options", [["--list", "a.pkl", "--list", "b.pkl"], ["--list", "a.pkl", "--val-list", "b.pkl"]]
)
def test_voc_lists(prepare, tmp_path, options):
    voc = make_voc(tmp_path / "VOC2012", image_sets=False)
    box = {"xmin": "1", "ymin": "2", "xmax": "13", "ymax": "9"}
    for name, source in (("a", "2008_01"), ("b", "2008_04")):
        entries = [{"source": source, "category": "cat", "class": 2, "bndbox": box}]
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(entries))
    words = [tmp_path / word if word.endswith(".pkl") else word for word in options]
    assert prepare("VOC2012_crop", "--src", voc, *words)[0] == 0
    target = tmp_path / "data/VOC2012_crop"
    assert images(target) == ["test/02_cat/2008_04_0.jpg", "train/02_cat/2008_01_0.jpg"]
    with Image.open(target / "train/02_cat/2008_01_0.jpg") as image:
        assert image.size == (12, 7)


def test_real_voc(prepare, tmp_path):
    code, output, _ = prepare("VOC2012_crop", "--src", real_data() / "VOC2012_mini")
    assert (code, row(output, "VOC2012_crop")) == (0, [19, 54, 61, 0])
