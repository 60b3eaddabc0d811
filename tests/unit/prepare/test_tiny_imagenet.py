import shutil

import pytest

from tests.mistakes import refused
from tests.unit.prepare.array_layouts import WNIDS, make_tiny_imagenet
from utils.prepare.tiny_imagenet import read_tiny_imagenet


@pytest.fixture
def tiny(tmp_path):
    return make_tiny_imagenet(tmp_path / "tiny-imagenet-200")


def test_training_folders_and_validation_by_its_list_are_taken_as_they_are(tiny, tmp_path):
    listing = read_tiny_imagenet([tmp_path])
    assert (listing.classes, listing.notes, listing.problems) == (WNIDS, [], [])
    sources = {
        f"train/{wnid}/{wnid}_{photo}.JPEG": tiny / "train" / wnid / "images"
        for wnid in WNIDS
        for photo in "01"
    }
    sources |= {
        f"test/{WNIDS[2 - number]}/val_{number}.JPEG": tiny / "val" / "images"
        for number in range(3)
    }
    assert set(listing.files) == set(sources)
    for name, folder in sources.items():
        assert listing.files[name]() == (folder / name.split("/")[2]).read_bytes()


def test_the_first_classes_are_the_first_that_there_are(tiny):
    shutil.rmtree(tiny / "train" / WNIDS[0])
    assert read_tiny_imagenet([tiny]).notes == [f"1 of the 3 classes are not in {tiny}/train"]
    listing = read_tiny_imagenet([tiny], 1)
    assert listing.classes == [WNIDS[1]] and listing.notes == []
    assert {name.split("/")[1] for name in listing.files} == {WNIDS[1]} and len(listing.files) == 3


@pytest.mark.parametrize(
    ("file", "old", "new", "facts"),
    [
        ("wnids.txt", "n01629819", "../n01629819", ("../n01629819",)),
        ("val/val_annotations.txt", "val_1.JPEG", "val_9.JPEG", ("val_9.JPEG", "val/images")),
        (
            "val/val_annotations.txt",
            "val_1.JPEG",
            "../images/val_1.JPEG",
            ("../images/val_1.JPEG", "val/images"),
        ),
        ("val/val_annotations.txt", "val_1.JPEG\t", "", ("wnids.txt", "val/images")),
        ("val/val_annotations.txt", "n01629819", "n09999999", (r"\tn09999999", "wnids.txt")),
    ],
)
def test_lists_that_do_not_fit_are_told(tiny, file, old, new, facts):
    text = (tiny / file).read_text()
    assert old in text
    (tiny / file).write_text(text.replace(old, new))
    with refused(tiny / file, *facts):
        read_tiny_imagenet([tiny])


def test_missing_lists_are_named(tiny, tmp_path):
    (tiny / "val/val_annotations.txt").unlink()
    with refused("val_annotations.txt"):
        read_tiny_imagenet([tiny])
    with refused("wnids.txt", "nothing", "--src", "tiny-imagenet-200.zip"):
        read_tiny_imagenet([tmp_path / "nothing"])
