"""What anybody writes to store features of two nets by torchvision alone.

    python -m benchmarks.torchvision_loop ARCH A.pth.tar B.pth.tar LAYER PHOTOS PIXELS FOLDER

It is no step of the suite: it proves nothing of what it hooks, resumes nothing, records nothing.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

CONSTANTS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE = 64


def open_net(arch: str, path: str, classes: int) -> nn.Module:
    """Read a net of torchvision."""
    net = models.get_model(arch, num_classes=classes)
    net.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return net.eval()


def main(
    arch: str, first: str, second: str, layer: str, photos: str, pixels: str, folder: str
) -> None:
    """Store both nets' features and print their accuracies."""
    view = transforms.Compose(
        [
            transforms.Resize((int(pixels), int(pixels))),
            transforms.ToTensor(),
            transforms.Normalize(*CONSTANTS),
        ]
    )
    data = datasets.ImageFolder(photos, view)
    nets = [open_net(arch, path, len(data.classes)) for path in (first, second)]
    kept: list[list[Tensor]] = [[], []]
    for net, features in zip(nets, kept):
        net.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, features=features: features.append(output.clone())
        )
    hits = [0, 0]
    with torch.inference_mode():
        for images, labels in DataLoader(data, BATCH_SIZE):
            for i, net in enumerate(nets):
                hits[i] += int((net(images).argmax(1) == labels).sum())
    Path(folder).mkdir(parents=True)
    for name, features in zip("ab", kept):
        np.save(Path(folder, f"features_{name}.npy"), torch.cat(features).numpy())
    np.save(Path(folder, "targets.npy"), np.array(data.targets))
    print([count / len(data) for count in hits])


if __name__ == "__main__":
    main(*sys.argv[1:])
