"""Variance.py: the numbers, and which Trans-Net they may be measured of."""

import csv
import json
import shlex

import pytest
import torch

import transClassifier
import Variance
from models.classifiers import load_classifier
from models.frozen import freeze_for_inference
from models.split import split
from models.trans_net import load_trans_net
from tests.e2e.road import data, files, run
from tests.mistakes import check_line, refused, refuses
from utils import checkpoint
from utils.data.images import load_images
from utils.features.cache import open_features
from utils.files import sha256
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise
from utils.progress import Progress

pytestmark = pytest.mark.e2e
VARIANCES = ["target", "order0", "order1", "order2", "output", "residual"]


def test_variances_from_nets_and_from_stored_features_agree(road, photos, tmp_path, capsys):
    nets = ("--net_in", road.a, "--net_tar", road.b, *data(photos))
    live = run(
        Variance,
        "--conv_layer 1 --batch_size 5",
        *nets,
        "--transnet",
        road.trans_net,
        "--json",
        tmp_path / "v.json",
        "--csv",
        tmp_path / "v.csv",
        "--figure",
        tmp_path / "v.png",
    )
    output = capsys.readouterr().out
    stored = run(Variance, "", "--convOut_path", road.features, "--transnet", road.trans_net)
    assert live["var"] == pytest.approx(stored["var"], rel=1e-5)
    assert live["instability"] == pytest.approx(stored["instability"], rel=1e-5)
    assert list(live["var"]) == live["covariance"]["names"] == VARIANCES
    assert live["images"] == 24 and live["mean"] == "channel"
    assert json.loads((tmp_path / "v.json").read_text()) == json.loads(json.dumps(live))
    with (tmp_path / "v.csv").open() as file:
        head, *rows = csv.reader(file)
    assert head == [
        "component",
        "of",
        "variance",
        "low",
        "high",
        "share",
        "share_low",
        "share_high",
    ]
    of = [row[1] for row in rows]
    assert of == ["all"] * 6 + ["class blue", "class green", "class red"] + [
        f"channel {c}" for c in range(64)
    ]
    assert [(row[0], float(row[2])) for row in rows[:6]] == list(live["var"].items())
    assert all(float(row[6]) < float(row[5]) < float(row[7]) for row in rows[1:])
    assert (tmp_path / "v.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.csv", "v.json", "v.png"]
    for report in (live, stored):
        source = report["source"]
        assert (source["dataset"], source["split"]) == ("folder", "val")
        assert source["layer_a"] == source["layer_b"] == "layer1.1.add"
        assert (source["checkpoint_a"], source["checkpoint_b"]) == (sha256(road.a), sha256(road.b))
        assert source["transnet"] == sha256(road.trans_net)
        interval = report["intervals"]["instability"]
        assert interval["low"] < report["instability"] < interval["high"]
        assert interval["value"] == pytest.approx(report["instability"])
    assert "24 val images, mean per channel" in output
    between = live["intervals"]["instability"]
    assert f"{live['instability']:.4f}  [{between['low']:.4f}, {between['high']:.4f}]" in output
    assert (
        "intervals: 95 %, 1,000 resamples of the images, the Trans-Net held as it was fitted"
        in output
    )
    assert f"instability Var(x_Δ)/Var(x*) = {live['instability']:.4f}" in output
    for title in ("x*", "x(0)", "x(1)", "x(2)", "g(x)", "x_Δ"):
        assert sum(line.startswith(f"{title} ") for line in output.splitlines()) == 1


def test_without_resamples_the_numbers_are_the_same_and_nothing_is_kept_per_image(road, capsys):
    words = "--convOut_path", road.features, "--transnet", road.trans_net
    full, alone = run(Variance, "", *words), run(Variance, "--bootstrap 0", *words)
    assert full.keys() - alone.keys() == {"intervals", "classes", "per_image"}
    assert alone["var"] == pytest.approx(full["var"], rel=1e-6)
    assert capsys.readouterr().out.count("[") == 6  # the shares, the instability


