"""transClassifier.py's options: the documented ones,
those that are wrong, and what does not fit together.
"""

import pytest

import transClassifier
from tests.e2e.refined import ARCH, LAYER, SIZE, make_classifier, tuned
from tests.mistakes import refused
from utils import checkpoint

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "words, without",
    [
        ("--in_mode [1,1]", ()),
        ("--in_mode [1,1,1,1]", ()),
        ("--in_mode [0,0,0]", ()),
        ("--in_mode [1,2,1]", ()),
        ("--in_mode []", ()),
        ("--in_mode [1,x,1]", ()),
        ("--input raw_A --in_mode [1,1,1]", ()),
        ("--input raw_C", ()),
        ("", ["--resume_Ys"]),
        ("", ["--net_A"]),
        ("--tail A", ["--net_B"]),
        ("--input raw_A", ["--net_A"]),
        ("--input raw_A --tail B", ["--net_B"]),
    ],
)
def test_wrong_options_are_explained_by_the_parser(refine, capsys, words, without):
    with pytest.raises(SystemExit) as end:
        refine(*words.split(), epochs=1, without=without)
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in message and (without or words.split())[0] in message


@pytest.mark.parametrize(
    "others, facts",
    [
        ({"resume_Ys": "nowhere.pth"}, ("nowhere.pth",)),
        ({"net_A": "nowhere.pth"}, ("nowhere.pth",)),
        ({"net_B": "{}/g.pth"}, ("g.pth",)),
        ({"resume_Ys": "{}/A.pth"}, ("A.pth",)),
        ({"resume_Ys": "{}/reversed.pth"}, ("reversed.pth", "--reverse")),
        ({"resume_Ys": "{}/other_layer.pth"}, ("other_layer.pth", "net B", "features.5", LAYER)),
        ({"resume_Ys": "{}/other_net.pth"}, ("other_net.pth", "net B", "00000000", "B.pth")),
        ({"image_size": "48"}, ("32", "--image_size", "48")),
        ({"resume_Ys": "{}/narrow.pth"}, ("24",)),
        ({"input": "raw_A", "tail": "B", "layer2": "features.3"}, ((40, 2, 2), "net B")),
        ({"arch_B": "resnet18"}, ("B.pth", ARCH, "resnet18")),
        ({"layer": "features.99"}, ("'features.99'",)),
        ({"val_path": "nowhere"}, ("nowhere",)),
    ],
)
def test_input_that_does_not_fit_is_one_line(trained, refine, others, facts):
    folder, _ = trained
    others = {key: value.format(folder) for key, value in others.items()}
    with refused("transClassifier.py", *facts, kind=SystemExit):
        refine(epochs=1, **others)


def test_nets_of_other_classes_are_refused(refine, tmp_path):
    make_classifier(tmp_path / "two.pth", 0, num_classes=2)
    with refused("training", "3", "2", kind=SystemExit):
        refine("--input", "raw_A", net_A=tmp_path / "two.pth", epochs=1)
    state = checkpoint.load(tmp_path / "two.pth")
    del state["data"]  # as in the authors' files
    checkpoint.save(tmp_path / "two.pth", state)
    with refused("net A", "2", "3", kind=SystemExit):
        refine(
            "--input",
            "raw_A",
            net_A=tmp_path / "two.pth",
            dataset="folder",
            image_size=SIZE,
            epochs=1,
        )


def test_the_layer_is_the_trans_nets_where_no_option_says_another(refine):
    (with_option,), (without,) = refine(epochs=0), refine(epochs=0, without=["--layer"])
    assert with_option == without


def test_a_baseline_needs_its_own_net_alone(refine, tmp_path):
    refine("--input", "raw_A", epochs=1, without=["--net_B", "--resume_Ys"])
    assert tuned(tmp_path, f"raw_A_L{LAYER}")["settings"]["in_mode"] is None


def test_the_documented_command_line_is_understood():
    words = (
        "--arch vgg16_bn --net_A A --net_B B --resume_Ys g --dataset CUB200 --gpu 0 --conv_layer 30"
        " --epochs 100 --lr 0.00001 --logspace 2 --suffix lr-5_lg2"
    )
    args = transClassifier.build_parser().parse_args(words.split())
    assert (args.conv_layer, args.epochs, args.lr, args.logspace) == (30, 100, 1e-5, 2)
    files = "--net_A a --net_B b --resume_Ys y"
    defaults = transClassifier.build_parser().parse_args(files.split())
    names = (
        "conv_layer",
        "epochs",
        "lr",
        "logspace",
        "optim",
        "batch_size",
        "val_epoch",
        "save_epoch",
        "input",
    )
    assert [getattr(defaults, name) for name in names] == [
        None,
        1000,
        1e-5,
        2,
        "Adam",
        64,
        10,
        100,
        "components",
    ]
