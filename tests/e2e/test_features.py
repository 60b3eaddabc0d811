"""ConvOutput.py: what is stored, and where."""

import pytest
import torch

import ConvOutput
import Training
import Training_TransNet
from models.classifiers import load_classifier
from models.layers import layer_name
from models.split import cuts, split
from tests.e2e.road import FIT, data, files, run
from tests.mistakes import check_some_line, refused, refuses
from utils import checkpoint
from utils.data.images import load_images
from utils.features.cache import open_features
from utils.files import sha256
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise

pytestmark = pytest.mark.e2e


def test_features_are_the_nets_own_at_that_layer(road, photos):
    """The output of layer1 before its last ReLU, row by row in the order of the folder."""
    stored = open_features(road.features, split="val")
    images = load_images("folder", "val", data_root="nowhere", path=photos / "val", image_size=64)
    assert stored.paths == images.paths
    pixels, targets, _ = images.__getitems__(list(range(24)))
    features_a, features_b, stored_targets, _ = stored.__getitems__(list(range(24)))
    assert torch.equal(stored_targets, targets)
    for path, features, hits in (
        (road.a, features_a, stored.hits_a),
        (road.b, features_b, stored.hits_b),
    ):
        model = load_classifier(path)
        head, _ = split(model, layer_name(model, 1))
        with torch.no_grad():
            expected, logits = (
                head(normalise(pixels, *NORMALISATIONS["imagenet"])),
                model(normalise(pixels, *NORMALISATIONS["imagenet"])),
            )
        # BatchNorm is folded into the convolutions before it: equal up to rounding of the largest.
        torch.testing.assert_close(
            features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )
        assert features.shape == (24, 64, 16, 16) and features.min() < 0
        assert torch.equal(hits[:, 0], logits.argmax(1) == targets) and hits[:, 1].all()
    known = stored.provenance
    assert (known.a.sha256, known.b.sha256) == (sha256(road.a), sha256(road.b))
    assert (known.split, known.label, known.a.layer) == ("val", "1", "layer1.1.add")


def test_every_cut_is_listed_with_its_shape_and_bytes(road, tmp_path, capsys):
    run(ConvOutput, "--list_layers --t_or_v val --dtype float16", *road.nets[:-1], tmp_path)
    said = capsys.readouterr().out.splitlines()[1:]  # after the line that says where it runs
    first, second = (
        said.index(f"net {net}, {path}, images of 64 pixels")
        for net, path in (("A", road.a), ("B", road.b))
    )
    assert said[first + 1].split() == ["--layer", "feature:", "C,", "H,", "W", "24", "images"]
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in said[first + 2 : second]}
    of_b = [line.split()[0] for line in said[second + 2 : -1]]
    no_cut = {name for name, rest in listed.items() if rest.startswith("no cut: ")}
    assert list(listed) == of_b
    assert [name for name in listed if name not in no_cut] == list(
        cuts(load_classifier(road.a), 64)
    )
    megabytes = 64 * 16 * 16 * 2 * 24 / 1e6
    assert listed["layer1.1.add"].split() == ["(64,", "16,", "16)", f"{megabytes:.1f}", "MB"]
    assert listed["layer1.1.relu_1"].endswith("MB  end of stage 2: layer1")
    # A residual branch
    assert listed["layer1.1.conv1"] == "no cut: layer1.0.relu_1 flows around it"
    assert said[-1].startswith("next: python ConvOutput.py ") and "--list_layers" not in said[-1]
    assert list(tmp_path.iterdir()) == []


def test_one_net_is_listed_alone_and_without_its_images(road, tmp_path, capsys):
    run(ConvOutput, "--list-layers", "--resume2", road.b, "--train_path", tmp_path / "nowhere")
    _, note, head, *lines = capsys.readouterr().out.splitlines()
    assert note.startswith("note: sizes are those of one image, because ") and "nowhere" in note
    assert head == f"net B, {road.b}, images of 64 pixels"
    listed = [line.split()[0] for line in lines[1:] if "no cut: " not in line]
    assert listed == list(cuts(load_classifier(road.b), 64))


def test_features_that_are_there_are_not_computed_again(road, capsys):
    def times():
        """Of what was computed: a hidden file notes which files were checked, and is renewed."""
        computed = (road.features / "val").glob("[!.]*")
        return {path: path.stat().st_mtime_ns for path in computed}

    before = times()
    run(ConvOutput, "--conv_layer 1 --t_or_v val", *road.nets)
    check_some_line(capsys.readouterr().out, road.features / "val")
    assert before and times() == before


