"""Shuffled batches of the same features: memory-mapped cache against one old `.pkl` file an image.

    python -m benchmarks.bench_feature_cache --images 1500

Both are read by one process right after they were written, so from the system's file cache where it
is large enough; the two take turns, and the median of the rounds counts. Prints Markdown.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import ran_on
from utils.features.cache import FeatureCache, open_features
from utils.features.old_folder import OldFeatureFolder
from utils.features.writer import FeatureWriter
from utils.provenance import Provenance


def store(folder: Path, images: int, shape: tuple[int, ...]) -> None:
    """Write the same random features of two networks,
    `shape` (C, H, W), in both formats below `folder`.
    """
    origin = Provenance(dataset="random", split="train")
    paths = [f"{i}.jpg" for i in range(images)]
    writer = FeatureWriter(
        folder / "cache",
        provenance=origin,
        paths=paths,
        shape_a=shape,
        shape_b=shape,
        dtype=torch.float32,
        top_k=(1,),
    )
    (folder / "old").mkdir()
    for i in range(images):
        a, b = torch.randn(2, *shape)
        target, hit = torch.tensor(i), torch.tensor([True])
        for net, feature in (("a", a), ("b", b)):
            writer.write(net, [i], feature[None], target[None], hit[None])
        sample = {
            "target": target,
            "pred1": hit,
            "pred2": hit,
            "convOut1": a.clone(),
            "convOut2": b.clone(),
        }
        torch.save(sample, folder / "old" / f"{i:06d}.pkl", _use_new_zipfile_serialization=False)
    writer.finish()


def images_per_second(
    features: FeatureCache | OldFeatureFolder, order: list[int], batch_size: int
) -> float:
    """One pass over `order` in batches."""
    start = time.perf_counter()
    for first in range(0, len(order), batch_size):
        features.__getitems__(order[first : first + batch_size])
    return len(order) / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument(
        "--shape", type=int, nargs=3, default=[512, 14, 14], help="of one network's feature"
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the features are written for the time of the run")
    args = parser.parse_args(argv)
    where = ran_on(__file__, argv, "torch", "numpy")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        store(Path(name), args.images, tuple(args.shape))
        readers = {
            "old .pkl files": open_features(Path(name) / "old"),
            "cache": open_features(Path(name) / "cache"),
        }
        order = np.random.default_rng(0).permutation(args.images).tolist()
        pairs = zip(*(reader.__getitems__(order[: args.batch_size]) for reader in readers.values()))
        assert all(torch.equal(old, new) for old, new in pairs), (
            "the two formats must hold the same features"
        )
        speeds: dict[str, list[float]] = {title: [] for title in readers}
        for _ in range(args.rounds):
            for title, reader in readers.items():
                speeds[title].append(images_per_second(reader, order, args.batch_size))
    old = statistics.median(speeds["old .pkl files"])
    print(
        f"{args.images} images, 2 × {'×'.join(map(str, args.shape))} float32, batches of"
        f" {args.batch_size}, shuffled\n"
    )
    print("| read from | images/s, median (lowest to highest) | ratio |\n|---|---|---|")
    for title, values in speeds.items():
        middle = statistics.median(values)
        print(
            f"| {title} | {middle:.0f} ({min(values):.0f} to {max(values):.0f}) |"
            f" {middle / old:.1f} |"
        )
    print(f"\n{where}")


if __name__ == "__main__":
    main()
