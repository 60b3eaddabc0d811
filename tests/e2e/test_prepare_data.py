"""PrepareData.py: digits, birds and dogs; wrong options, and a run that is killed."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

import PrepareData
from tests.e2e.prepared import images, row
from tests.mistakes import check_line
from tests.unit.official_layouts import make_cub, make_dogs
from tests.unit.photos import make_photo, real_data

pytestmark = pytest.mark.e2e
ROOT = Path(PrepareData.__file__).parent


def test_digits_are_all_there_and_made_once(prepare, tmp_path):
    code, output, _ = prepare("digits")
    assert code == 0
    assert row(output, "digits") == [10, 1442, 355, 0]
    files = images(tmp_path / "data/digits")
    assert len(files) == 1797
    assert {name.split("/")[1] for name in files} == {str(digit) for digit in range(10)}
    with Image.open(tmp_path / "data/digits" / files[0]) as image:
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert image.getextrema()[0] == (0, 255)
    times = [(tmp_path / "data/digits" / name).stat().st_mtime_ns for name in files]
    _, output, _ = prepare("digits")
    assert "0 images made, 1,797 were there" in output
    assert [(tmp_path / "data/digits" / name).stat().st_mtime_ns for name in files] == times


def test_cub_from_the_folder_and_from_the_archive_are_the_same(prepare, tmp_path):
    cub = make_cub(tmp_path / "CUB_200_2011")
    code, output, _ = prepare("CUB200", "--src", cub)
    assert (code, row(output, "CUB200")) == (0, [3, 7, 3, 0])
    target = tmp_path / "data/CUB200"
    assert images(target)[0] == "test/001.Albatross/bird_3.jpg"
    with Image.open(target / "test/001.Albatross/bird_3.jpg") as image:
        assert (image.size, image.format) == ((20, 15), "JPEG")
    times = {name: (target / name).stat().st_mtime_ns for name in images(target)}

    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(cub, "CUB_200_2011")
    code, output, _ = prepare("CUB200", "--src", tmp_path / "CUB_200_2011.tgz")
    assert code == 0
    assert "0 crops made, 10 were there" in output
    assert {name: (target / name).stat().st_mtime_ns for name in images(target)} == times
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["CUB200"]


def test_an_unfinished_folder_is_completed(prepare, tmp_path):
    cub = make_cub(tmp_path / "CUB_200_2011")
    prepare("CUB200", "--src", cub)
    target = tmp_path / "data/CUB200"
    (target / "train/002.Ani/bird_5.jpg").unlink()
    (target / "train/002.Ani/.bird_5.jpg.abc.part.jpg").write_bytes(b"torn")
    _, output, _ = prepare("CUB200", "--src", cub)
    assert "1 crops made, 9 were there" in output
    assert len(images(target)) == 10


def test_fewer_classes_do_not_mix_with_more(prepare, tmp_path):
    cub = make_cub(tmp_path / "CUB_200_2011")
    assert prepare("CUB200", "--src", cub, "--classes", 1)[0] == 0
    assert row(prepare("CUB200", "--src", cub)[1], "CUB200") == [3, 7, 3, 0]
    code, _, message = prepare("CUB200", "--src", cub, "--classes", 1)
    assert code == 1
    check_line(message, tmp_path / "data/CUB200", "6", "--out")


def spoil(cub):
    """Give eight photos and lines of a CUB folder one fault each."""
    (cub / "images/001.Albatross/bird_1.jpg").unlink()
    (cub / "images/001.Albatross/bird_2.jpg").write_text("text")
    photo = cub / "images/001.Albatross/bird_3.jpg"
    photo.write_bytes(photo.read_bytes()[:-200])
    lines = (cub / "bounding_boxes.txt").read_text().replace("4 4.0 2.0 20.0 15.0\n", "")
    (cub / "bounding_boxes.txt").write_text(lines.replace("5 5.0 2.0 20.0", "5 5.0 2.0 0.0"))
    (cub / "images/002.Ani/notes.txt").touch()
    (cub / "images/002.Ani" / os.fsdecode(b"caf\xe9.jpg")).touch()
    return [
        "bird_1.jpg",
        "bird_2.jpg",
        "bird_3.jpg",
        "bird_4.jpg",
        "bird_5.jpg",
        "notes.txt",
        r"caf\xe9.jpg",
    ]


def test_every_fault_is_named_and_the_rest_is_cropped(prepare, tmp_path):
    cub = make_cub(tmp_path / "CUB_200_2011")
    faults = spoil(cub)
    code, output, message = prepare("CUB200", "--src", cub)
    assert code == 1
    check_line(message, "7")
    assert all(fault in output for fault in faults)
    for line in (
        "missing photo: 1",
        "unreadable photo: 2",
        "missing list entry: 1",
        "empty box: 1",
        "no list names: 2",
    ):
        assert line in output
    output.encode()  # can be printed
    assert row(output, "CUB200") == [2, 3, 2, 7]

    code, output, _ = prepare("CUB200", "--src", cub, "--skip-bad")
    assert code == 0
    assert all(fault in output for fault in faults)
    assert "0 crops made, 5 were there" in output


def test_dogs_from_archives_in_a_folder(prepare, tmp_path):
    dogs = make_dogs(tmp_path / "dogs")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for archive, names in {
        "images.tar": ["Images"],
        "annotation.tar": ["Annotation"],
        "lists.tar": ["train_list.mat", "test_list.mat"],
    }.items():
        with tarfile.open(downloads / archive, "w") as tar:
            for name in names:
                tar.add(dogs / name, name)
    code, output, _ = prepare("DOG120", "--src", downloads)
    assert (code, row(output, "DOG120")) == (0, [2, 5, 2, 0])
    archives = [downloads / name for name in ("images.tar", "annotation.tar", "lists.tar")]
    code, output, _ = prepare("DOG120", "--src", *archives)
    assert "0 crops made, 7 were there" in output
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["DOG120"]


def test_mix320_prepares_its_halves_and_then_finds_them(prepare, tmp_path):
    cub, dogs = make_cub(tmp_path / "CUB_200_2011"), make_dogs(tmp_path / "dogs")
    code, output, _ = prepare("mix320", "--src", cub, "--src", dogs)
    assert code == 0
    assert (row(output, "CUB200"), row(output, "DOG120")) == ([3, 7, 3, 0], [2, 5, 2, 0])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["CUB200", "DOG120"]
    code, output, _ = prepare("mix320")
    assert (code, row(output, "DOG120")) == (0, [2, 5, 2, 0])
    shutil.rmtree(tmp_path / "data/DOG120")
    code, _, message = prepare("mix320")
    assert code == 1
    assert "mix320 needs --src" in message


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["CUB200"], 1, r"CUB200 needs --src: the official CUB_200_2011.tgz"),
        (["CUB200", "--src", "nowhere"], 1, "--src nowhere does not exist"),
        (["CUB200", "--src", "."], 1, "there is no images.txt in ."),
        (
            ["digits", "--list", "a.pkl"],
            2,
            "--list is for VOC2012_crop and VOC2012_animal, not for digits",
        ),
        (
            ["VOC2012_crop", "--val_list", "a.pkl"],
            2,
            "VOC lists are one --list for train and at most one for test",
        ),
        (
            ["VOC2012_crop", "--list", "a", "b", "c"],
            2,
            "VOC lists are one --list for train and at most one for test",
        ),
        (["CUB200", "--classes", "0"], 2, "--classes: expected a whole number of at least 1"),
        (["cub"], 2, "invalid choice: 'cub' (choose from "),
    ],
)
def test_wrong_options_are_told(prepare, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    result = prepare(*words)
    assert result[0] == code
    assert message in result[2]
    assert not (tmp_path / "data").exists()


def running_children(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("needs Linux's /proc to see the processes of a run")
    return children.read_text().split()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_run_leaves_no_torn_crop_and_the_next_one_ends_it(prepare, tmp_path):
    cub = tmp_path / "CUB_200_2011"
    (cub / "images/1").mkdir(parents=True)
    make_photo(cub / "images/1/0.jpg", size=(700, 700))
    names = [f"{number}.jpg" for number in range(160)]
    for name in names[1:]:
        os.link(cub / "images/1/0.jpg", cub / "images/1" / name)
    for file, values in {
        "images": "1/{}",
        "bounding_boxes": "0 0 690 690",
        "train_test_split": "1",
    }.items():
        lines = [f"{number} {values.format(name)}\n" for number, name in enumerate(names)]
        (cub / f"{file}.txt").write_text("".join(lines))
    target = tmp_path / "data/CUB200/train/1"
    command = [
        sys.executable,
        ROOT / "PrepareData.py",
        "CUB200",
        "--src",
        cub,
        "--out",
        tmp_path / "data",
        "-j",
        "2",
    ]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(target.glob("[!.]*"))) < 5:
        time.sleep(0.01)
    workers = running_children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    end = time.monotonic() + 30
    while any(map(is_running, workers)):
        assert time.monotonic() < end, "the cropping processes outlive their parent"
        time.sleep(0.05)
    crops = list(target.glob("[!.]*"))
    assert 5 <= len(crops) < 160
    for crop in crops:
        with Image.open(crop) as image:
            image.load()
    code, output, _ = prepare("CUB200", "--src", cub)
    assert code == 0
    assert f"{160 - len(crops)} crops made, {len(crops)} were there" in output
    assert sorted(path.name for path in target.iterdir()) == sorted(names)


def test_real_cub_has_clamped_boxes_and_grey_photos(prepare, tmp_path):
    code, output, _ = prepare("CUB200", "--src", real_data() / "CUB_200_2011", "--classes", 10)
    assert code == 0
    assert row(output, "CUB200") == [10, 300, 243, 0]
    assert (
        "543 crops made, 0 were there; 1 boxes clamped to the photo, 1 photos made RGB (1 L)"
        in output
    )