def test_several_trans_nets_are_measured_in_one_pass(road, monkeypatch):
    passes = []

    def counted(self):
        passes.append(self)
        return original(self)

    original = Progress.__iter__
    monkeypatch.setattr(Progress, "__iter__", counted)
    words = "--convOut_path", road.features, "--transnet", road.trans_net, road.trans_net
    report = run(Variance, "--bootstrap 100", *words)
    assert len(passes) == 1
    first, second = report["spectrum"]
    assert first["r2"] == pytest.approx(1 - report["instability"])
    assert second["gain"] == pytest.approx(0, abs=1e-6)
    assert second["intervals"]["gain"]["high"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("mean", ["channel", "global"])
def test_variances_are_those_of_the_components(road, mean):
    report = run(
        Variance,
        f"--mean {mean} -b 7",
        "--convOut_path",
        road.features,
        "--transnet",
        road.trans_net,
    )
    x, target, *_ = open_features(road.features, split="val").__getitems__(list(range(24)))
    with torch.no_grad():
        output, components = load_trans_net(road.trans_net).decompose(x)
    axes = (0, 2, 3) if mean == "channel" else (0, 1, 2, 3)
    for name, values in zip(VARIANCES, [target, *components, output, target - output]):
        centred = values.double() - values.double().mean(axes, keepdim=True)
        assert report["var"][name] == pytest.approx(float(centred.square().mean()), rel=1e-5)


def test_variances_of_the_training_features(road):
    """`--t_or_v` chooses the set: here the one that the Trans-Net was fitted on."""
    train = run(
        Variance, "--t_or_v train", "--convOut_path", road.features, "--transnet", road.trans_net
    )
    val = run(
        Variance,
        "--t_or_v val",
        "--convOut_path",
        road.features / "val",
        "--transnet",
        road.trans_net,
    )
    assert train["source"]["split"] == "train"
    assert train["var"]["target"] != pytest.approx(val["var"]["target"], rel=1e-3)


def test_under_mixed_precision_the_nets_alone_are_computed_in_it(road, photos):
    """The decomposition is float32: of the heads' bfloat16 features,
    outside autocast, as of stored ones.
    """
    nets = ("--net_in", road.a, "--net_tar", road.b, *data(photos))
    report = run(Variance, "--amp bf16 --batch_size 24", *nets, "--transnet", road.trans_net)
    images = load_images("folder", "val", data_root="nowhere", path=photos / "val", image_size=64)
    pixels = normalise(images.__getitems__(range(24))[0], *NORMALISATIONS["imagenet"])
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            heads = (split(load_classifier(net), "layer1.1.add")[0] for net in (road.a, road.b))
            x, target = (freeze_for_inference(head, torch.device("cpu"))(pixels) for head in heads)
        assert x.dtype == target.dtype == torch.bfloat16
        output, components = load_trans_net(road.trans_net).decompose(x.float())
    for name, values in zip(VARIANCES, [target, *components, output, target - output]):
        centred = values.double() - values.double().mean((0, 2, 3), keepdim=True)
        assert report["var"][name] == pytest.approx(float(centred.square().mean()), rel=1e-5), name


# --- a Trans-Net of something else is refused


def of_nets(road):
    photos = road.nets[road.nets.index("--train_path") + 1].parent
    return "--net_in", road.a, "--net_tar", road.b, *data(photos), "--conv_layer", 1


def of_features(road):
    return "--convOut_path", road.features


@pytest.mark.parametrize("words", [of_nets, of_features])
@pytest.mark.parametrize(
    ("fitted", "facts"),
    [
        ({"layer_a": "layer1.0.add"}, ("net A", "layer1.0.add", "layer1.1.add")),
        ({"layer_b": "layer1.0.add"}, ("net B", "layer1.0.add", "layer1.1.add")),
        (
            {"checkpoint_a": "0" * 64},
            ("net A", "00000000", "checkpoint_folder_resnet18_sd0.pth.tar"),
        ),
        (
            {"checkpoint_b": "0" * 64},
            ("net B", "00000000", "checkpoint_folder_resnet18_sd5.pth.tar"),
        ),
        ({"arch_b": "resnet34"}, ("arch", "net B", "resnet34", "resnet18")),
        ({"dataset": "CUB200"}, ("dataset", "CUB200", "folder")),
        ({"name": "birds"}, ("birds", "folder")),
        ({"classes": ["bird", "dog"]}, ("classes", 2, 3)),
        ({"transform": {"image_size": 48}}, ("image_size", 48, 64)),
    ],
)
def test_a_trans_net_of_something_else_is_refused(road, tmp_path, words, fitted, facts):
    state = checkpoint.load(road.trans_net)
    checkpoint.save(tmp_path / "g.pth.tar", state | {"source": state["source"] | fitted})
    with refused("Variance.py", tmp_path / "g.pth.tar", *facts, kind=SystemExit):
        run(
            Variance,
            "--json",
            tmp_path / "v.json",
            *words(road),
            "--transnet",
            tmp_path / "g.pth.tar",
        )
    assert files(tmp_path) == ["g.pth.tar"]


@pytest.mark.parametrize("words", [of_nets, of_features])
def test_a_trans_net_may_be_of_other_images_of_the_same_data(road, tmp_path, words):
    """It is fitted on the training images, or on a part of them; and the authors' says nothing."""
    state = checkpoint.load(road.trans_net)
    assert state["source"]["split"] == "train"
    expected = run(Variance, "", *words(road), "--transnet", road.trans_net)["var"]
    for source in (state["source"] | {"sample_num": "50par_A"}, {}):
        checkpoint.save(tmp_path / "g.pth.tar", state | {"source": source})
        assert (
            run(Variance, "", *words(road), "--transnet", tmp_path / "g.pth.tar")["var"] == expected
        )


REFUSED = {
    "exchanged nets": lambda road: (
        "",
        "--net_in",
        road.b,
        "--net_tar",
        road.a,
        *of_nets(road)[4:],
        ("--reverse",),
    ),
    "the other direction of stored features": lambda road: (
        "--reverse",
        *of_features(road),
        ("--reverse",),
    ),
    "another layer of the nets, with as many channels": lambda road: (
        "--layer layer1.0.add",
        *of_nets(road),
        ("net A", "layer1.1.add", "layer1.0.add"),
    ),
    "another layer of net B": lambda road: (
        "--layer layer1.1.add --layer2 layer1.0.add",
        *of_nets(road),
        ("net B", "layer1.1.add", "layer1.0.add"),
    ),
    "other data": lambda road: (
        "",
        *of_nets(road),
        "--name",
        "birds",
        ("folder", "birds"),
    ),
    "another image size": lambda road: (
        "--image_size 48",
        *of_nets(road),
        ("64", "--image_size", "48"),
    ),
    "another number of stored features": lambda road: (
        "--conv_layer 4",
        *of_features(road),
        ("layer", '"1"', '"4"'),
    ),
    "another layer of stored features": lambda road: (
        "--layer layer1.0.add",
        *of_features(road),
        ("layer", '"1"', "layer1.0.add"),
    ),
    "another layer of net B's stored features": lambda road: (
        "--conv_layer 1 --conv_layer2 2",
        *of_features(road),
        ("layer", '"1"', '"1-2"'),
    ),
    "another data set of stored features": lambda road: (
        "--dataset CUB200",
        *of_features(road),
        ("dataset", "folder", "CUB200"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_disagree_with_the_files_are_refused(road, case):
    line, *words, facts = REFUSED[case](road)
    with refused(*facts, kind=SystemExit):
        run(Variance, line, *words, "--transnet", road.trans_net)


def test_another_folder_than_the_fits_is_refused(road, tmp_path):
    """Where no option says how it is called,
    it is called as it is, and not as the nets' folder was.
    """
    photos = road.nets[road.nets.index("--train_path") + 1].parent
    (tmp_path / "meadow").symlink_to(photos)
    (tmp_path / "folder").symlink_to(photos)
    words = ("--net_in", road.a, "--net_tar", road.b, "--transnet", road.trans_net)
    with refused(road.trans_net, "folder", "meadow", kind=SystemExit):
        run(Variance, "", *words, "--val_path", tmp_path / "meadow/val")
    run(Variance, "", *words, "--val_path", tmp_path / "folder/val")
    run(Variance, "--name folder", *words, "--val_path", tmp_path / "meadow/val")


def test_what_comes_next_can_be_pasted(road, tmp_path, capsys):
    run(Variance, "", *of_nets(road), "--transnet", road.trans_net)
    *_, following = capsys.readouterr().out.splitlines()
    words = shlex.split(following.removeprefix("next: python transClassifier.py "))
    transClassifier.main([*words, "--epochs", "0", "--out", str(tmp_path)])
    assert "after 0 epochs of tuning" in capsys.readouterr().out


def test_options_that_agree_with_the_files_are_taken(road):
    line = "--conv_layer 1 --conv_layer2 1 --dataset folder"
    said = run(Variance, line, *of_features(road), "--transnet", road.trans_net)
    assert said == run(Variance, "", *of_features(road), "--transnet", road.trans_net)


@pytest.mark.parametrize(
    ("line", "option", "beside"),
    [
        (
            "--net_in A --net_tar B --reverse",
            "--reverse",
            "--net_tar",
        ),
        (
            "--convOut_path F --net_in A",
            "--net_in",
            "--convOut_path",
        ),
        (
            "--convOut_path F --net_tar B",
            "--net_tar",
            "--convOut_path",
        ),
        ("--convOut_path F --arch_in resnet18", "--arch_in", "--convOut_path"),
        ("--convOut_path F --arch_tar resnet18", "--arch_tar", "--convOut_path"),
        ("--convOut_path F --image_size 64", "--image_size", "--convOut_path"),
        ("--convOut_path F --name birds", "--name", "--convOut_path"),
        ("--convOut_path F --train_path T", "--train_path", "--convOut_path"),
        ("--convOut_path F --val_path T", "--val_path", "--convOut_path"),
        ("--convOut_path F --sample_num 50par_A", "--sample_num", "--convOut_path"),
        ("--convOut_path F --split random", "--split", "--convOut_path"),
        ("--convOut_path F --cache_images ram", "--cache_images", "--convOut_path"),
    ],
)
def test_an_option_without_effect_is_an_error(line, option, beside):
    refuses(Variance.main, f"--transnet G {line}".split(), option, beside, code=2)


def test_what_b_still_knows_stands_beside_each_depth(road, photos, tmp_path, capsys):
    nets = ("--net_in", road.a, "--net_tar", road.b, *data(photos))
    live = run(Variance, "--conv_layer 1 --bootstrap 50", *nets, "--transnet", road.trans_net)
    stored = run(
        Variance, "--bootstrap 50", "--convOut_path", road.features, "--transnet", road.trans_net
    )
    for report in (live, stored):
        rows = {row["sender"]: row for row in report["still_known"]["rows"]}
        assert list(rows) == ["B itself", "g of 3 layers", "another image of the class"]
        itself = rows["B itself"]
        assert itself["K"]["value"] == pytest.approx(itself["I_B"]["value"], abs=1e-6)
        assert itself["penultimate_r2"]["value"] == pytest.approx(1, abs=1e-6)
        assert "decision_recovery" in itself and len(itself["lost_bits"]) == report["images"]
    one, other = (report["still_known"]["rows"][1]["K"]["value"] for report in (live, stored))
    assert one == pytest.approx(other, abs=1e-4)
    printed = capsys.readouterr().out
    assert "what B still knows: of" in printed and "another image of the class" in printed


def test_distinctions_are_measured_where_they_are_asked_for(road, photos, tmp_path, capsys):
    nets = ("--net_in", road.a, "--net_tar", road.b, *data(photos))
    words = ("--distinctions", "--transnet", road.trans_net)
    live = run(Variance, "--conv_layer 1 --bootstrap 50", *nets, *words)
    stored = run(Variance, "--bootstrap 50", "--convOut_path", road.features, *words)
    one, other = (report["distinctions"] for report in (live, stored))
    assert [of["class"] for of in one["classes"]] == ["blue", "green", "red"]
    assert one["most_lost"][0]["path"].startswith(("blue/", "green/", "red/"))
    assert other["most_lost"][0]["path"] is None
    assert one["margins"] == pytest.approx(other["margins"], abs=1e-3)
    worst = one["pairs"][0]
    assert f"{worst['first']} and {worst['second']}" in capsys.readouterr().out


def test_without_bs_checkpoint_the_rest_is_printed(road, tmp_path, capsys):
    moved = road.b.rename(tmp_path / "moved.pth.tar")
    try:
        report = run(
            Variance, "--bootstrap 0", "--convOut_path", road.features, "--transnet", road.trans_net
        )
    finally:
        moved.rename(road.b)
    assert report["still_known"]["rows"] == [] and report["instability"] > 0
    assert report["distinctions"] is None
    (note,) = report["still_known"]["notes"]
    check_line(note, road.b)
    assert f"note: {note}" in capsys.readouterr().out
