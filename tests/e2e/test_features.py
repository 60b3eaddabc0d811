"""ConvOutput.py: what is stored, and where."""

import pytest
import torch

import ConvOutput
import Training_TransNet
from models.classifiers import load_classifier
from models.layers import layer_name
from models.split import split
from tests.e2e.road import FIT, files, run
from utils import checkpoint
from utils.data.batches import normalise
from utils.data.images import load_images
from utils.features.cache import open_features
from utils.files import sha256

pytestmark = pytest.mark.e2e


def test_features_are_the_nets_own_at_that_layer(road, photos):
    """The output of layer1 before its last ReLU, row by row in the order of the folder."""
    stored = open_features(road.features, split="val")
    images = load_images("folder", "val", data_root="nowhere", path=photos / "val", image_size=64)
    assert stored.paths == images.paths
    pixels, targets, _ = images.__getitems__(list(range(24)))
    features_a, features_b, stored_targets, _ = stored.__getitems__(list(range(24)))
    assert torch.equal(stored_targets, targets)
    for path, features, hits in ((road.a, features_a, stored.hits_a), (road.b, features_b, stored.hits_b)):
        model = load_classifier(path)
        head, _ = split(model, layer_name(model, 1))
        with torch.no_grad():
            expected, logits = head(normalise(pixels)), model(normalise(pixels))
        # BatchNorm is folded into the convolutions before it: equal up to rounding of the largest.
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert features.shape == (24, 64, 16, 16) and features.min() < 0
        assert torch.equal(hits[:, 0], logits.argmax(1) == targets) and hits[:, 1].all()
    known = stored.provenance
    assert (known.a.sha256, known.b.sha256) == (sha256(road.a), sha256(road.b))
    assert (known.split, known.label, known.a.layer) == ("val", "1", "layer1.1.add")


def test_features_that_are_there_are_not_computed_again(road, capsys):
    before = {path: path.stat().st_mtime_ns for path in (road.features / "val").iterdir()}
    run(ConvOutput, "--conv_layer 1 --t_or_v val", *road.nets)
    assert f"{road.features / 'val'} has these features already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (road.features / "val").iterdir()} == before


def test_other_types_and_images_are_stored_apart(road, photos, tmp_path, capsys):
    nets = (*road.nets[:-1], tmp_path)
    run(ConvOutput, "--conv_layer 1 --sample_num 50par_A --dtype float16", *nets, "--data_root", tmp_path / "data")
    half = open_features(tmp_path / "convOuts/folder_50par_A_resnet18/folder_L1/train")
    whole = open_features(road.features / "train")
    rows = [whole.paths.index(path) for path in half.paths]
    assert len(rows) == 12 and half.facts["dtype"] == "float16"
    torch.testing.assert_close(half.__getitems__(range(12))[0], whole.__getitems__(rows)[0], rtol=2e-3, atol=2e-3)
    folder = ("--convOut_path", tmp_path / "convOuts/folder_50par_A_resnet18/folder_L1")
    run(Training_TransNet, f"{FIT} --suffix s --save_per_epoch --save_epoch 1", *folder, "--out", tmp_path)
    names = ["", "_epoch1", "_epoch2"]
    assert files(tmp_path / "model_checkpoints") == sorted(
        f"folder_resnet18/checkpoint_L1_50par_A_s{name}.pth.tar" for name in names
    )


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
        words = ("--resume1", nets["a"], "--resume2", nets["b"], "--train_path", path, "--out", tmp_path)
        run(ConvOutput, "--dataset folder --conv_layer 4 --image_size 32", *words)
    stored = [tmp_path / f"convOuts/{name}_resnet18/{name}_L4/train" for name in ("birds", "dogs")]
    assert sorted((tmp_path / "convOuts").rglob("train")) == stored
    birds, dogs = (open_features(folder).provenance for folder in stored)
    assert birds.differs(dogs) == "name birds instead of dogs"
