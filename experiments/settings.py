"""Which settings of a run's files are not the paper's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Recorded options that a caption names where they are not the paper's.
RECORDED = {
    "batch_size": "batch size",
    "optim": "optimiser",
    "lr": "first rate",
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "alpha": "alpha",
}
# That a Variance.py file names
NETS = (("net_in", "path_a"), ("net_tar", "path_b"), ("transnet", "transnet_path"))
Facts = Mapping[str, Any]


def settings(facts: Facts) -> Iterator[tuple[str, float | str]]:
    """Name what a file says of how its numbers were made."""
    for net in (
        facts[name] for name, _ in NETS if isinstance(facts.get(name), Mapping)
    ):  # Calibrate.py names a hash so
        yield from settings(net)
    recorded, data = facts.get("settings", {}), facts.get("data")
    # What kind of file it is shows in what it records: only tails have an --input.
    if "input" in recorded:
        of = "tails"
    elif "trans_net" in facts or "source" in facts:  # or what was measured of one
        of = "Trans-Nets"
    else:
        of = f"nets on {data['dataset']}" if data else "nets"
    if "s_conv" not in recorded:  # the paper does not say how compressed nets are trained again
        if "epoch" in facts:
            yield f"epochs of {of}", facts["epoch"]
            if of in ("Trans-Nets", "tails"):  # whose rates fall from epoch to epoch
                yield f"last rate of {of}", facts["lr"]
        for option, title in RECORDED.items():
            if option in recorded:
                value = recorded[option]
                yield (
                    f"{title} of {of}",
                    value if isinstance(value, int | float | str) else str(value),
                )
    if data:
        yield f"classes of {data['dataset']}", len(data["classes"])
        yield "pixels to a side", data["image_size"]


def differences(used: Sequence[Facts], expected: Mapping[str, float | str]) -> list[str]:
    """Say in a line which settings are not the paper's."""
    ours: dict[str, set[float | str]] = {}
    for facts in used:
        for name, value in settings(facts):
            ours.setdefault(name, set()).add(value)
    parts = []
    for name, values in sorted(ours.items()):
        theirs = expected.get(name)
        if not all(agree(value, theirs) for value in values):
            ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
            listed = ", ".join(
                value if isinstance(value, str) else f"{value:g}" for value in ordered
            )
            parts.append(f"{name} {listed}" + ("" if theirs is None else f" ({theirs})"))
    return (
        [f"Settings that differ from the paper's (in brackets): {'; '.join(parts)}."]
        if parts
        else []
    )


def agree(value: float | str, theirs: float | str | None) -> bool:
    """Compare a setting with the paper's, numbers up to rounding;
    with what the paper does not say nothing agrees.
    """
    if isinstance(value, int | float) and isinstance(theirs, int | float):
        return abs(value - theirs) <= 1e-6 * abs(theirs)
    return value == theirs
