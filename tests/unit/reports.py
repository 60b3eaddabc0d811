"""What Variance.py and Calibrate.py write as JSON, small and by hand, and a folder of it."""

import json

NETS = {
    "arch_a": "alexnet",
    "layer_a": "features.8",
    "arch_b": "resnet34",
    "layer_b": "layer3.5.add",
}
SOURCE = {
    "dataset": "digits",
    "split": "val",
    "checkpoint_a": "a" * 64,
    "checkpoint_b": "b" * 64,
} | NETS


def interval(value, low, high):
    return {
        "value": value,
        "low": low,
        "high": high,
        "confidence": 0.95,
        "resamples": 1000,
        "resampled": ["images"],
        "fits_fixed": True,
        "reason": "" if value is not None else "null and ceiling are the same",
    }


VARIANCE = {
    "images": 1355,
    "mean": "channel",
    "var": {"target": 8.0, "order0": 7.5, "residual": 0.25},
    "instability": 0.03125,
    "intervals": {
        "instability": interval(0.03125, 0.03, 0.04),
        "share_order0": interval(0.9375, 0.9, 0.95),
        "var_residual": interval(0.25, 0.2, 0.3),
    },
    "spectrum": [
        {"layers": 1, "r2": 0.9, "gain": 0.9, "intervals": {"gain": interval(0.9, 0.85, 0.95)}},
        {"layers": 2, "r2": 0.96875, "gain": 0.06875},
    ],
    "classes": [
        {
            "class": "<7>",
            "images": 3,
            "variance": 4.0,
            "instability": 0.25,
            "low": 0.125,
            "high": 0.5,
        }
    ],
    "channels": [
        {"channel": c, "variance": c / 8, "instability": None, "low": None, "high": None}
        for c in range(12)
    ],
    "source": SOURCE | {"transnet": "c" * 64, "p": [0.5, 0.25]},
    "settings": {"epochs": 10, "standardise": True, "alpha": [0.1, 0.1], "suffix": None},
    "linear_reference": {"instability": 0.0625, "ridge": 0.001, "measured_on": "held-out images"},
}
CALIBRATION = {
    "rows": [
        {"pairs": "this Trans-Net", "linear_reference": 0.0625} | interval(0.03125, 0.03, 0.04),
        {"pairs": "null: g untrained", "linear_reference": None} | interval(1.5, 1.25, 1.75),
    ],
    "consistency": interval(0.8125, 0.75, 0.875),
    "linear": {
        "permutations": 200,
        "p": 1 / 201,
        "zero": 0.46,
        "above_zero": 0.75,
        "instability": interval(0.0625, 0.06, 0.07),
        "consistency": interval(None, None, None),
    },
    "baselines": [{"name": "CKA", "value": None, "kind": "similarity", "reason": "x is constant"}],
    "notes": ["net B is at chance"],
    "epochs": 0,
    "images": 1355,
    "transnet": "c" * 64,
    "source": (
        SOURCE | {"classes": ["0", "1"], "transform": {"image_size": 64, "mean": [0.5, 0.25]}}
    ),
}


def write_run(folder, variance=VARIANCE, calibration=CALIBRATION):
    """Write both and a picture of one pixel."""
    folder.mkdir(exist_ok=True)
    (folder / "variance.json").write_text(json.dumps(variance))
    (folder / "calibration.json").write_text(json.dumps(calibration))
    (folder / "components.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
    )
    (folder / "metrics.csv").write_text("not of the page")
    return folder
