"""What the tests of transClassifier.py share: small nets,
Trans-Nets, and what a run of it leaves behind.
"""

import json

import torch
from torch import nn

from models.classifiers import build, classifier_record
from models.trans_net import TransNet
from utils import checkpoint

ARCH, LAYER, CHANNELS, SIZE = "mobilenet_v3_small", "features.4", 40, 32
CLASSES = ["blue", "green", "red"]
FOLDER = {
    "dataset": "folder",
    "name": "folder",
    "sample_num": "",
    "classes": CLASSES,
    "image_size": SIZE,
    "resize": "torch",
}


def make_classifier(path, seed, num_classes=3):
    """Save an untrained network whose answers differ from image to image."""
    torch.manual_seed(seed)
    model = build(ARCH, num_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(torch.randn(32, 3, SIZE, SIZE))  # statistics of its own
    model.classifier[-1].weight.data *= 10
    checkpoint.save(
        path,
        {
            "epoch": 1,
            "arch": ARCH,
            "model": classifier_record(ARCH, num_classes),
            "state_dict": model.state_dict(),
            "data": FOLDER | {"classes": CLASSES[:num_classes]},
        },
    )
    return model.eval()


def make_trans_net(path, source, channels=(CHANNELS, CHANNELS), seed=1):
    torch.manual_seed(seed)
    trans_net = TransNet(*channels).eval()
    checkpoint.save(
        path,
        {"trans_net": trans_net.config, "state_dict": trans_net.state_dict(), "source": source},
    )
    return trans_net


def lines(tmp_path, name=f"111_L{LAYER}"):
    text = (tmp_path / "logs" / f"folder_{ARCH}" / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def tuned(folder, name=f"111_L{LAYER}"):
    return checkpoint.load(folder / "check" / f"folder_{ARCH}" / f"checkpoint_{name}.pth.tar")
