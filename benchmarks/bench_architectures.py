"""Cut networks that others wrote, and hold both halves against the plain network.

    python -m benchmarks.bench_architectures [ARCHITECTURE …] [--results NAME]

60 architectures of timm, every family with layers or attention of its own among them, and all
classifiers of torchvision, or those that are named (`timm:NAME`, or torchvision's NAME). Weights
are random by a seed, and BatchNorms have the statistics of one pass over noise, so that none is an
identity. Each is cut at two of its modules, one in the middle and one late, of all at which it can
be cut. There

    feature   head(images) is held against what a forward hook sees in the plain network,
    logits    tail(head(images)) against the network's own,
    fast      the fast form of the head (folded, channels last) against the plain head,

each by the largest difference over the largest value. What is refused stands in the table with its
line. With --results, NAME.md has it.
"""

import argparse
import gc
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.machine import ran_on
from models.frozen import freeze_for_inference
from models.inputs import TIMM
from models.split import module_cuts, split
from models.untrained import set_statistics
from utils.errors import InputError
from utils.later import timm, torchvision

SMALL = 64  # pixels to a side, where a network takes them
# Small variants of families with layers, norms or attention of their own. Where a network's size is
# an option of its factory, it is made for 64 or 128 pixels; others take only what they were made
# for.
OF_TIMM = (
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "coatnet_nano_rw_224",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "crossvit_tiny_240",
    "cspresnet50",
    "darknet17",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla34",
    "dm_nfnet_f0",
    "dpn48b",
    "eca_botnext26ts_256",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientnet_b0",
    "efficientvit_b0",
    "efficientvit_m0",
    "ese_vovnet19b_dw",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "fbnetc_100",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_100",
    "halonet26t",
    "hardcorenas_a",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_v3",
    "lambda_resnet26t",
    "lcnet_050",
    "levit_128s",
    "maxvit_pico_rw_256",
    "mixer_s32_224",
    "mnasnet_small",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nest_tiny",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnetx_002",
    "regnetz_b16",
    "repvit_m0_9",
    "resnest14d",
    "resnetv2_50",
    "rexnet_100",
    "skresnet18",
    "swin_tiny_patch4_window7_224",
    "volo_d1_224",
    "xcit_nano_12_p16_224",
)


class Row(NamedTuple):
    """What a network gave: its layers,
    the largest of both layers' differences, or the line that refuses it.
    """

    arch: str
    size: int
    seconds: float  # to list the modules at which it can be cut
    layers: str
    feature: float | None
    logits: float | None
    fast: float | None
    reason: str


def build(arch: str) -> tuple[nn.Module, int]:
    """Make a network with random weights and set statistics, and say for which size of images."""
    torch.manual_seed(0)
    for size in (SMALL, 128, None):
        if arch.startswith(TIMM):
            options: dict[str, Any] = {} if size is None else {"img_size": size}
            name = arch.removeprefix(TIMM)
            try:
                net: Any = timm.create_model(name, num_classes=10, **options)
            except TypeError:  # its factory knows no size
                net = timm.create_model(name, num_classes=10)
            except (AssertionError, RuntimeError, ValueError):
                continue
            given = size or net.pretrained_cfg["input_size"][-1]
        else:
            extra = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
            net = torchvision.models.get_model(arch, num_classes=10, **extra)
            given = size or getattr(net, "image_size", 224)
        try:
            with torch.no_grad():
                net.eval()(torch.zeros(1, 3, given, given))
        except (AssertionError, RuntimeError, ValueError):
            continue
        for weight in net.parameters():
            # Else the logits are 0 whatever the tail computes
            if weight.ndim > 1 and not weight.any():
                nn.init.normal_(weight, std=0.02)
        set_statistics(net, [torch.randn(4, 3, given, given)])
        return net, given
    raise InputError("it takes no usual size")


