"""What is an image and what is left out, in the folders that people have."""

import os

import pytest

from tests.mistakes import check_line, refused
from tests.unit.photos import make_folder, make_photo
from utils.data.images import ImageData, load_images
from utils.data.listing import order_note


def load(root) -> ImageData:
    return load_images("folder", "train", data_root="nowhere", path=root)


@pytest.fixture
def photos(tmp_path):
    return make_folder(tmp_path / "train", {"a": 2, "b": 1})


HIDDEN = (
    ".ipynb_checkpoints/1.jpg",
    "a/.ipynb_checkpoints/1.jpg",
    "a/._00.jpg",
    ".git/x/1.jpg",
    "b/.trash.jpg",
)
OF_SYSTEMS = (
    "__MACOSX/a/1.jpg",
    "a/@eaDir/00.jpg/thumb.jpg",
    "b/__MACOSX/1.jpg",
    "lost+found/1.jpg",
)


@pytest.mark.parametrize("name", HIDDEN + OF_SYSTEMS)
def test_hidden_and_junk_files_and_folders_are_neither_images_nor_classes(photos, name):
    make_photo(photos / name)
    data = load(photos)
    assert data.paths == ["a/00.jpg", "a/01.jpg", "b/00.jpg"] and data.classes == ["a", "b"]
    kind = "hidden" if name in HIDDEN else "of the system"
    assert len(data.notes) == 1 and data.notes[0].startswith(f"left out: 1 {kind} (")


def test_what_would_wait_for_ever_when_it_is_opened_is_no_image(photos):
    os.mkfifo(photos / "a" / "pipe.png")
    (photos / "b" / "link.png").symlink_to("/dev/zero")
    data = load(photos)
    assert data.paths == ["a/00.jpg", "a/01.jpg", "b/00.jpg"]
    check_line(data.notes[0], 2, "a/pipe.png", "b/link.png")


def test_what_is_left_out_is_counted_by_kind_and_named(photos):
    for name in (
        "a/x.txt",
        "b/y.TXT",
        "a/Thumbs.db",
        "b/noending",
        "a/._00.jpg",
        "b/.DS_Store",
        "b/z.mp4",
    ):
        (photos / name).write_bytes(b"x")
    assert load(photos).notes == [
        "left out: 1 .mp4 (b/z.mp4); 2 .txt (a/x.txt, b/y.TXT); 2 hidden (a/._00.jpg, b/.DS_Store);"
        " 1 of the system (a/Thumbs.db); 1 without an ending (b/noending)"
    ]


def test_nothing_is_said_where_nothing_is_left_out(photos):
    assert load(photos).notes == []


def test_a_link_to_a_folder_above_lists_nothing_twice(photos):
    for name, target in {
        "a/up": photos,
        "a/class": photos / "a",
        "b/top": photos.parent,
        "b/other": "../a",
    }.items():
        (photos / name).symlink_to(target)
    make_folder(photos.parent / "val", {"a": 3, "b": 3})
    data = load(photos)
    assert data.paths == ["a/00.jpg", "a/01.jpg", "b/00.jpg"]
    assert data.notes == ["left out: 4 links to folders listed already (a/class, a/up, b/other, …)"]


def test_a_folder_that_two_links_lead_to_is_listed_once(photos, tmp_path):
    elsewhere = make_folder(tmp_path / "elsewhere", {"x": 2})
    for name in ("a/one", "a/two"):
        (photos / name).symlink_to(elsewhere)
    (elsewhere / "x" / "round").symlink_to(elsewhere)
    assert load(photos).paths == [
        "a/00.jpg",
        "a/01.jpg",
        "a/one/x/00.jpg",
        "a/one/x/01.jpg",
        "b/00.jpg",
    ]


def test_a_class_folder_that_is_a_link_is_that_class(photos, tmp_path):
    elsewhere = make_folder(tmp_path / "elsewhere", {"x": 2})
    (photos / "c").symlink_to(elsewhere / "x")
    (photos / "a" / "linked").symlink_to(elsewhere / "x")  # its images are those of class c
    data = load(photos)
    assert data.paths == ["a/00.jpg", "a/01.jpg", "b/00.jpg", "c/00.jpg", "c/01.jpg"]
    assert data.targets.tolist() == [0, 0, 1, 2, 2]


def test_a_class_folder_that_is_another_class_or_the_folder_itself_is_refused(photos):
    (photos / "c").symlink_to("a")
    with refused("c", "links", "1"):
        load(photos)
    (photos / "c").unlink()
    (photos / "c").symlink_to(photos.parent)
    with refused("c"):
        load(photos)


@pytest.mark.parametrize("ending", ["gif", "jfif", "JPE", "avif", "jp2", "tga", "pbm"])
def test_whatever_pillow_opens_is_read(photos, ending):
    make_photo(photos / f"b/1.{ending}", mode="1" if ending == "pbm" else "RGB")
    data = load(photos)
    assert data.paths[2:] == ["b/00.jpg", f"b/1.{ending}"] and data.notes == []
    assert len(data.decode([3])) == 1


def test_formats_that_this_pillow_cannot_open_are_said(photos):
    (photos / "a" / "1.heic").write_bytes(b"x")
    assert load(photos).notes == ["left out: 1 .heic, which this Pillow cannot read (a/1.heic)"]


def test_images_beside_the_class_folders_are_said(photos):
    make_photo(photos / "stray.jpg")
    assert load(photos).notes == ["left out: 1 images in no class folder (stray.jpg)"]


@pytest.mark.parametrize(
    ("names", "printed"),
    [
        (
            ["0", "1", "10", "11", "2"],
            "0, 1, 10, 11, …; a network from elsewhere that counts 0, 1, 2, 10, …",
        ),
        (
            ["class1", "class10", "class9"],
            "class1, class10, class9, …; a network from elsewhere that counts class1, ",
        ),
        (["00", "01", "10"], ""),
        (["n01440764", "n01443537"], ""),
        (["001.Black", "002.Laysan"], ""),
        (["B", "a", "b2"], ""),
        (["x-1", "x1"], ""),
    ],
)
def test_the_order_of_numbers_that_sort_as_text_is_said(names, printed):
    assert (
        names == sorted(names)
        and printed in order_note(names)
        and bool(printed) == bool(order_note(names))
    )


def test_labels_follow_the_names_as_text(tmp_path):
    data = load(make_folder(tmp_path, {str(number): 1 for number in range(12)}))
    assert data.classes[:4] == ["0", "1", "10", "11"] and len(data.notes) == 1