def test_other_types_and_images_are_stored_apart(road, photos, tmp_path, capsys):
    nets = (*road.nets[:-1], tmp_path)
    run(
        ConvOutput,
        "--conv_layer 1 --sample_num 50par_A --dtype float16",
        *nets,
        "--data_root",
        tmp_path / "data",
    )
    half = open_features(tmp_path / "convOuts/folder_50par_A_resnet18/folder_L1/train")
    whole = open_features(road.features / "train")
    rows = [whole.paths.index(path) for path in half.paths]
    assert len(rows) == 12 and half.facts["dtype"] == "float16"
    torch.testing.assert_close(
        half.__getitems__(range(12))[0], whole.__getitems__(rows)[0], rtol=2e-3, atol=2e-3
    )
    folder = ("--convOut_path", tmp_path / "convOuts/folder_50par_A_resnet18/folder_L1")
    run(
        Training_TransNet,
        f"{FIT} --suffix s --save_per_epoch --save_epoch 1",
        *folder,
        "--out",
        tmp_path,
    )
    names = [".pth.tar", ".pth.tar.1", "_epoch1.pth.tar", "_epoch2.pth.tar"]
    assert files(tmp_path / "model_checkpoints") == [
        f"folder_resnet18/checkpoint_L1_50par_A_s{name}" for name in names
    ]


def test_two_folders_of_images_have_two_names(road, photos, tmp_path):
    """As the folder is called, or the one above where that is called train, test or val."""
    nets = {}
    for net in "ab":  # which know no data set, as the authors'
        state = checkpoint.load(getattr(road, net))
        nets[net] = tmp_path / f"{net}.pth.tar"
        checkpoint.save(nets[net], {key: state[key] for key in ("arch", "model", "state_dict")})
    for folder, paths in (("birds", "train"), ("dogs", "")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / paths
        if paths:
            path.symlink_to(photos / "train")
        else:
            for images in (photos / "train").iterdir():
                (path / images.name).symlink_to(images)
        words = (
            "--resume1",
            nets["a"],
            "--resume2",
            nets["b"],
            "--train_path",
            path,
            "--out",
            tmp_path,
        )
        run(ConvOutput, "--dataset folder --conv_layer 4 --image_size 32", *words)
    stored = [tmp_path / f"convOuts/{name}_resnet18/{name}_L4/train" for name in ("birds", "dogs")]
    assert sorted((tmp_path / "convOuts").rglob("train")) == stored
    birds, dogs = (open_features(folder).provenance for folder in stored)
    assert birds.differs(dogs) == "name birds instead of dogs"


def test_several_layers_are_stored_in_one_pass(road, tmp_path, capsys):
    nets = (*road.nets[:-1], tmp_path)
    run(ConvOutput, "--layers layer1.1.add,2,fc --t_or_v val --batch_size 7", *nets)
    folders = {
        label: tmp_path / f"convOuts/folder_resnet18/folder_L{label}/val"
        for label in ("layer1.1.add", "2", "fc")
    }
    assert sorted((tmp_path / "convOuts").rglob("val")) == sorted(folders.values())
    stored = {label: open_features(folder) for label, folder in folders.items()}
    assert stored["2"].provenance.a.layer == stored["2"].provenance.b.layer == "layer2.1.add"
    assert stored["2"].shape_a == (128, 8, 8) and stored["fc"].shape_a == (3,)
    single = open_features(road.features / "val")
    rows = list(range(24))
    for one, other in zip(stored["layer1.1.add"].__getitems__(rows), single.__getitems__(rows)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        stored["fc"].__getitems__(rows)[0].argmax(1) == stored["fc"].targets,
        stored["fc"].hits_a[:, 0],
    )
    before = capsys.readouterr().out
    assert "net A: top-1" in before and before.endswith("--t_or_v train\n")  # which a fit needs
    run(ConvOutput, "--layers 2,layer3.1.add --t_or_v val", *nets)
    said = capsys.readouterr().out
    assert f"{folders['2']} has these features already" in said and "L2/val: " not in said
    assert open_features(
        tmp_path / "convOuts/folder_resnet18/folder_Llayer3.1.add/val"
    ).shape_b == (256, 4, 4)


def test_all_layers_that_are_small_enough_are_stored(road, tmp_path):
    nets = (*road.nets[:-1], tmp_path)
    # 24 images of 208 numbers
    run(ConvOutput, "--layers all --below 0.02 --layer2 fc --t_or_v val", *nets)
    stored = [open_features(folder) for folder in sorted((tmp_path / "convOuts").rglob("val"))]
    assert [part.provenance.a.layer for part in stored] == ["fc"]
    assert stored[0].provenance.b.layer == "fc"
    with refused("--below", "1e-05 MB", kind=SystemExit):
        run(ConvOutput, "--layers all --below 0.00001 --t_or_v val", *nets)


def test_layers_of_both_nets_are_paired_by_their_place(road, tmp_path):
    run(ConvOutput, "--layers layer1,3 --layers2 2,layer4 --t_or_v val", *road.nets[:-1], tmp_path)
    folders = [
        tmp_path / f"convOuts/folder_resnet18/folder_L{label}/val"
        for label in ("3-layer4", "layer1-2")
    ]
    assert sorted((tmp_path / "convOuts").rglob("val")) == folders
    shapes = [(stored.shape_a, stored.shape_b) for stored in map(open_features, folders)]
    assert shapes == [((256, 4, 4), (512, 2, 2)), ((64, 16, 16), (128, 8, 8))]


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("--layers a,b --layers2 c", ("2", "--layers", "1", "--layers2")),
        ("--layers stages --layers2 c", ("--layers2", "--layers")),
        ("--layers2 c", ("--layers2", "--layers")),
        ("--layers a --layers2 c --layer2 d", ("--layer2", "--layers2")),
    ],
)
def test_layers_that_make_no_pairs_are_refused(line, facts):
    refuses(ConvOutput.main, f"--resume1 A --resume2 B {line}".split(), *facts, code=2)


