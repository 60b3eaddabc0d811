import dataclasses
import importlib
import shlex

import pytest
import torch
from torch.utils.data import Subset

from utils import options
from utils.options import Parser, list_of

# The command lines of the authors' README, with file names where it has brackets, and what they must come to.
DOCUMENTED = [
    (
        "python Training.py --device_ids [0,1] --lr 0.01 --epochs 300 --dataset CUB200 --save_epoch 50 "
        "--suffix lr-2_sd0 --seed 0 --batch-size 128 --epoch_step 60 --arch vgg16_bn",
        {
            "device_ids": [0, 1], "lr": 0.01, "epochs": 300, "dataset": "CUB200", "save_epoch": 50,
            "suffix": "lr-2_sd0", "seed": 0, "batch_size": 128, "epoch_step": 60, "arch": "vgg16_bn",
            "optim": "SGD", "momentum": 0.9, "weight_decay": 1e-4, "decay_factor": 0.3, "logspace": 0,
        },
    ),
    (
        "python ConvOutput.py --arch vgg16_bn --batch_size 128 --resume1 A.pth.tar --resume2 B.pth.tar "
        "--dataset CUB200 --conv_layer 30",
        {
            "arch": "vgg16_bn", "batch_size": 128, "resume1": "A.pth.tar", "resume2": "B.pth.tar",
            "dataset": "CUB200", "conv_layer": 30, "t_or_v": "train", "topk": [1, 3], "dtype": "float32",
        },
    ),
    (
        "python Training_TransNet.py --arch vgg16_bn --device_ids [0,0] --dataset CUB200 --conv_layer 30 "
        "--convOut_path features --lr 0.0001 --alpha [0.1,0.1] --epochs 1000 --suffix a0.1_lr-4",
        {
            "arch": "vgg16_bn", "device_ids": [0, 0], "dataset": "CUB200", "conv_layer": 30,
            "convOut_path": "features", "lr": 1e-4, "alpha": [0.1, 0.1], "epochs": 1000, "suffix": "a0.1_lr-4",
            "layers": 3, "optim": "Adam", "weight_decay": 1e-4, "batch_size": 64, "logspace": 2, "L2": False,
            "norm": "instance", "fix_p": False,
        },
    ),
    (
        "python transClassifier.py --arch vgg16_bn --net_A A.pth.tar --net_B B.pth.tar --resume_Ys g.pth.tar "
        "--dataset CUB200 --gpu 0 --conv_layer 30 --epochs 100 --lr 0.00001 --logspace 2 --suffix lr-5_lg2",
        {
            "arch": "vgg16_bn", "net_A": "A.pth.tar", "net_B": "B.pth.tar", "resume_Ys": "g.pth.tar",
            "dataset": "CUB200", "gpu": 0, "conv_layer": 30, "epochs": 100, "lr": 1e-5, "logspace": 2,
            "suffix": "lr-5_lg2", "optim": "Adam", "batch_size": 64,
        },
    ),
    (
        "python BornAgain.py --save_epoch 50 --start_gen 1 --seed 10 --resume teacher.pth.tar --device_ids [0,1] "
        "--gpu_teacher 2 -a vgg16_bn --epochs 300 --lr 0.01 --epoch_step 60 --logspace 0 --tau 1 --lambd 0.5 "
        "--lambd_end 0.5",
        {
            "save_epoch": 50, "start_gen": 1, "seed": 10, "resume": "teacher.pth.tar", "device_ids": [0, 1],
            "gpu_teacher": 2, "arch": "vgg16_bn", "epochs": 300, "lr": 0.01, "epoch_step": 60, "logspace": 0,
            "tau": 1, "lambd": 0.5, "lambd_end": 0.5,
        },
    ),
    (
        "python Variance.py --arch_in vgg16_bn --arch_tar vgg16_bn --net_in A.pth.tar --net_tar B.pth.tar "
        "--transnet g.pth.tar --dataset CUB200 --gpu 0 --conv_layer 30",
        {
            "arch_in": "vgg16_bn", "arch_tar": "vgg16_bn", "net_in": "A.pth.tar", "net_tar": "B.pth.tar",
            "transnet": "g.pth.tar", "dataset": "CUB200", "gpu": 0, "conv_layer": 30, "t_or_v": "val",
            "mean": "channel", "batch_size": 64,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), DOCUMENTED, ids=[line.split()[1] for line, _ in DOCUMENTED])
def test_the_documented_command_lines_parse(line, expected, capsys):
    script, *words = shlex.split(line)[1:]
    parser = importlib.import_module(script.removesuffix(".py")).build_parser()
    args = vars(parser.parse_args(words))
    assert {key: args[key] for key in expected} == expected
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def parser():
    parser = Parser("A step.")
    parser.add_argument("--note")
    options.add_data_options(parser, batch_size=7)
    options.add_layer_options(parser, conv_layer=30)
    options.add_second_layer_options(parser)
    options.add_training_options(parser, optim="SGD", lr=0.5, epochs=3)
    options.add_run_options(parser)
    options.add_ignored_options(parser, "--fine_tune")
    return parser


@pytest.mark.parametrize(
    "words", [["--batch-size", "9"], ["--batch_size", "9"], ["--batch-size=9"], ["--batch_size=9"], ["-b", "9"]]
)
def test_dashes_and_underscores_are_one(parser, words):
    assert parser.parse_args(words).batch_size == 9


def test_values_keep_their_dashes(parser):
    args = parser.parse_args(["--note=my-own-note", "--train-path", "a-b/c-d", "--suffix", "lr-2_sd0", "--wd=1e-3"])
    assert (args.note, args.train_path, args.suffix, args.weight_decay) == ("my-own-note", "a-b/c-d", "lr-2_sd0", 1e-3)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--learning-rate", "0.25"], "lr", 0.25),
        (["--weight-decay", "0.25"], "weight_decay", 0.25),
        (["--logspace"], "logspace", 2.0),
        (["--logspace", "0.5"], "logspace", 0.5),
        (["-j", "0"], "workers", 0),
        (["-p", "3"], "print_freq", 3),
        (["--resume", "auto"], "resume", "auto"),
    ],
)
def test_documented_spellings(parser, words, name, value):
    assert getattr(parser.parse_args(words), name) == value


