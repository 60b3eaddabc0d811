"""Results laid out as text, for reading."""

from typing import Any


def variance_table(report: dict[str, Any]) -> str:
    """Lay the variances out for reading, each with its share of the target's."""
    total = report["var"]["target"]
    titles = {"target": "x*", "output": "g(x)", "residual": "x_Δ = x* - g(x)"}
    lines = [f"{'component':<18}{'variance':>14}{'share of x*':>14}"]
    for name, value in report["var"].items():
        title = titles.get(name, name.replace("order", "x(") + ")")
        share = f"{100 * value / total:.2f} %" if total > 0 else "-"
        lines.append(f"{title:<18}{value:>14.6g}{share:>14}")
    instability = "undefined: x* is constant" if report["instability"] is None else f"{report['instability']:.4f}"
    return "\n".join([*lines, f"instability Var(x_Δ)/Var(x*) = {instability}"])