def choose(layers: list[str]) -> list[str]:
    """Choose a module in the middle of the network and a late one before its classifier.

    Raises:
        InputError: there is none at which it can be cut.
    """
    if not layers:
        raise InputError(
            "past every module other values flow: its branches meet at the logits alone"
        )
    return list(dict.fromkeys([layers[len(layers) // 2], layers[len(layers) * 5 // 6]]))


@torch.no_grad()
def measure(arch: str) -> Row:
    """Cut a network at two layers, and hold the halves and the fast form against it."""
    net, size = build(arch)
    images = torch.randn(2, 3, size, size)
    began = time.process_time()
    try:
        layers = choose(module_cuts(net, size))
    except InputError as refusal:
        return Row(arch, size, time.process_time() - began, "", None, None, None, str(refusal))
    seconds = time.process_time() - began
    feature, logits, fast, reason = [], [], [], ""
    for layer in layers:
        seen: list[Tensor] = []
        hook = net.get_submodule(layer).register_forward_hook(
            lambda *given, seen=seen: seen.append(given[2].clone())
        )
        expected = net(images)
        hook.remove()
        head, tail = split(net, layer, size)
        given = head(images)
        # A hook sees (N, H, W, C) where the head gives (N, C, H, W).
        moved = seen[0].permute(0, 3, 1, 2) if head.meta["channels_last"] else seen[0]
        feature.append(differ(given, moved))
        logits.append(differ(tail(given), expected))
        try:
            fast.append(differ(freeze_for_inference(head, torch.device("cpu"))(images), given))
        except Exception as error:  # a fast form that fails is not used
            reason = f"fast form: {type(error).__name__}: {str(error).splitlines()[0]}"
    return Row(
        arch,
        size,
        seconds,
        ", ".join(layers),
        max(feature),
        max(logits),
        max(fast, default=None),
        reason,
    )


def differ(given: Tensor, expected: Tensor) -> float:
    """Give the largest difference over the largest value."""
    if given.shape != expected.shape:
        return float("inf")
    if torch.equal(given, expected):
        return 0.0
    return float((given - expected).abs().max() / expected.abs().max())


def line(row: Row) -> str:
    """Write a row of the Markdown table."""
    numbers = (
        "refused" if value is None else f"{value:.0e}"
        for value in (row.feature, row.logits, row.fast)
    )
    return (
        f"| {row.arch} | {row.size} | {row.layers} | {' | '.join(numbers)} | {row.seconds:.1f} |"
        f" {row.reason} |"
    )


def summary(rows: list[Row]) -> str:
    """Count what is equal, what is refused and what differs."""
    cut = [row for row in rows if row.feature is not None]
    wrong = [row.arch for row in cut if max(row.feature or 0, row.logits or 0) > 1e-4]
    slow = [row.arch for row in cut if row.reason or row.fast is None or row.fast > 1e-4]
    return (
        f"{len(cut)} of {len(rows)} are cut, {len(cut) - len(wrong)} of these equal to 1e-4"
        f"{' (not ' + ', '.join(wrong) + ')' if wrong else ''}; the fast form differs or fails for "
        f"{len(slow)}{' (' + ', '.join(slow) + ')' if slow else ''}; "
        f"listing takes {max(row.seconds for row in rows):.1f} s at most"
    )


def main(argv: list[str] | None = None) -> None:
    """Measure the networks, print their table and keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = "timm, torchvision, or names; default: both libraries"
    parser.add_argument("architectures", nargs="*", help=everything)
    parser.add_argument("--results", help="name of the file under benchmarks/results")
    args = parser.parse_args(argv)
    ran = ran_on(__file__, argv, "torch", "torchvision", "timm")
    libraries = {
        "timm": [f"{TIMM}{name}" for name in OF_TIMM],
        "torchvision": torchvision.models.list_models(module=torchvision.models),
    }
    named = [name for name in args.architectures if name not in libraries]
    if args.architectures:
        chosen = {
            library: names for library, names in libraries.items() if library in args.architectures
        }
        libraries = {**chosen, **({"named": named} if named else {})}
    texts = ["# Networks that others wrote, cut\n"]
    for library, names in libraries.items():
        rows = []
        for name in names:
            rows.append(measure(name))
            gc.collect()
            print(line(rows[-1]), flush=True)
        texts += [
            f"## {library}: {summary(rows)}\n",
            (
                "| architecture | pixels | layers | feature | logits | fast | seconds to list |"
                " reason |"
            ),
            "|---|---:|---|---:|---:|---:|---:|---|",
            *map(line, rows),
            "",
        ]
        print(summary(rows), flush=True)
    if args.results:
        path = Path(__file__).with_name("results") / f"{args.results}.md"
        path.write_text("\n".join([*texts, ran, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
