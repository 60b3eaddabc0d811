import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.mistakes import refused
from tests.unit.photos import real_data
from utils.data.datasets import ImageList
from utils.data.sub_samplers import read_sub_sampler, split_classes


def image_list(*class_sizes: int) -> ImageList:
    """A list of images that nobody opens, so many for each class."""
    targets = torch.cat([torch.full((size,), label) for label, size in enumerate(class_sizes)])
    files = [f"{label:02d}/{row}.jpg" for row, label in enumerate(targets.tolist())]
    return ImageList(
        Path("/nowhere"), files, targets, [f"{label:02d}" for label in range(len(class_sizes))], {}
    )


@pytest.fixture
def ten() -> ImageList:
    return image_list(6, 4)


def read(folder, name, images, **options) -> list[int]:
    return read_sub_sampler("birds", name, images, data_root=folder, **options).tolist()


@pytest.mark.parametrize("below", ["", "birds"])
@pytest.mark.parametrize("suffix", ["pt", "pt of a tensor", "npy", "json"])
def test_every_format_is_read_from_both_folders(tmp_path, ten, below, suffix):
    indices = [7, 0, 3]
    path = tmp_path / below / f"sub_sampler_birds_mine.{suffix.split()[0]}"
    path.parent.mkdir(exist_ok=True)
    if suffix == "npy":
        np.save(path, np.array(indices, dtype=np.int32))
    elif suffix == "json":
        path.write_text(json.dumps(indices))
    else:
        torch.save(indices if suffix == "pt" else torch.tensor(indices), path)
    assert read(tmp_path, "mine", ten) == indices
    with refused("sub_sampler_cats_mine.pt"):
        read_sub_sampler("cats", "mine", ten, data_root=tmp_path)


def test_the_authors_lists_are_the_halves_that_are_made(tmp_path):
    """Sizes of the classes from the annotations of all 200, as the official split has them."""
    lists, cub = real_data() / "reference_lists", real_data() / "CUB_200_2011"
    folder_of = dict(line.split() for line in (cub / "images.txt").read_text().splitlines())
    split_of = dict(
        line.split() for line in (cub / "train_test_split.txt").read_text().splitlines()
    )
    classes = [
        folder_of[number].split("/")[0] for number, split in split_of.items() if split == "1"
    ]
    images = image_list(*(classes.count(name) for name in sorted(set(classes))))
    for half in ("50par_A", "50par_B"):
        authors = read_sub_sampler("CUB200", half, images, data_root=lists)
        made = read_sub_sampler("CUB200", half, images, data_root=tmp_path)
        assert torch.equal(authors, made)


def test_both_halves_are_made_and_saved_and_then_stand(tmp_path, ten):
    ours, theirs = read(tmp_path, "50par_B", ten), read(tmp_path, "50par_A", ten)
    assert theirs == [0, 1, 2, 6, 7] and ours == [3, 4, 5, 8, 9]
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert saved == ["sub_sampler_birds_50par_A.json", "sub_sampler_birds_50par_B.json"]
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    assert read(tmp_path, "50par_A", ten, seed=9) == theirs  # what is saved stands
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize(
    "percent, per_class", [(50, [3, 3]), (25, [1, 1]), (90, [6, 6]), (7, [0, 0])]
)
def test_percent_is_rounded_down_in_every_class(percent, per_class):
    targets = torch.tensor([0] * 7 + [1] * 7)
    for split in ("first", "random"):
        chosen = split_classes(targets, percent, split, seed=1)
        assert targets[chosen].bincount(minlength=2).tolist() == per_class


def test_classes_need_not_be_contiguous():
    targets = torch.tensor([1, 0, 1, 0, 1, 1])
    assert split_classes(targets, 50, "first", 0).tolist() == [0, 1, 2]


def test_random_halves_follow_the_seed_and_do_not_overlap(tmp_path):
    images = image_list(40, 41)
    one = [read(tmp_path / "one", f"50par_{half}", images, split="random", seed=4) for half in "AB"]
    again = read(tmp_path / "two", "50par_A", images, split="random", seed=4)
    other = read(tmp_path / "three", "50par_A", images, split="random", seed=5)
    assert again == one[0] != other
    assert one[0] != read(tmp_path / "four", "50par_A", images)
    assert sorted(one[0] + one[1]) == list(range(81)) and len(one[0]) == 40
    with refused("first", "random", "odd"):
        read(tmp_path / "five", "50par_A", images, split="odd")


def test_a_missing_half_is_what_the_given_one_leaves(tmp_path, ten):
    torch.save([9, 2, 4], tmp_path / "sub_sampler_birds_50par_A.pt")
    assert read(tmp_path, "50par_B", ten) == [0, 1, 3, 5, 6, 7, 8]
    assert read(tmp_path, "50par_A", ten) == [9, 2, 4]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("made", "asked", "difference"),
    [
        ({}, {"split": "random", "seed": 7}, "--split first, not random"),
        (
            {"split": "first", "seed": 3},
            {"split": "random", "seed": 3},
            "--split first, not random",
        ),
        ({"split": "random", "seed": 7}, {"split": "first"}, "--split random, not first"),
        ({"split": "random", "seed": 7}, {"split": "random", "seed": 8}, "--seed 7, not 8"),
        ({"split": "random"}, {"split": "random", "seed": 8}, "--seed 0, not 8"),
    ],
)
def test_halves_that_were_made_in_another_way_are_refused(tmp_path, ten, made, asked, difference):
    read(tmp_path, "50par_A", ten, **made)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for half in "AB":
        with refused(f"sub_sampler_birds_50par_{half}.json", difference, "--split"):
            read(tmp_path, f"50par_{half}", ten, **asked)
    (tmp_path / "sub_sampler_birds_50par_B.json").unlink()  # of the two, A alone can tell
    with refused("sub_sampler_birds_50par_A.json", difference):
        read(tmp_path, "50par_B", ten, **asked)
    kept = tmp_path / "sub_sampler_birds_50par_A.json"
    assert {kept.name: before[kept.name]} == {
        path.name: path.read_bytes() for path in tmp_path.iterdir()
    }