@pytest.mark.parametrize("line", ["--resume1 A --conv_layer 1", "--resume2 B", "--list_layers"])
def test_both_nets_are_named(line):
    refuses(ConvOutput.main, line.split(), "--resume1", "--resume2", code=2)


@pytest.fixture(scope="module")
def shallow(road, photos):
    """A net of fewer blocks and stages than the road's, which knows the same photos."""
    words = "--arch resnet8 --image_size 64 --epochs 1 -b 12 --seed 7"
    run(Training, words, *data(photos), "--out", road.out / "shallow")
    return road.out / "shallow/model_checkpoints/checkpoint_folder_resnet8.pth.tar"


def test_stages_are_matched_from_the_last(road, shallow, tmp_path, capsys):
    nets = ("--resume1", road.a, "--resume2", shallow, *road.nets[4:-1], tmp_path)
    run(ConvOutput, "--layers stages --t_or_v both", *nets)
    said = capsys.readouterr().out
    pairs = [("layer2", "layer1"), ("layer3", "layer2"), ("layer4", "layer3")]
    named = ", ".join(f"{first} and {second}" for first, second in pairs)
    assert (
        "note: net A has 5 stages and net B 3; matched from the last one, these are compared:"
        f" {named}" in said
    )
    folders = [tmp_path / f"convOuts/folder_resnet18-resnet8/folder_L{a}-{b}" for a, b in pairs]
    assert sorted((tmp_path / "convOuts").rglob("val")) == [folder / "val" for folder in folders]
    stored = [open_features(folder / "train") for folder in folders]
    assert [part.shape_a[0] for part in stored] == [128, 256, 512]
    assert [(part.provenance.a.layer, part.provenance.b.layer) for part in stored] == pairs
    assert f"--convOut_path {folders[1]} " in said.splitlines()[-1]  # one in the middle


def test_the_same_name_at_another_depth_is_said(road, shallow, tmp_path, capsys):
    nets = ("--resume1", road.a, "--resume2", shallow, *road.nets[4:-1], tmp_path)
    run(ConvOutput, "--layers layer1.0.add,layer3 --t_or_v val", *nets)
    notes = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("note: layer")
    ]
    assert [note.split()[1] for note in notes] == ["layer1.0.add", "layer3"]
    assert (
        "stage 2 of 5 in net A but 80% through stage 1 of 3 in net B; --layers stages " in notes[0]
    )
    run(ConvOutput, "--conv_layer 2 --t_or_v val", *road.nets[:-1], tmp_path)
    assert "note: " not in capsys.readouterr().out  # one architecture
