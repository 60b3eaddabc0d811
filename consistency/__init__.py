"""The science: what two nets share, how B uses it, and what a number is worth.

From Python, on arrays and loaders:

    import consistency

    x = consistency.features(net_a, "layer3", loader)        # (N, C, H, W)
    target = consistency.features(net_b, "layer3", loader)
    trans_net = consistency.fit(x, target)
    print(consistency.variances(trans_net, held_out_x, held_out_target))

`consistency.library` describes these functions. They are loaded when they are first asked for, and
PyTorch with them.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consistency.library import (
        Calibration,
        Comparison,
        Distinctions,
        Variances,
        calibrate,
        compare,
        distinctions,
        features,
        fit,
        kept_knowledge,
        similarities,
        variances,
    )

__all__ = [
    "Calibration",
    "Comparison",
    "Distinctions",
    "Variances",
    "calibrate",
    "compare",
    "distinctions",
    "features",
    "fit",
    "kept_knowledge",
    "similarities",
    "variances",
]

_ROOT = Path(__file__).resolve().parents[1]


def _check_neighbours() -> None:
    """Refuse a folder or file of the user's that hides a package which this one is built on.

    Raises:
        ImportError: `models` or `utils` is another package than ours.
    """
    for name in ("models", "utils"):
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve() if spec and spec.origin else None
        if place != _ROOT / name / "__init__.py":
            raise ImportError(
                f"consistency needs its package `{name}` in {_ROOT}, but Python finds"
                f" {place or 'none'} first: start Python in another folder, or rename yours"
            )


_check_neighbours()


def __getattr__(name: str) -> Any:
    """Load the library when one of its names is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("consistency.library"), name)


def __dir__() -> list[str]:
    """List what `import consistency` offers."""
    return sorted({*globals(), *__all__})
