"""Results laid out as text, for reading, and written as files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.files import is_stream, write_csv, write_json, write_text

LEAST_SHARED = 10  # pairs of classes that are printed
ONE_PAIR = "about these two nets; nets of other seeds may share more or less"


def variance_tables(report: Mapping[str, Any], *, backwards: bool = False) -> str:
    """Lay out all that Variance.py prints.

    That is, of each direction, the variances and what the target's net still knows; and what both
    share.

    Args:
        report: with "back" and "shared" where both directions were measured.
        backwards: the report's own direction is B → A.
    """
    ways, targets = ("B → A", "A → B")[:: 1 if backwards else -1], "AB"[:: 1 if backwards else -1]
    reports = [report, *([report["back"]] if "back" in report else [])]
    lines = list[str]()
    for number, (of, way, target) in enumerate(zip(reports, ways, targets)):
        lines += [""] * bool(number) + [way] * (len(reports) > 1)
        lines += [variance_table(of), knowledge_table(of["still_known"], target)]
        if of.get("distinctions"):
            lines += distinction_lines(of["distinctions"], target)
    lines += [f"note: {note}" for note in report.get("notes", ())]
    if "shared" in report:
        lines += ["", *shared_lines(report["shared"], ways)]
    else:
        lines += ["", f"one direction alone: what both share is the smaller one; {ONE_PAIR}"]
    return "\n".join(lines)


def distinction_lines(distinctions: Mapping[str, Any], net: str) -> list[str]:
    """Lay out the pairs of classes whose gap in a net's logits arrives least.

    Args:
        distinctions: the record of them.
        net: "A" or "B", whose tail answers.
    """
    lines = ["", f"{f'classes that {net} tells apart':<40}{'gap lost':>10}{'95 % interval':>20}"]
    for pair in distinctions["pairs"][:LEAST_SHARED]:
        classes, loss = f"{pair['first']} and {pair['second']}", pair["loss"]
        lines.append(f"{classes:<40}{loss['value']:>10.3f}{interval_text(loss):>20}")
    return lines + [f"note: {note}" for note in distinctions["notes"]]


def shared_lines(shared: Mapping[str, Any], ways: Sequence[str]) -> list[str]:
    """Lay out what both nets share, and of each direction its consistency.

    Args:
        shared: intervals "shared", "forth" and "back", and their "scale".
        ways: what these two are called.
    """

    def words(name: str) -> str:
        interval = shared[name]
        value = "undefined" if interval["value"] is None else f"{interval['value']:.4f}"
        return f"{value}  {interval_text(interval)}".rstrip()

    both = [f"{way} {words(name)}" for way, name in zip(ways, ("forth", "back"))]
    return [
        f"shared, the smaller direction: {words('shared')}",
        f"    {', '.join(both)} ({shared['scale']}); {ONE_PAIR}",
    ]


def variance_table(report: Mapping[str, Any]) -> str:
    """Lay the variances out for reading, each with its share of the target's.

    What they are to be compared with follows.
    """
    total, intervals = report["var"]["target"], report.get("intervals", {})
    lines = [f"{'component':<18}{'variance':>14}{'share of x*':>14}"]
    if intervals:
        lines[0] += f"{'95 % interval':>20}"
    for name, value in report["var"].items():
        share = f"{100 * value / total:.2f} %" if total > 0 else "-"
        between = interval_text(intervals.get(share_of(name)), ".2f", 100)
        lines.append(
            f"{component_title(name):<18}{value:>14.6g}{share:>14}"
            + (f"{between:>20}" if between else "")
        )
    instability, reference = report["instability"], report.get("linear_reference")
    if instability is None:
        lines.append("instability Var(x_Δ)/Var(x*) = undefined: x* is constant")
        return "\n".join(
            [*lines, *(f"doubt: {sentence}" for sentence in report.get("doubts") or ())]
        )
    between = interval_text(intervals.get("instability"))
    lines.append(f"instability Var(x_Δ)/Var(x*) = {instability:.4f}  {between}".rstrip())
    if reference:
        lines.append(
            f"of the linear reference        {reference['instability']:.4f}"
            f" ({reference['measured_on']})"
        )
    lines += [f"fit: {'; '.join(fit_words(report['fitted']))}"] if "fitted" in report else []
    if instability > 1:
        lines.append(
            "above 1: g(x) is further from x* than x*'s own mean is, so this measures a failed fit"
            " (usual causes: too few epochs, a feature that hardly varies, other data or another"
            " scale than it was fitted on)"
        )
    for row in report.get("spectrum", ()):
        between = interval_text(row.get("intervals", {}).get("gain"), "+.4f")
        gain = f"{row['gain']:+.4f} {between}".rstrip()
        depth = f"{row['layers']} layer{'s' * (row['layers'] != 1)}"
        lines.append(f"{depth}: R² {row['r2']:.4f}, {gain} over the depth before")
    if intervals:
        lines.append(f"intervals: {held_fixed(intervals['instability'])}")
    lines += [f"doubt: {sentence}" for sentence in report.get("doubts") or ()]
    return "\n".join(lines)


WORSE = 1.01  # times the linear reference: more than that is no accident of rounding


def fit_words(record: Mapping[str, Any] | None) -> list[str]:
    """Say how far a Trans-Net was fitted.

    That is steps, spare channels, what doublings changed, and whether it is linear.
    """
    if record is None:
        return ["how far it was fitted is not recorded"]
    words = [f"{record['steps']:,} steps, {record['hidden']} spare channels"]
    # What doubling changed of the error, on fitted images that were held out.
    changes = {"the steps": record.get("of_steps"), "the channels": record.get("of_width")}
    tried = [
        f"twice {what} {change:+.4f}" for what, change in changes.items() if change is not None
    ]
    if tried:
        words.append(
            f"{record['state']} ({', '.join(tried)} on images held out; {record['tolerance']:.4f}"
            " is none)"
        )
    elif record["steps"]:
        words.append("whether more change it was not tried (--until converged)")
    if compared := record.get("linear"):
        errors = f"{compared['linear']:.4f}, it {compared['deep']:.4f}"
        of_what = (
            "of the images that judge"
            if compared["unseen"]
            else "by cross-validation of the last layer"
        )
        if compared["taken"]:
            words.append(f"THE LINEAR LAYER TOOK ITS PLACE: it leaves {errors} {of_what}")
        else:
            words.append(f"the linear layer leaves {errors} {of_what}")
    return words


def closing_words(
    record: Mapping[str, Any] | None,
    instability: float | None,
    reference: Mapping[str, Any] | None,
    doubts: Sequence[str] = (),
) -> str:
    """Say how a fit ended.

    Args:
        record: what is recorded of how far it was fitted.
        instability: on held-out images, if there are any.
        reference: what is recorded of the linear reference.
        doubts: sentences about the nets.
    """
    words = [*(f"DOUBTFUL: {sentence}" for sentence in doubts), *fit_words(record)]
    if reference is None:
        return "; ".join([*words, "the linear reference is not known"])
    linear = reference["instability"]
    if instability is None:
        words.append(
            f"linear reference {linear:.4f} by cross-validation; no held-out images to compare"
            " it on"
        )
        return "; ".join(words)
    words.append(
        f"instability {instability:.4f} on held-out images, of the linear reference {linear:.4f}"
    )
    if instability > WORSE * linear:
        words.append(
            "WORSE than one linear layer, so it measures this fit and not the nets: try --solve,"
            " more steps"
        )
    return "; ".join(words)


def variance_rows(report: Mapping[str, Any]) -> list[list[Any]]:
    """Give the same as rows of a CSV file, the head first.

    They have x_Δ of every class and channel, too; there the share is the instability.
    """
    intervals = report.get("intervals", {})
    ends = ("low", "high")
    rows: list[list[Any]] = [
        ["component", "of", "variance", *ends, "share", *(f"share_{end}" for end in ends)]
    ]
    for name, value in report["var"].items():
        share = value / report["var"]["target"] if report["var"]["target"] > 0 else None
        variance_ends, share_ends = (
            [intervals.get(key, {}).get(end) for end in ends]
            for key in (f"var_{name}", share_of(name))
        )
        rows.append([name, "all", value, *variance_ends, share, *share_ends])
    # Then a row for each class and for each channel, of the residual alone.
    for kind in ("class", "channel"):
        for row in report.get("classes" if kind == "class" else "channels", ()):
            residual = None if row["instability"] is None else row["variance"] * row["instability"]
            share = [row["instability"], *(row[end] for end in ends)]
            rows.append(["residual", f"{kind} {row[kind]}", residual, None, None, *share])
    return rows


def component_title(name: str) -> str:
    """Write a component in the paper's symbols: "order1" is "x(1)"."""
    titles = {
        "target": "x*",
        "output": "g(x)",
        "residual": "x_Δ = x* - g(x)",
        "constant": "constant",
    }
    return titles.get(name, name.replace("order", "x(") + ")")


