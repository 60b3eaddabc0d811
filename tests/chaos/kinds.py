"""Every kind of file that the suite opens: a whole one, and what is read of it."""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from consistency.calibration import load_sums, save_sums
from consistency.gate import read_policy
from distillation import dcm_log
from models.classifiers import build, classifier_record, read_classifier
from models.trans_net import TransNet, load_trans_net
from tests.unit import reports, stored_features
from tests.unit.photos import make_folder
from utils import checkpoint
from utils.data.contents import read_contents
from utils.data.decoding import open_rgb
from utils.data.image_file import open_image_file
from utils.data.images import load_images
from utils.data.sub_samplers import read_sub_sampler
from utils.features.cache import open_features
from utils.files import write_json
from utils.kept import Kept
from utils.prepare.unpacking import unpacked
from utils.report import page
from utils.runs import read_metrics
from utils.runtime import Runtime
from utils.training.engine import Fit, make_optimizer

ARCH, CLASSES = "mobilenet32", 3
CPU = Runtime(torch.device("cpu"), (), 0, 1, None, False, 0)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the kind.
        make: writes whole files into a folder, and gives those that are damaged, one at a time.
        read: the folder and the damaged file → plain values and tensors, all that was read.
        has_sum: of the file the suite keeps a checksum or a hash, so that no change goes unseen.
        heals: what is damaged is made anew, so that what is read is always the same.
    """

    name: str
    make: Callable[[Path], list[Path]]
    read: Callable[[Path, Path], Any]
    has_sum: bool = False
    heals: bool = False


def classifier_state() -> dict[str, Any]:
    """A net's checkpoint with the state of its training."""
    torch.manual_seed(0)
    model = build(ARCH, CLASSES)
    optimizer = make_optimizer("SGD", model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    fit = Fit(model, model, optimizer, CPU.grad_scaler(), CPU)
    facts = {"arch": ARCH, "model": classifier_record(ARCH, CLASSES), "acc1": 50.0}
    facts |= {"data": {"image_size": 32, "classes": ["a", "b", "c"]}, "settings": {"lr": 0.1}}
    return fit.state(2, **facts)


def make_classifier(folder: Path) -> list[Path]:
    checkpoint.save(folder / "net.pth.tar", classifier_state())
    return [folder / "net.pth.tar"]


def make_old_classifier(folder: Path) -> list[Path]:
    state = {"arch": ARCH, "epoch": 2, "state_dict": build(ARCH, CLASSES).state_dict()}
    torch.save(state, folder / "old.pth.tar", _use_new_zipfile_serialization=False)
    return [folder / "old.pth.tar"]


def make_safetensors(folder: Path) -> list[Path]:
    record = {"arch": ARCH, "model": classifier_record(ARCH, CLASSES)}
    weights = build(ARCH, CLASSES).state_dict()
    checkpoint.save_safetensors(folder / "net.safetensors", weights, record)
    return [folder / "net.safetensors"]


def read_net(_: Path, path: Path) -> Any:
    model, rest = read_classifier(path)
    return model.state_dict(), {name: rest[name] for name in rest.keys() - {"inputs"}}


def resume(_: Path, path: Path) -> Any:
    """Read a net and go on with its training for a step."""
    model, _ = read_classifier(path)
    state = checkpoint.load(path)
    optimizer = make_optimizer("SGD", model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0)
    fit = Fit(model, model, optimizer, CPU.grad_scaler(), CPU)
    epochs = fit.restore(state, path)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return epochs, model.state_dict()


def make_trans_net(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    net = TransNet(4, 5, 3, standardise=True, hidden=2)
    state = {"trans_net": net.config, "state_dict": net.state_dict(), "epoch": 1}
    checkpoint.save(folder / "g.pth.tar", state)
    return [folder / "g.pth.tar"]


def read_trans_net(_: Path, path: Path) -> Any:
    net = load_trans_net(path)
    return net.config, net.state_dict()


def make_cache(folder: Path) -> list[Path]:
    stored_features.complete(folder / "train")
    return sorted((folder / "train").glob("[!.]*"))


def read_cache(folder: Path, _: Path) -> Any:
    features = open_features(folder / "train")
    read = features.__getitems__(range(len(features)))
    return read, features.paths, features.hits_a, features.hits_b, features.facts


def make_old_folder(folder: Path) -> list[Path]:
    stored_features.old_folder(folder / "old")
    return sorted((folder / "old").glob("*.pkl"))


def read_old_folder(folder: Path, _: Path) -> Any:
    features = open_features(folder / "old")
    return features.__getitems__(range(len(features)))


def make_log(folder: Path) -> list[Path]:
    lines = [{"epoch": epoch, "Loss": 1 / epoch, "lr": 0.1, "seconds": 1.0} for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [folder / "metrics.jsonl"]


def make_dcm_log(folder: Path) -> list[Path]:
    for epoch in (1, 2, 3):
        dcm_log.write(folder / "log.txt", {"epoch": epoch, "train_loss": 1 / epoch})
    return [folder / "log.txt"]


def make_results(folder: Path) -> list[Path]:
    return sorted(reports.write_run(folder / "run").glob("*.json"))


def make_sums(folder: Path) -> list[Path]:
    rows = np.random.default_rng(0).random((3, 20, 2))
    save_sums(folder / "sums.npz", *rows)
    return [folder / "sums.npz"]


def make_photos(folder: Path) -> list[Path]:
    make_folder(folder / "train", {"a": 2, "b": 2})
    store = folder / "cache/train.npy"
    read_photos(folder, store)
    return [store, store.with_suffix(".json")]


def read_photos(folder: Path, _: Path) -> Any:
    photos = load_images("folder", "train", data_root=folder, path=folder / "train", image_size=16)

    def fill(array: np.ndarray) -> None:
        for index in range(len(photos)):
            array[index] = photos.decode([index])[0].numpy()

    return open_image_file(folder / "cache/train.npy", photos, fill, lambda _: None).values.clone()


def make_hashes(folder: Path) -> list[Path]:
    from utils.data import contents

    make_folder(folder / "train", {"a": 2, "b": 2})
    for path in (folder / "train").rglob("*.jpg"):
        import os

        os.utime(path, (1, 1))
    contents.WORTH_KEEPING, before = 0, contents.WORTH_KEEPING
    contents.UNSETTLED_NS, settled = -(10**12), contents.UNSETTLED_NS
    try:
        read_hashes(folder, folder)
    finally:
        contents.WORTH_KEEPING, contents.UNSETTLED_NS = before, settled
    return sorted((folder / ".cache").glob("hashes_*.npz"))


def read_hashes(folder: Path, _: Path) -> Any:
    photos = load_images("folder", "train", data_root=folder, path=folder / "train", image_size=16)
    return read_contents(photos, cache_dir=folder / ".cache", quiet=True).hashes


def make_sub_sampler(kind: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        indices, path = [0, 2, 5, 7], folder / f"sub_sampler_digits_half.{kind}"
        if kind == "pt":
            torch.save(indices, path)
        elif kind == "npy":
            np.save(path, np.array(indices))
        else:
            write_json(path, indices)
        return [path]

    return make


def read_half(folder: Path, _: Path) -> Any:
    images: Any = SimpleNamespace(
        files=[f"{number}.jpg" for number in range(9)], targets=torch.zeros(9)
    )
    return read_sub_sampler("digits", "half", images, data_root=folder)


def make_image(ending: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        from tests.unit.photos import make_photo

        make_photo(folder / f"photo{ending}", 0, size=(40, 30))
        return [folder / f"photo{ending}"]

    return make


def make_kept(folder: Path) -> list[Path]:
    read_kept(folder, folder)
    return sorted((folder / "kept").glob("*.pth"))


def read_kept(folder: Path, _: Path) -> Any:
    return Kept(folder / "kept").get("sums", {"seed": 0}, lambda: {"sums": torch.arange(50.0)})


def make_policy(folder: Path) -> list[Path]:
    write_json(folder / "policy.json", {"features_at_least": 0.9, "layers": ["stage 1"]})
    return [folder / "policy.json"]


def make_archive(name: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        (folder / "Images").mkdir()
        for number in range(3):
            content = np.random.default_rng(number).bytes(600)
            (folder / f"Images/{number}.jpg").write_bytes(content)
        path = folder / name
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted((folder / "Images").iterdir()):
                    archive.write(file, f"Images/{file.name}")
        else:
            with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
                tar.add(folder / "Images", "Images")
        shutil.rmtree(folder / "Images")
        return [path]

    return make


def unpack(folder: Path, path: Path) -> Any:
    with unpacked([path], {}, folder / "scratch") as folders:
        files = [file for place in folders for file in sorted(place.rglob("*")) if file.is_file()]
        return [(file.relative_to(folder).as_posix(), file.read_bytes()) for file in files]


KINDS = [
    Kind("checkpoint of a net", make_classifier, read_net, has_sum=True),
    Kind("checkpoint that goes on", make_classifier, resume, has_sum=True),
    Kind("checkpoint of PyTorch 1.0", make_old_classifier, read_net),
    Kind("safetensors", make_safetensors, read_net, has_sum=True),
    Kind("Trans-Net", make_trans_net, read_trans_net, has_sum=True),
    Kind("feature cache", make_cache, read_cache, has_sum=True),
    Kind("features of the authors", make_old_folder, read_old_folder),
    Kind("metrics.jsonl", make_log, lambda _, path: read_metrics(path)),
    Kind("DCM's log.txt", make_dcm_log, lambda _, path: dcm_log.read(path)),
    Kind("results", make_results, lambda folder, _: page.render(folder / "run")),
    Kind("sums per image", make_sums, lambda _, path: load_sums(path), has_sum=True),
    Kind("store of photos", make_photos, read_photos, heals=True),
    Kind("hashes of photos", make_hashes, read_hashes, heals=True),
    *(
        Kind(f"sub-sampler .{kind}", make_sub_sampler(kind), read_half)
        for kind in ("pt", "npy", "json")
    ),
    *(
        Kind(f"photo {ending}", make_image(ending), lambda _, path: np.asarray(open_rgb(path)))
        for ending in (".jpg", ".png")
    ),
    Kind("kept result", make_kept, read_kept, heals=True),
    Kind("policy", make_policy, lambda _, path: read_policy(path)),
    *(Kind(f"archive {name}", make_archive(name), unpack) for name in ("a.zip", "a.tar", "a.tgz")),
]