@pytest.mark.parametrize("words", [["--batch"], ["--bat", "3"], ["--nonsense"], ["--epochs", "many"]])
def test_what_is_unknown_or_cut_short_is_an_error(parser, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(words)
    assert exit_.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[0.1,8.0]", "0.1,8.0", "[0.1, 8.0]", " [0.1,8]", "[0.1,8.0,]"])
def test_lists_with_and_without_brackets(text):
    assert list_of(float)(text) == [0.1, 8.0]


def test_other_lists():
    assert list_of(int)("[0,1]") == [0, 1]
    assert list_of(int)("3") == [3]
    assert list_of(float)("[]") == []


@pytest.mark.parametrize("text", ["[0.5,1]", "[a]", "0;1"])
def test_a_list_of_something_else_is_an_error(parser, text, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--device_ids", text])
    assert exit_.value.code == 2
    assert f"expected a list such as [1,1], got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--fine-tune"], ["--world-size", "4"], ["--dist-url=tcp://localhost"], ["--model"]])
def test_old_switches_are_accepted_and_say_so_in_one_line(parser, words, capsys):
    args = parser.parse_args([*words, "--epochs", "5"])
    assert args.epochs == 5
    name = words[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
    assert capsys.readouterr() == (f"{name} has no effect any more and is ignored\n", "")
    assert not {"fine_tune", "world_size", "dist_url", "model"} & set(vars(args))


def test_help_is_grouped_and_shows_defaults(parser):
    text = " ".join(parser.format_help().split())
    for group in ("data:", "training:", "layer:", "run:"):
        assert group in text
    assert "images of a step, over all GPUs (default: 7)" in text
    assert "(default: None)" not in text and "(default: False)" not in text
    assert "--fine_tune" not in text


def test_the_data_folder_comes_from_the_environment(monkeypatch):
    def data_root():
        parser = Parser("")
        options.add_data_options(parser, batch_size=1)
        return parser.parse_args([]).data_root

    assert data_root() == "data"
    monkeypatch.setenv("KC_DATA", "/somewhere")
    assert data_root() == "/somewhere"


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        ([], (None, 30, False), (None, 30, False)),
        (["--conv_layer", "8", "--fc"], (None, 8, True), (None, 8, True)),
        (["--conv_layer", "8", "--conv_layer2", "3"], (None, 8, False), (None, 3, False)),
        (["--layer", "a.1", "--layer2", "b.2"], ("a.1", 30, False), ("b.2", 30, False)),
        (["--layer", "a.1"], ("a.1", 30, False), ("a.1", 30, False)),
        (["--layer", "a.1", "--conv_layer2", "3"], ("a.1", 30, False), (None, 3, False)),
    ],
)
def test_the_layers_of_both_nets(parser, words, first, second):
    args = parser.parse_args(words)
    assert options.first_layer(args) == first
    assert options.second_layer(args) == second


def test_what_no_option_says_comes_from_the_checkpoint(parser):
    for words, data, expected in (
        ([], {"dataset": "digits", "image_size": 64}, ("digits", 64)),
        (["--dataset", "folder", "--image_size", "32"], {"dataset": "digits", "image_size": 64}, ("folder", 32)),
        ([], {}, ("CUB200", 224)),
    ):
        args = parser.parse_args(words)
        options.fill_from_checkpoint(args, {"data": data} if data else {})
        assert (args.dataset, args.image_size) == expected


def open_photos(parser, photos, cpu, *words, split="train"):
    paths = ["--train_path", str(photos / "train"), "--val_path", str(photos / "val")]
    args = parser.parse_args(["--dataset", "folder", *paths, "--image_size", "32", "-b", "10", *words])
    return args, options.open_images(args, split, cpu)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("cache", "stored", "workers"), [("off", False, 1), ("ram", True, 0)])
def test_images_and_their_loader(parser, photos, cpu, split, cache, stored, workers):
    args, images = open_photos(parser, photos, cpu, "--cache_images", cache, "-j", "1", split=split)
    assert images.root == photos / split
    assert (len(images), images.classes) == (24, ["blue", "green", "red"])
    assert (images.stored is not None) == stored
    loader = options.image_loader(args, images, cpu)
    assert loader.num_workers == workers
    assert [len(indices) for _, _, indices in loader] == [10, 10, 4]


def test_a_mixed_set_is_validated_in_parts(parser, photos, cpu):
    args, images = open_photos(parser, photos, cpu)
    assert list(options.validation_loaders(args, images, cpu)) == [""]
    images.parts = {"cub": torch.tensor([0, 5, 7]), "dog": torch.tensor([1, 2])}
    loaders = options.validation_loaders(args, images, cpu)
    indices = {name: [int(index) for batch in loader for index in batch[2]] for name, loader in loaders.items()}
    assert indices == {"cub": [0, 5, 7], "dog": [1, 2]}
    assert isinstance(loaders["cub"].dataset, Subset)


def test_the_batch_is_shared_by_the_processes(parser, photos, cpu):
    args, images = open_photos(parser, photos, cpu)
    for world_size, expected in ((1, 10), (2, 5), (4, 2), (24, 1)):
        loader = options.image_loader(args, images, dataclasses.replace(cpu, world_size=world_size))
        assert len(next(iter(loader))[0]) == expected
