import shutil

import pytest

from tests.unit.prepare.array_layouts import WNIDS, make_tiny_imagenet
from utils.errors import InputError
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
    ("file", "old", "new", "message"),
    [
        (
            "wnids.txt",
            "n01629819",
            "../n01629819",
            r"wnids\.txt should list classes such as n01443537, but has '\.\./n",
        ),
        (
            "val/val_annotations.txt",
            "val_1.JPEG",
            "val_9.JPEG",
            r"should name images .* but has 'val_9\.JPEG\\tn016",
        ),
        (
            "val/val_annotations.txt",
            "val_1.JPEG",
            "../images/val_1.JPEG",
            "should name images of val/images",
        ),
        (
            "val/val_annotations.txt",
            "val_1.JPEG\t",
            "",
            "should name images of val/images and classes of wnids",
        ),
        (
            "val/val_annotations.txt",
            "n01629819",
            "n09999999",
            "should name images of val/images and classes of wnids",
        ),
    ],
)
def test_lists_that_do_not_fit_are_told(tiny, file, old, new, message):
    text = (tiny / file).read_text()
    assert old in text
    (tiny / file).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_tiny_imagenet([tiny])


def test_missing_lists_are_named(tiny, tmp_path):
    (tiny / "val/val_annotations.txt").unlink()
    with pytest.raises(InputError, match=r"val_annotations\.txt does not exist"):
        read_tiny_imagenet([tiny])
    with pytest.raises(
        InputError, match=r"no wnids\.txt in .*give --src the official tiny-imagenet-200\.zip"
    ):
        read_tiny_imagenet([tmp_path / "nothing"])
