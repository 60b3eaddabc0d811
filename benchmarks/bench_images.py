"""Whole runs against the number of images:
seconds of the processor an image, and the most memory held.

    KC_REAL_DATA=… python -m benchmarks.bench_images

ResNet-18 with random weights at layer2, photos of 64 pixels (the same few, linked as often as is
needed). Features of two nets are stored, a Trans-Net is fitted to them for an epoch, and its
variances are measured from the images, each by a process of its own. What a run takes should be a
constant and so much an image: the table has that slope, from the first to the second number of
images and from the second to the third, which should be equal, and memory should not grow. Numbers
of images take turns; medians count, and of slopes their range over the rounds. Prints Markdown.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contests import photos, save_classifiers
from benchmarks.machine import ran_on
from benchmarks.turns import Turn, process

ARCH, LAYER, IMAGE_SIZE = "resnet18", 2, 64


def measure(folder: Path, count: int) -> dict[str, Turn]:
    """Run the steps on so many images."""
    out, nets = folder / f"out{count}", save_classifiers(folder, ARCH)
    images = photos(folder / f"of{count}", count)
    data = [
        "--dataset",
        "folder",
        "--name",
        "photos",
        "--image_size",
        IMAGE_SIZE,
        "--conv_layer",
        LAYER,
    ]
    data += ["--data_root", folder / f"data{count}", "--batch_size", 50]
    features, suffix = (
        out / f"convOuts/photos_{ARCH}/photos_L{LAYER}/train",
        ("--suffix", "g", "--out", out),
    )
    trans_net = out / f"model_checkpoints/photos_{ARCH}/checkpoint_L{LAYER}_g.pth.tar"
    return {
        "`ConvOutput.py`": process(
            "ConvOutput.py",
            "--resume1",
            nets[0],
            "--resume2",
            nets[1],
            *data,
            "--train_path",
            images,
            "--out",
            out,
        ),
        "`Training_TransNet.py`, an epoch": process(
            "Training_TransNet.py",
            "--convOut_path",
            features,
            "--epochs",
            1,
            "--one_direction",
            "--no_reference",
            *suffix,
        ),
        "`Variance.py`": process(
            "Variance.py",
            "--net_in",
            nets[0],
            "--net_tar",
            nets[1],
            "--transnet",
            trans_net,
            *data,
            "--val_path",
            images,
        ),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, nargs=3, default=(200, 1000, 5000), help="of one run each"
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    if "KC_REAL_DATA" not in os.environ:
        print("bench_images needs real photos: name their folder by KC_REAL_DATA; skipped")
        return
    where, rounds = ran_on(__file__, argv, "torch", "torchvision"), []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append([measure(Path(folder), count) for count in args.images])
    few, more, most = args.images
    print(
        f"| run | s of {few:,}, {more:,}, {most:,} images | ms an image to {more:,} | to {most:,} |"
        " most MB held |"
    )
    print("|---|---:|---:|---:|---:|")
    for name in rounds[0][0]:
        turns = [[of_count[name] for of_count in taken] for taken in rounds]
        seconds = ", ".join(
            f"{statistics.median(turn.seconds for turn in of):.1f}" for of in zip(*turns)
        )
        peaks = ", ".join(f"{max(turn.peak_bytes for turn in of) / 1e6:,.0f}" for of in zip(*turns))
        slopes = [[slope(taken, args.images, i) for taken in turns] for i in (0, 1)]
        shown = (f"{statistics.median(of):.2f} ({min(of):.2f} to {max(of):.2f})" for of in slopes)
        print(f"| {name} | {seconds} | {' | '.join(shown)} | {peaks} |")
    print(f"\n{where}")


def slope(turns: Sequence[Turn], images: Sequence[int], i: int) -> float:
    """Give the milliseconds an image from one number of images to the next."""
    return 1e3 * (turns[i + 1].seconds - turns[i].seconds) / (images[i + 1] - images[i])


if __name__ == "__main__":
    main()