def share_of(name: str) -> str:
    """Name the number that is a component's share of Var(x*)."""
    return "instability" if name == "residual" else f"share_{name}"


def compression_table(report: Mapping[str, Any]) -> str:
    """Lay out one compressed net.

    It has a line for each layer, one for all parameters, and the accuracies.
    """
    width = max(len(row["layer"]) for row in report["layers"]) + 2
    # The last line counts biases and BatchNorms, too, of which nothing is removed.
    whole = {
        "layer": "all parameters",
        "weights": report["parameters"],
        "removed_percent": report["removed_percent"],
    }
    whole["kept"] = report["parameters"] - report["removed"]
    lines = [f"{'layer':<{width}}{'weights':>13}{'kept':>13}{'removed, %':>12}"]
    for row in [*report["layers"], whole]:
        lines.append(
            f"{row['layer']:<{width}}{row['weights']:>13,}{row['kept']:>13,}{row['removed_percent']:>12.2f}"
        )
    lines += [
        f"nothing is left of {row['layer']}: its threshold is too high"
        for row in report["layers"]
        if not row["kept"]
    ]
    lines.append(
        "accuracy, %: "
        + ", ".join(f"{stage} {a:.2f}" for stage, a in report["accuracy_percent"].items())
    )
    return "\n".join(lines)


