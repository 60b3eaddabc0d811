"""What Compare.py writes, planted: two nets of CIFAR-10 at three stages, and the hard cases."""

import copy
import json

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def interval(value, reach=0.012, reason=""):
    record = {"value": value, "low": None, "high": None, "confidence": 0.95}
    record |= {"method": "percentile", "resamples": 1000, "resampled": ["images"]}
    if value is not None:
        record |= {"low": value - reach, "high": value + reach}
    return record | {"fits_fixed": True, "reason": reason}


def direction(consistency, instability, knowledge=None, spectrum=None):
    """One way, whose null is above its instability by what the consistency says."""
    null = instability + consistency * 0.6
    return {
        "consistency": interval(consistency),
        "instability": interval(instability, 0.004),
        "null": interval(null, 0.005),
        "ceiling": interval(null - 0.6, 0.002),
        "floor": 0.93 * null,
        "between": 0.31,
        "within": 0.69,
        "fit": {"family": "linear", "layers": 1, "hidden": 0, "steps": 0, "ridge": 1e-3},
        "spectrum": spectrum,
        "knowledge": knowledge,
    }


def known(bits, kept):
    lost = [0.21, 0.12, 0.44, 0.71, 0.38, 0.58, 0.24, 0.29, 0.17, 0.18]
    return {
        "bits": interval(bits, 0.01),
        "kept_bits": interval(kept, 0.03),
        "share": interval(kept / bits, 0.01),
        "rho": interval(0.62, 0.03),
        "p": 0.001,
        "agreement": interval(0.881, 0.011),
        "decision_recovery": interval(0.02, 0.015),
        "penultimate_r2": interval(0.74, 0.02),
        "per_class": [
            {"class": name, "lost_bits": interval(value, 0.09)}
            for name, value in zip(CLASSES, lost)
        ],
    }


def spectrum(*r2):
    rows, before = [], 0.0
    for layers, value in enumerate(r2, 1):
        intervals = {"r2": interval(value, 0.008), "gain": interval(value - before, 0.002)}
        rows.append({"layers": layers, "r2": value, "gain": value - before, "intervals": intervals})
        before = value
    return rows


def similarities(value):
    names = ("CKA", "SVCCA", "Procrustes", "mutual 10-NN", "ridge R², smaller way")
    return [
        {
            "name": name,
            "value": value - 0.07 * number,
            "level": 0.3 - 0.05 * number,
            "calibrated": (value - 0.3 - 0.02 * number) / (0.7 + 0.05 * number),
            "p": 1 / 201,
            "reason": "",
        }
        for number, name in enumerate(names)
    ]


def pair(stage, depth, forth, back):
    unexplained = [0.31, 0.28, 0.47, 0.62, 0.44, 0.59, 0.36, 0.38, 0.27, 0.29]
    return {
        "a": {"layer": f"layer{stage}.2.relu2", "stage": stage, "shape": [64], "depth": depth},
        "b": {"layer": f"layer{stage}.8.relu2", "stage": stage, "shape": [64], "depth": depth},
        "forth": forth,
        "back": back,
        "shared": interval(min(forth["consistency"]["value"], back["consistency"]["value"])),
        "similarities": similarities(0.95 - 0.2 * depth),
        "per_class": [
            {
                "class": name,
                "forth_unexplained": interval(value, 0.03),
                "back_unexplained": interval(0.8 * value, 0.03),
            }
            for name, value in zip(CLASSES, unexplained)
        ],
    }


def net(label, name, arch, parameters, top1):
    return {
        "label": label,
        "name": name,
        "checkpoint": f"zoo/{arch}.pth",
        "sha256": label.lower() * 64,
        "arch": arch,
        "parameters": parameters,
        "top1_percent": interval(top1, 0.9),
        "normalisation": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "remarks": [],
    }


