"""Whole runs against the number of images: seconds of the processor an image, and the most memory held.

    KC_REAL_DATA=… python -m benchmarks.bench_images

ResNet-18 with random weights at layer2, photos of 64 pixels (the same few, linked as often as is needed). Features of
two nets are stored, a Trans-Net is fitted to them for an epoch, and its variances are measured from the images, each by
a process of its own. What a run takes should be a constant and so much an image: the table has that slope, from the
first to the second number of images and from the second to the third, which should be equal, and memory should not
grow. Prints Markdown.
"""

import argparse
import itertools
import os
import tempfile
from pathlib import Path

from benchmarks.contests import Turn, photos, process, save_classifiers
from benchmarks.machine import ran_on

ARCH, LAYER, IMAGE_SIZE = "resnet18", 2, 64


def measure(folder: Path, count: int) -> dict[str, Turn]:
    """Run the steps on so many images."""
    out, nets = folder / f"out{count}", save_classifiers(folder, ARCH)
    images = photos(folder / f"of{count}", count)
    data = ["--dataset", "folder", "--name", "photos", "--image_size", IMAGE_SIZE, "--conv_layer", LAYER]
    data += ["--data_root", folder / f"data{count}", "--batch_size", 50]
    features, suffix = out / f"convOuts/photos_{ARCH}/photos_L{LAYER}/train", ("--suffix", "g", "--out", out)
    trans_net = out / f"model_checkpoints/photos_{ARCH}/checkpoint_L{LAYER}_g.pth.tar"
    return {
        "`ConvOutput.py`": process(
            "ConvOutput.py", "--resume1", nets[0], "--resume2", nets[1], *data, "--train_path", images, "--out", out
        ),
        "`Training_TransNet.py`, an epoch": process(
            "Training_TransNet.py", "--convOut_path", features, "--epochs", 1, "--no_reference", *suffix
        ),
        "`Variance.py`": process(
            "Variance.py", "--net_in", nets[0], "--net_tar", nets[1], "--transnet", trans_net, *data,
            "--val_path", images,
        ),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=3, default=(200, 1000, 5000), help="of one run each")
    args = parser.parse_args(argv)
    if "KC_REAL_DATA" not in os.environ:
        print("bench_images needs real photos: name their folder by KC_REAL_DATA; skipped")
        return
    where = ran_on(__file__, argv, "torch", "torchvision")
    with tempfile.TemporaryDirectory() as folder:
        found = {count: measure(Path(folder), count) for count in args.images}
    few, more, most = found
    print(f"| run | s of {few:,}, {more:,}, {most:,} images | ms an image to {more:,} | to {most:,} | most MB held |")
    print("|---|---:|---:|---:|---:|")
    for name in found[few]:
        turns = [of_count[name] for of_count in found.values()]
        seconds, peaks = (", ".join(f"{value:,.0f}" for value in values) for values in (
            [turn.seconds for turn in turns], [turn.peak_bytes / 1e6 for turn in turns]
        ))  # fmt: skip
        slopes = [
            1e3 * (after.seconds - before.seconds) / (larger - smaller)
            for (before, smaller), (after, larger) in itertools.pairwise(zip(turns, found))
        ]
        print(f"| {name} | {seconds} | {slopes[0]:.1f} | {slopes[1]:.1f} | {peaks} |")
    print(f"\n{where}")


if __name__ == "__main__":
    main()