def sweep_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Lay out a sweep, a line for each compressed net."""
    stages = list(reports[0]["accuracy_percent"])
    lines = [
        "".join(f"{title:>12}" for title in ("s_conv", "s_fc", "removed, %", *stages))
        + "  checkpoint"
    ]
    for report in reports:
        factors = "".join(f"{report['options'][name]:>12g}" for name in ("s_conv", "s_fc"))
        percents = [report["removed_percent"], *report["accuracy_percent"].values()]
        lines.append(
            factors + "".join(f"{value:>12.2f}" for value in percents) + f"  {report['checkpoint']}"
        )
    return "\n".join(lines)


def calibration_table(report: Mapping[str, Any], *, backwards: bool = False) -> str:
    """Lay out a calibration.

    Of each direction it has every kind of pairs with its interval, and the consistency. What both
    share, and other similarities, follow.

    Args:
        report: with "back" and "shared" where both directions were calibrated.
        backwards: the report's own direction is B → A.
    """
    ways = ("B → A", "A → B")[:: 1 if backwards else -1]
    lines = [f"{report['images']:,} held-out images"]
    lines += [f"doubt: {sentence}" for sentence in report.get("doubts") or ()]
    # The direction of --transnet first.
    for way, of in zip(ways, [report, *([report["back"]] if "back" in report else [])]):
        lines += ["", *direction_lines(of, way)]
    if "shared" in report:
        lines += ["", *shared_lines(report["shared"], ways)]
    else:
        lines += ["", f"one direction alone: what both share is the smaller one; {ONE_PAIR}"]
    lines += [""]
    for score in report["baselines"]:
        number = (
            f"undefined: {score['reason']}" if score["value"] is None else f"{score['value']:.4f}"
        )
        lines.append(f"{score['name']:<12}{number:>10}  a {score['kind']}")
    return "\n".join([*lines, *similarity_lines(report.get("similarities", ()))])


def direction_lines(report: Mapping[str, Any], way: str) -> list[str]:
    """Lay out one direction of a calibration.

    Args:
        report: of it.
        way: what it is called.
    """
    lines = [
        f"{f'pairs, {way}':<34}{'instability':>12}{'95 % interval':>20}{'linear':>10}{'steps':>8}{'M':>6}"
    ]
    for row in report["rows"]:
        linear = "" if row["linear_reference"] is None else f"{row['linear_reference']:.4f}"
        steps, hidden = ("" if row.get(key) is None else row[key] for key in ("steps", "hidden"))
        taken = "  the linear layer took its place" if row.get("is_linear") else ""
        lines.append(
            f"{row['pairs']:<34}{row['value']:>12.4f}{interval_text(row):>20}{linear:>10}{steps:>8}{hidden:>6}{taken}"
        )
    consistency = report["consistency"]
    value = "undefined" if consistency["value"] is None else f"{consistency['value']:.4f}"
    lines += [
        "",
        f"normalised consistency (null within the class → ceiling): {value} "
        f" {interval_text(consistency)}",
    ]
    if test := report.get("linear"):
        lines += linear_lines(test)
    lines += [f"note: {note}" for note in report.get("notes", ())]
    if knowledge := report.get("still_known"):
        lines.append(knowledge_table(knowledge, way[-1]))
    return lines


def similarity_lines(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lay out similarities with an image as a row.

    A line has the value, what permuted images reach, and the value above it.
    """
    if not scores:
        return []
    lines = ["", "images as rows, maps pooled to 4 × 4     value  permuted     above         p"]
    for score in scores:
        if score["value"] is None:
            lines.append(f"{score['name']:<36}undefined: {score['reason']}")
            continue
        numbers = (score[name] for name in ("value", "level", "calibrated", "p"))
        cells = ("" if number is None else f"{number:.4f}" for number in numbers)
        lines.append(f"{score['name']:<36}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def knowledge_table(knowledge: Mapping[str, Any], net: str = "B") -> str:
    """Lay out what B still knows.

    Of every sender it has the bits, the share, what is beyond the class, and decisions.

    Args:
        knowledge: of `knowledge_record`.
        net: the net whose answers these are: of the direction B → A it is A.
    """
    rows, notes = knowledge["rows"], [f"note: {note}" for note in knowledge["notes"]]
    if not rows:
        return "\n".join(["", *notes])

    def cell(row: Mapping[str, Any], name: str) -> str:
        value = row[name]["value"] if name in row else None
        return "" if value is None else f"{value:.3f}"

    columns = {
        "bits": "K",
        "calibrated": "K_c",
        "share": "share",
        "beyond": "rho",
        "p": "p",
        "R2": "penultimate_r2",
        "agreement": "agreement",
        "recovery": "decision_recovery",
    }
    bits = cell(rows[0], "I_B")
    lines = ["", f"what {net} still knows: of {bits} bits that its answer says of an image"]
    lines.append(f"{'sender':<34}" + "".join(f"{name:>11}" for name in columns))
    for row in rows:
        test = "" if row["p"] is None else f"{row['p']:.4f}"
        cells = (test if name == "p" else cell(row, name) for name in columns.values())
        sender = f"{net} itself" if row["sender"] == "B itself" else row["sender"]
        lines.append(f"{sender:<34}" + "".join(f"{text:>11}" for text in cells))
    lines.append(
        f"beyond: of what images that {net} answers alike differ in; shown where p is small, never by"
        " agreement"
    )
    if "learned_share" in knowledge:
        share = knowledge["learned_share"]
        share_text = "undefined" if share is None else f"{share:.3f}"
        lines.append(f"learned share, above what an untrained net's g gives: {share_text}")
    return "\n".join([*lines, *notes])


def linear_lines(test: Mapping[str, Any]) -> list[str]:
    """Lay out the linear reference's own calibration and its test."""
    consistency, instability = test["consistency"], test["instability"]["value"]
    value = "undefined" if consistency["value"] is None else f"{consistency['value']:.4f}"
    return [
        f"the same of the linear reference, at one ridge weight:    {value}  {interval_text(consistency)}",
        (
            f"    under {test['permutations']} permutations within the class: p = {test['p']:.4f};"
            f" it leaves {instability:.4f}, 95 % of them more than {test['zero']:.4f}"
        ),
        f"    consistency from that zero on: {test['above_zero']:.4f}",
    ]


def interval_text(
    interval: Mapping[str, Any] | None, number_format: str = ".4f", unit: float = 1.0
) -> str:
    """Write an interval's ends times a unit: "[0.0851, 0.0970]"; nothing where there is none."""
    if interval is None or interval["low"] is None:
        return ""
    return f"[{unit * interval['low']:{number_format}}, {unit * interval['high']:{number_format}}]"


def held_fixed(interval: Mapping[str, Any]) -> str:
    """Say what an interval means, and what it holds fixed.

    "95 %, 1,000 resamples of the images, Trans-Net held as it was fitted"
    """
    fixed = ", the Trans-Net held as it was fitted" if interval["fits_fixed"] else ""
    drawn = " and the ".join(interval["resampled"])
    return (
        f"{100 * interval['confidence']:g} %, {interval['resamples']:,} resamples of the"
        f" {drawn}{fixed}"
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Lay out a table as Markdown.

    The first `texts` columns are words; the others are numbers, to the right.
    """
    rule = "|".join(["---"] * texts + ["---:"] * (len(head) - texts))
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join([first, f"|{rule}|", *others])


def save_table(
    text: str, rows: Iterable[Sequence[Any]], markdown_file: str | None, csv_file: str | None
) -> None:
    """Write a table as Markdown and as CSV where files are named, and say so.

    `rows` has the head first.
    """
    if markdown_file:
        write_text(markdown_file, text)
    if csv_file:
        write_csv(csv_file, rows)
    _say_saved(markdown_file, csv_file)


def save_report(
    report: Mapping[str, Any],
    json_file: str | None,
    csv_file: str | None,
    rows: Iterable[Sequence[Any]],
) -> None:
    """Write a report as JSON and its rows as CSV where files are named, and say so.

    `rows` has the head first.
    """
    if json_file:
        write_json(json_file, report)
    if csv_file:
        write_csv(csv_file, rows)
    _say_saved(json_file, csv_file)


def _say_saved(*files: str | None) -> None:
    for file in files:
        if file and not is_stream(file):
            print(f"saved {file}")
