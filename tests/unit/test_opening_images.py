"""What the options open of images: splits,
what is computed once, loaders, another net's features.
"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models.inputs import Inputs
from tests.mistakes import refused
from tests.unit.step_options import parsed
from utils import opening
from utils.data.loaders import Part
from utils.normalisation import NORMALISATIONS
from utils.option_groups import DataOptions
from utils.pixels import FromPixels
from utils.provenance import NetSource, Provenance


@pytest.fixture
def args(photos, tmp_path):
    """A function that makes the data options of a step that reads the photos."""
    folders = [
        "--train_path",
        str(photos / "train"),
        "--val_path",
        str(photos / "val"),
        "--data_root",
        str(tmp_path),
    ]

    def parse(*words):
        return DataOptions.of(parsed("--dataset", "folder", *folders, "--image_size", "32", *words))

    return parse


# --- images


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_are_those_of_the_split(args, photos, split):
    images = opening.images(args(), split)
    assert images.root == photos / split
    assert (len(images), images.classes, images.split) == (24, ["blue", "green", "red"], split)
    assert images.stored is None


def test_a_sub_sampler_chooses_training_images(args):
    assert len(opening.images(args("--sample_num", "50par_A"), "train")) == 12


@pytest.mark.parametrize(("split", "word"), [("train", "training"), ("val", "validation")])
def test_images_of_other_classes_than_the_networks_are_refused(args, split, word):
    assert opening.images(args(), split, {"classes": ["blue", "green", "red"]}).classes == [
        "blue",
        "green",
        "red",
    ]
    with refused(word, "red", "yellow"):
        opening.images(args(), split, {"classes": ["blue", "green", "yellow"]})


def test_images_are_normalised_as_the_network_knows_them_or_as_an_option_says(args):
    known = {"normalisation": ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))}
    assert opening.images(args(), "val", known).normalisation == known["normalisation"]
    assert opening.images(args("--normalisation", "half"), "val", known).normalisation == (
        (0.5,) * 3,
        (0.5,) * 3,
    )
    assert opening.images(args(), "val").normalisation == NORMALISATIONS["imagenet"]


@pytest.mark.parametrize(
    ("more", "known"),
    [
        ({"hits": torch.ones(24, dtype=torch.uint8)}, True),
        ({"hits": torch.ones(30, dtype=torch.uint8)}, False),  # of more images
        ({"images": {"val": {}}}, True),  # a compressed net's checkpoint has no hits
        ({}, False),  # stripped: of which images, nobody knows
    ],
)
def test_a_recorded_accuracy_counts_for_the_very_images_alone(args, more, known):
    images = opening.images(args(), "val")
    data = opening.data_record(args(), images)
    state = {"acc1": 90.0, "epoch": 2, "settings": {"epochs": 2}, "data": data, **more}
    net = NetSource("resnet18", "layer2", "net.pth.tar")
    found = opening.with_record(args(), net, state, images)
    assert found.top1_percent == (90.0 if known else None)


CIFAR10, HALF, OWN = (
    NORMALISATIONS["cifar10"],
    NORMALISATIONS["half"],
    ((0.1, 0.2, 0.3), (1.0, 1.0, 0.5)),
)
INPUTS = Inputs(*OWN)


@pytest.mark.parametrize(
    ("words", "state", "fitted", "expected", "line"),
    [
        ((), {}, None, NORMALISATIONS["imagenet"], "taken is imagenet, that of the data set"),
        ((), {"inputs": INPUTS}, None, OWN, "1.0,1.0,0.5, which its factory carries"),
        ((), {"inputs": INPUTS, "data": {"normalisation": HALF}}, None, HALF, ""),
        ((), {"data": {"normalisation": HALF}}, CIFAR10, CIFAR10, ""),
        (("--normalisation", "cifar10"), {}, HALF, CIFAR10, ""),
        (("--normalisation", "cifar10", "--normalisation2", "half"), {}, CIFAR10, HALF, ""),
        (("--normalisation", "cifar10", "--normalisation1", "half"), {}, None, CIFAR10, ""),
        (("--normalisation2", "0.1,0.2,0.3,1,1,0.5"), {}, None, OWN, ""),
        (
            ("--normalisation", "half"),
            {"data": {"normalisation": CIFAR10}},
            None,
            HALF,
            "cifar10 in its",
        ),
    ],
)
def test_a_nets_constants_are_an_options_a_records_its_factorys_or_the_data_sets(
    args, cpu, capsys, words, state, fitted, expected, line
):
    source = NetSource(normalisation=fitted)
    assert opening.normalisation(args(*words), state, cpu, "B", source) == expected
    printed = capsys.readouterr().out
    assert line in printed and printed.count("\n") == bool(line)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"data": {"image_size": 64}}, "net A was trained at 64 pixels and sees images of 32"),
        (
            {"inputs": Inputs(*HALF, 224, "bicubic", 0.95)},
            (
                "made for images of 224 pixels (bicubic interpolation, the middle 95 % of a side)"
                " and sees images of 32 pixels (bilinear interpolation, the middle 100 % of a side)"
            ),
        ),
        ({"inputs": Inputs(*HALF, 32, "bicubic")}, "made for images of 32 pixels (bicubic"),
        ({"inputs": Inputs(*HALF, None, "bilinear", 1.0)}, ""),
        # Trained further here
        ({"inputs": Inputs(*HALF, 224, "bicubic", 0.95), "data": {"image_size": 32}}, ""),
    ],
)
def test_another_size_or_resampling_than_in_training_is_said(args, cpu, capsys, state, words):
    opening.normalisation(args("--normalisation", "half"), state, cpu, "A")
    printed = capsys.readouterr().out
    assert words in printed and printed.count("\n") == bool(words)


def test_training_images_alone_are_augmented(args):
    train, val = opening.both_splits(args("--augment", "zero4"))
    assert train.augments and not val.augments and train.normalisation == val.normalisation
    # A frozen net's features
    assert not opening.images(args("--augment", "zero4"), "train").augments


def test_one_class_teaches_nothing(args, photos, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "red").symlink_to(photos / "train" / "red")
    with refused(tmp_path / "one", "red"):
        opening.both_splits(args("--train_path", str(tmp_path / "one")))


def test_both_splits_have_the_same_classes(args, photos, tmp_path):
    train, val = opening.both_splits(args())
    assert (train.split, val.split) == ("train", "val")
    for name in ("blue", "red"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).symlink_to(photos / "val" / name)
    with refused("validation", "red", "green"):
        opening.both_splits(args("--val_path", str(tmp_path / "other")))
    with refused("training", "red"):
        opening.both_splits(args(), {"classes": ["blue", "green"]})


def test_a_checkpoint_says_what_its_images_are(args):
    words = args("--name", "colours", "--normalisation", "half")
    record = opening.data_record(words, opening.images(words, "train"))
    assert record == {
        "dataset": "folder",
        "name": "colours",
        "sample_num": "",
        "classes": ["blue", "green", "red"],
        "image_size": 32,
        "resize": "torch",
        "normalisation": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }
    words = dataclasses.replace(words, dataset="mix320", sample_num="50par_A")
    other = opening.data_record(words, opening.images(args(), "train"))
    assert (other["dataset"], other["sample_num"]) == ("mix320", "50par_A") and "name" not in other


# --- what is computed once


def test_images_are_decoded_once_where_the_options_say_so(args, cpu):
    images = opening.images(args(), "val")
    assert opening.decoded(args("--cache_images", "off"), images, cpu).stored is None
    stored = opening.decoded(args("--cache_images", "ram"), images, cpu)
    assert stored.stored is not None
    rows = [0, 5, 23]
    assert torch.equal(stored.__getitems__(rows)[0], images.__getitems__(rows)[0])


def test_features_take_the_images_place(args, cpu, tmp_path):
    torch.manual_seed(0)
    frozen = (
        nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, 5)).requires_grad_(False).eval()
    )
    images = opening.images(args(), "val")
    reader = FromPixels(frozen, NORMALISATIONS["half"])
    found = opening.with_features(
        args("--cache_images", "off"),
        images,
        frozen=reader,
        shape=(5,),
        runtime=cpu,
        folder=tmp_path,
    )
    pixels, targets, _ = images.__getitems__([7, 2])
    features, same_targets, indices = found.__getitems__([7, 2])
    torch.testing.assert_close(features, reader(pixels))
    assert torch.equal(same_targets, targets) and indices.tolist() == [7, 2]


# --- loaders


@pytest.mark.parametrize(("cache", "workers"), [("off", 1), ("ram", 0)])
def test_the_loader_takes_workers_where_something_is_decoded(args, cpu, cache, workers):
    words = args("--cache_images", cache)
    with_worker = dataclasses.replace(cpu, workers=1)
    images = opening.decoded(words, opening.images(words, "val"), with_worker)
    loader = opening.image_loader(words, images, with_worker)
    assert loader.num_workers == workers
    assert [indices.tolist() for _, _, indices in loader] == [
        [*range(10)],
        [*range(10, 20)],
        [*range(20, 24)],
    ]


def test_a_part_of_the_images_may_be_loaded(args, cpu):
    images = opening.images(args(), "val")
    loader = opening.image_loader(args(), images, cpu, numbers=torch.tensor([3, 1, 22]))
    assert [indices.tolist() for _, _, indices in loader] == [[3, 1, 22]]


def test_an_order_is_drawn_by_the_seed(args, cpu):
    def order(seed=0):
        runtime = dataclasses.replace(cpu, seed=seed)
        loader = opening.image_loader(args(), opening.images(args(), "val"), runtime, shuffle=True)
        return [int(index) for batch in loader for index in batch[2]]

    assert order() == order() != order(5)
    assert sorted(order()) == [*range(24)]


def test_a_mixed_set_is_validated_in_parts(args, cpu):
    images = opening.images(args(), "val")
    assert list(opening.validation_loaders(args(), images, cpu)) == [""]
    images.parts = {"cub": torch.tensor([0, 5, 7]), "dog": torch.tensor([1, 2])}
    loaders = opening.validation_loaders(args(), images, cpu)
    indices = {
        name: [int(index) for batch in loader for index in batch[2]]
        for name, loader in loaders.items()
    }
    assert indices == {"cub": [0, 5, 7], "dog": [1, 2]}
    assert isinstance(loaders["cub"].dataset, Part)


@pytest.mark.parametrize(("world_size", "expected"), [(1, 10), (2, 5), (4, 2), (24, 1)])
def test_the_batch_is_shared_by_the_processes(args, cpu, world_size, expected):
    images, runtime = opening.images(args(), "val"), dataclasses.replace(cpu, world_size=world_size)
    for make in (opening.image_loader, opening.feature_loader):
        assert len(next(iter(make(args(), images, runtime)))[0]) == expected


def test_large_images_come_few_at_a_time_where_a_cpu_only_asks(args, cpu, monkeypatch):
    images = opening.images(args(), "val")
    monkeypatch.setattr(opening, "PIXELS_AT_ONCE", 4 * 32**2)
    on_gpu = dataclasses.replace(cpu, device=torch.device("cuda", 0))

    def sizes(runtime, **kind):
        return [
            len(rows)
            for rows in opening.image_loader(args(), images, runtime, **kind).batch_sampler
        ]

    assert sizes(cpu) == [4] * 6
    assert sizes(cpu, shuffle=True) == sizes(on_gpu) == [10, 10, 4]
    monkeypatch.setattr(opening, "PIXELS_AT_ONCE", 1)
    assert sizes(cpu) == [1] * 24


def test_stored_features_need_no_workers_on_the_cpu(args, cpu):
    words = args()
    images = opening.images(words, "val")
    with_workers = dataclasses.replace(cpu, workers=2)
    assert opening.feature_loader(words, images, with_workers).num_workers == 0
    on_gpu = dataclasses.replace(with_workers, device=torch.device("cuda", 0))
    assert opening.feature_loader(words, images, on_gpu).num_workers == 2


# --- what another net makes of stored images


def folder_of(images, **changes):
    """Stand for stored features of these images: what they say of themselves."""
    a, b = (
        NetSource(normalisation=NORMALISATIONS["cifar10"]),
        NetSource(normalisation=images.normalisation),
    )
    provenance = Provenance(
        a,
        b,
        dataset="folder",
        split=images.split,
        classes=images.classes,
        transform=images.decoding_record,
    )
    stored = SimpleNamespace(
        provenance=provenance,
        paths=images.paths,
        contents=None,
        shape_b=(4, 30, 30),
        folder=Path("features"),
    )
    return SimpleNamespace(**vars(stored) | changes)


def test_features_are_computed_anew_of_the_images_that_were_stored(args, cpu):
    said = args("--normalisation", "half")
    images = opening.images(said, "val")
    head = FromPixels(nn.Conv2d(3, 4, 3).requires_grad_(False), images.normalisation)
    found = opening.features_anew(args(), folder_of(images), head, cpu)
    rows = torch.tensor([5, 0])
    pixels = images.__getitems__(rows.tolist())[0]
    torch.testing.assert_close(found.gather(rows), head(pixels))


def test_the_pixels_are_of_each_stored_image_once_and_mixed(args, cpu):
    images = opening.images(args(), "val")
    words = args("--batch_size", "4")
    batches = list(opening.mixed_pixels(words, folder_of(images), cpu))
    assert {len(batch) for batch in batches[:-1]} == {4}
    rows = torch.cat(batches)
    in_order = images.decode(range(len(images)))
    assert rows.shape == in_order.shape and not torch.equal(rows, in_order)
    torch.testing.assert_close(
        rows.long().sum((1, 2, 3)).sort()[0], in_order.long().sum((1, 2, 3)).sort()[0]
    )


def test_other_images_than_the_stored_ones_are_refused(args, cpu):
    images, head = opening.images(args(), "val"), nn.Conv2d(3, 4, 3)
    with refused("features", "--data_root", "--train_path", "--val_path"):
        opening.features_anew(args(), folder_of(images, paths=images.paths[1:]), head, cpu)
    with refused("features"):
        opening.features_anew(args(), folder_of(images, provenance=Provenance()), head, cpu)