def test_halves_are_taken_as_they_were_made(tmp_path, ten):
    drawn = read(tmp_path, "50par_A", ten, split="random", seed=7)
    assert (
        read(tmp_path, "50par_A", ten, split="random", seed=7)
        == read(tmp_path, "50par_A", ten, seed=8)
        == drawn
    )
    (tmp_path / "sub_sampler_birds_50par_B.json").unlink()
    # Made anew, as A's rest: it records how A was made
    rest = read(tmp_path, "50par_B", ten, seed=8)
    assert sorted(drawn + rest) == list(range(10))
    assert read(tmp_path, "50par_B", ten, split="random", seed=7) == rest
    first = read(tmp_path / "first", "50par_A", ten, split="first", seed=1)
    # The seed drew nothing
    assert read(tmp_path / "first", "50par_A", ten, split="first", seed=2) == first


def test_lists_that_do_not_record_how_they_were_made_are_taken(tmp_path, ten):
    torch.save([9, 2, 4], tmp_path / "sub_sampler_birds_50par_A.pt")
    for split in ("first", "random"):
        assert read(tmp_path, "50par_A", ten, split=split, seed=3) == [9, 2, 4]
        assert read(tmp_path, "50par_B", ten, split=split, seed=3) == [0, 1, 3, 5, 6, 7, 8]


def test_images_with_several_labels_are_split_as_one_class():
    assert split_classes(torch.ones(9, 20), 50, "first", 0).tolist() == [0, 1, 2, 3]


def test_a_half_that_was_made_for_other_images_is_refused(tmp_path, ten):
    read(tmp_path, "50par_A", ten)
    with refused("sub_sampler_birds_50par_A.json"):
        read(tmp_path, "50par_A", image_list(6, 5))


def test_halves_without_images_are_refused_and_not_saved(tmp_path):
    with refused("50par_A"):
        read(tmp_path, "50par_A", image_list(1, 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["few", "50par_C", "00par_A", "par_A", "100par_A"])
def test_names_that_are_neither_a_file_nor_a_half(tmp_path, ten, name):
    with refused(f"sub_sampler_birds_{name}.pt", "50par_A"):
        read(tmp_path, name, ten)


@pytest.mark.parametrize(
    "indices, facts",
    [
        ([0, 10], (10, "0 … 9")),
        ([-1, 3], (-1, "0 … 9")),
        ([1, 2, 1, 1], (2,)),
        ([], ()),
        ([0.5], ()),
        ([True, False], ()),
        (["0"], ()),
        ([[1, 2]], ()),
        ("0 1", ()),
        ({"indices": [1]}, ()),
    ],
)
def test_lists_that_choose_no_images(tmp_path, ten, indices, facts):
    for save in (
        lambda: torch.save(indices, tmp_path / "sub_sampler_birds_bad.pt"),
        lambda: (tmp_path / "sub_sampler_birds_bad.json").write_text(json.dumps(indices)),
    ):
        save()
        with refused("sub_sampler_birds_bad", *facts):
            read(tmp_path, "bad", ten)
        (tmp_path / "sub_sampler_birds_bad.pt").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), int), np.array([0.0, 1.0]), np.array([True, False])]
)
def test_arrays_that_choose_no_images(tmp_path, ten, array):
    np.save(tmp_path / "sub_sampler_birds_bad.npy", array)
    with refused("sub_sampler_birds_bad.npy"):
        read(tmp_path, "bad", ten)


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".json"])
def test_damaged_files(tmp_path, ten, suffix):
    for content in (b"", b"\x80\x02 not a file", b"PK\x03\x04"):
        (tmp_path / f"sub_sampler_birds_bad{suffix}").write_bytes(content)
        with refused("sub_sampler_birds_bad", suffix):
            read(tmp_path, "bad", ten)


class _Payload:
    """Pickled, it asks the reader to create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pt", " old.pt", ".npy"])
def test_code_in_a_sub_sampler_does_not_run(tmp_path, ten, suffix):
    trace, path = (
        tmp_path / "trace",
        tmp_path / f"sub_sampler_birds_evil{suffix.removeprefix(' old')}",
    )
    if suffix == ".npy":
        np.save(path, np.array([_Payload(trace)], dtype=object), allow_pickle=True)
    else:
        torch.save([0, _Payload(trace)], path, _use_new_zipfile_serialization=suffix == ".pt")
    with refused(path):
        read(tmp_path, "evil", ten)
    assert not trace.exists()
    if suffix == ".pt":
        torch.load(path, weights_only=False)
        assert trace.exists()  # the payload is a real one