def comparison():
    """Two trained nets, everything measured."""
    rows = ["conv1", "layer1.2", "layer2.2", "layer3.2"]
    columns = ["conv1", "layer1.8", "layer2.8", "layer3.8", "fc"]
    shared = [
        [max(0.02, 0.93 - 0.22 * abs(row - column) - 0.06 * column) for column in range(5)]
        for row in range(4)
    ]
    return {
        "kind": "compare",
        "command": "python Compare.py zoo/resnet20.pth zoo/resnet56.pth --images CIFAR10_mini",
        "created": "2026-11-29 12:00:00",
        "versions": {"python": "3.11.7", "torch": "2.9.0", "torchvision": "0.24.0", "project": "2"},
        "nets": [
            net("A", "ResNet-20", "resnet20", 272474, 92.1),
            net("B", "ResNet-56", "resnet56", 855770, 93.9),
        ],
        "images": {
            "folder": "CIFAR10_mini",
            "fitted": 5000,
            "held_out": 3000,
            "classes": CLASSES,
            "per_class_min": 300,
            "notes": [],
        },
        "weights": "different",
        "pairs": [
            pair(1, 0.3, direction(0.92, 0.06), direction(0.95, 0.04)),
            pair(2, 0.7, direction(0.78, 0.16), direction(0.84, 0.12)),
            pair(
                *(3, 1.0),
                direction(0.565, 0.31, known(3.2, 2.9), spectrum(0.69, 0.752, 0.771)),
                direction(0.74, 0.19, known(3.1, 2.95), spectrum(0.81, 0.846, 0.851)),
            ),
        ],
        "matrix": {
            "rows": rows,
            "columns": columns,
            "shared": shared,
            "forth": shared,
            "back": None,
            "cka": None,
        },
        "answers": {
            "agreement": interval(0.914, 0.01),
            "negative_flips": interval(0.028, 0.006),
            "positive_flips": interval(0.046, 0.007),
            "mcnemar_p": 0.00032,
            "per_class": [
                {"class": name, "negative_flips": interval(0.03, 0.02)} for name in CLASSES
            ],
        },
        "pictures": [],
        "parts": [
            {"name": "features of both nets", "seconds": 31.2, "cached": False},
            {"name": "fits and nulls", "seconds": 44.0, "cached": False},
        ],
        "gate": None,
        "atlas": None,
    }


def with_trans_nets(report, state="at its end"):
    """Solved Trans-Nets of three layers beside every linear layer; B → A is at its end."""
    report = copy.deepcopy(report)
    for entry in report["pairs"]:
        for way, of_way in (("forth", state), ("back", "at its end")):
            linear = entry[way]["instability"]["value"]
            deep = direction(entry[way]["consistency"]["value"] + 0.05, linear - 0.03)
            record = {"state": of_way, "linear": {"taken": False}, "trials": []}
            deep["fit"] = {"family": "Trans-Net", "layers": 3, "hidden": 64, "steps": 800}
            deep["fit"] |= {"ridge": 1e-3, "record": record}
            entry[way]["trans_net"] = deep
            rows = spectrum(1 - linear, 1 - linear + 0.03)
            rows[1]["layers"] = 3
            entry[way]["spectrum"] = rows
        entry["shared_by_trans_nets"] = interval(entry["shared"]["value"] + 0.05)
    return report


def few_images(report):
    """Intervals of a few images, whose ends are far beyond every axis."""
    report = copy.deepcopy(report)
    for entry in report["pairs"]:
        entry["back"]["consistency"] = interval(-4.4, 5.0)
        entry["back"]["instability"] = interval(3.1, 9.0)
        entry["forth"]["knowledge"] = None
        for of_class in entry["per_class"]:
            of_class["forth_unexplained"] = interval(2.5, 30.0)
    report["pairs"][-1]["forth"]["spectrum"][0]["intervals"]["r2"]["low"] = -7.0
    report["matrix"]["shared"][0][0] = -12.0
    return report


def quick(report):
    """Without nulls, answers and tails."""
    report = copy.deepcopy(report)
    report |= {"answers": None, "matrix": None}
    for entry in report["pairs"]:
        entry["shared"] = entry["per_class"] = None
        for way in ("forth", "back"):
            lost = ("null", "ceiling", "consistency", "knowledge", "spectrum")
            entry[way] |= dict.fromkeys(lost)
    return report


def untrained(report):
    """B is untrained; what is shared is not told from nothing."""
    report = copy.deepcopy(report)
    report["nets"][1]["remarks"] = ["seems untrained: its top1 of 9.8 % is chance"]
    report["nets"][1]["top1_percent"] = interval(9.8, 1.1)
    report["answers"] = report["matrix"] = None
    for entry in report["pairs"]:
        for way in ("forth", "back"):
            entry[way] |= {"knowledge": None, "spectrum": None}
            entry[way]["consistency"] = interval(0.004, 0.02)
        entry["shared"] = interval(0.003, 0.02)
    return report


def equal(report):
    report = copy.deepcopy(report)
    report |= {"weights": "equal"}
    for entry in report["pairs"]:
        for way in ("forth", "back"):
            entry[way]["consistency"] = interval(1.0, 0.0)
        entry["shared"] = interval(1.0, 0.0)
    report["answers"] |= {
        "agreement": interval(1.0, 0.0),
        "negative_flips": interval(0.0, 0.0),
        "positive_flips": interval(0.0, 0.0),
        "mcnemar_p": 1.0,
    }
    return report


def without_classes(report):
    report = copy.deepcopy(report)
    note = "the folder has no classes: what needs classes is left out"
    report["images"] |= {"classes": [], "per_class_min": None, "notes": [note]}
    report["answers"] = None
    for entry in report["pairs"]:
        entry["per_class"] = None
        for way in ("forth", "back"):
            entry[way] |= {"floor": None, "between": None, "within": None, "knowledge": None}
    return report


def write_comparison(folder, report):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "compare.json").write_text(json.dumps(report))
    return folder
