"""Compress a classifier: remove small weights, retrain the rest, perhaps let them share values (paper Sec. 4.4).

The method is that of Han et al. (2016). Of every layer the weights of magnitude up to s · std of that layer are removed;
the rest is trained for --epochs. With --share_bits the remaining weights of each layer are then clustered by k-means,
and the centroids are trained for --epochs more. The result is an ordinary checkpoint with zeros, named by its factors
(checkpoint_…_pruned0.2-1), and a JSON file beside it. The same command again goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from models.classifiers import read_classifier
from models.pruning import PrunedWeight, cluster, prune, tie, zero_removed
from utils import checkpoint, options, runs
from utils.classification import classify, data_record, validate
from utils.data import ImageData, check_classes
from utils.engine import make_optimizer, train_one_epoch
from utils.files import sha256, write_json
from utils.metrics import main_accuracy
from utils.runtime import Runtime, command, start
from utils.schedules import due, learning_rates, set_learning_rate

# The accuracy that a stage begins with, and the one that it ends with.
STAGES = (("pruned", "retrained"), ("shared", "fine-tuned"))

# What a checkpoint must agree on with the command that goes on with it.
RECORDED_OPTIONS = (
    "share_bits", "seed", "sample_num", "image_size", "batch_size", "optim", "lr", "momentum", "weight_decay", "epochs",
    "logspace", "epoch_step", "decay_factor",
)  # fmt: skip


def build_parser() -> options.Parser:
    """Declare this step's options."""
    # Resolving: --resume and --start_epoch mean something else, or nothing, here.
    parser = options.Parser(__doc__, conflict_handler="resolve")
    group = parser.add_argument_group("compression")
    options.add_data_options(parser, batch_size=128)
    options.add_training_options(parser, optim="SGD", lr=1e-4, epochs=20)
    options.add_run_options(parser)
    options.add_ignored_options(parser, "--start_epoch")
    group.add_argument("--resume", required=True, metavar="NET", help="checkpoint of the classifier to compress")
    group.add_argument("-a", "--arch", help="its architecture, if the file does not say")
    group.add_argument("--s_conv", type=float, default=0.2, help="threshold of a convolution, in std of its weights")
    group.add_argument("--s_fc", type=float, default=1.0, help="threshold of a linear layer, in std of its weights")
    group.add_argument(
        "--sweep", type=options.list_of(float), default=[1.0], metavar="[0.5,1,2]",
        help="factors on both s_conv and s_fc; one compressed net for each",
    )  # fmt: skip
    group.add_argument(
        "--share_bits", type=int, default=0, metavar="N", help="share at most 2^N weights in each layer; 0: none"
    )
    return parser


def layer_rows(layers: Sequence[PrunedWeight]) -> list[dict[str, Any]]:
    """Count what was removed of every layer's weights."""
    return [
        {
            "layer": layer.name.removesuffix(".weight"),
            "weights": layer.weight.numel(),
            "kept": layer.weight.numel() - int(layer.removed.sum()),
            "removed_percent": 100 * layer.removed.double().mean().item(),
            "threshold": layer.threshold,
        }
        for layer in layers
    ]


def summarise(model: nn.Module, layers: Sequence[PrunedWeight]) -> dict[str, Any]:
    """Count what was removed of the whole network's parameters, biases and BatchNorm included."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    removed = sum(int(layer.removed.sum()) for layer in layers)
    return {"parameters": parameters, "removed": removed, "removed_percent": 100 * removed / parameters}


def table(report: Mapping[str, Any]) -> str:
    """Lay out one compressed net: a line for each layer, one for all of its parameters, and the accuracies."""
    width = max(len(row["layer"]) for row in report["layers"]) + 2
    whole = {"layer": "all parameters", "weights": report["parameters"], "removed_percent": report["removed_percent"]}
    whole["kept"] = report["parameters"] - report["removed"]
    lines = [f"{'layer':<{width}}{'weights':>13}{'kept':>13}{'removed, %':>12}"]
    for row in [*report["layers"], whole]:
        lines.append(
            f"{row['layer']:<{width}}{row['weights']:>13,}{row['kept']:>13,}{row['removed_percent']:>12.2f}"
        )
    lines.append("accuracy, %: " + ", ".join(f"{stage} {a:.2f}" for stage, a in report["accuracy_percent"].items()))
    return "\n".join(lines)
