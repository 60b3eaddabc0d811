"""The page of a comparison: its answer follows from its numbers,
its charts have words that stand for them, and it is checked as a run's page is.
"""

import base64
import copy
import json
import re
from xml.etree import ElementTree

import pytest
import torch

from consistency.compared_distinctions import directions_entry, distinctions_entry
from consistency.missing_part import carry
from tests.mistakes import refused
from tests.unit import planted_comparison as planted
from tests.unit.reports import write_run
from utils.report import compare_charts, compare_page, page
from utils.report.compare_charts import charts
from utils.report.compare_page import render_compare
from utils.report.compare_words import Ends, answer, pair_label
from utils.report.results import Result, Value

FULL = planted.comparison()


def as_text(cell):
    """What is read of a cell."""
    if isinstance(cell, str):
        return cell
    return cell.text if isinstance(cell, Value) else "".join(map(as_text, cell))


def sentences(report):
    found = answer(Result("compare.json", "compare", report))
    assert all(sentence.limit for sentence in found)
    return [as_text(sentence.text) for sentence in found]


def test_the_answer_begins_with_the_deepest_pair_and_has_its_intervals():
    first, depth, bits, answers = sentences(FULL)
    assert first.startswith("ResNet-20 has 0.56 [0.55, 0.58] of what ResNet-56 computes at")
    assert "end of stage 3" in first and "ResNet-56 has 0.74 [0.73, 0.75]" in first
    assert "ResNet-56 has more of ResNet-20 than" in first
    assert "stage 1, 0.92 [0.91, 0.93]" in depth and "stage 3, 0.56 [0.55, 0.58]" in depth
    assert "2.90 [2.87, 2.93] of 3.20 bits" in bits
    assert bits.index("cat (0.71 [") < bits.index("dog (0.58 [")
    assert "91.4 [90.4, 92.4] %" in answers and "ResNet-56 is right more often" in answers


def test_no_order_is_claimed_of_numbers_whose_intervals_overlap():
    report = copy.deepcopy(FULL)
    for entry in report["pairs"]:
        entry["forth"]["consistency"] = planted.interval(0.70, 0.02)
        entry["back"]["consistency"] = planted.interval(0.71, 0.02)
        entry["shared"] = planted.interval(0.70 + entry["a"]["stage"] / 1000, 0.02)
    report["answers"]["mcnemar_p"] = 0.4
    first, depth, _, answers = sentences(report)
    assert "do not tell the two ways apart" in first and "more of" not in first
    assert "do not tell them apart" in depth and "most is shared" not in depth
    assert "is not told" in answers and "is right more often (" not in answers


@pytest.mark.parametrize("weights", ["equal", "equal but for rounding"])
def test_equal_weights_are_the_first_sentence(weights):
    report = planted.equal(FULL) | {"weights": weights}
    assert "nothing changed" in sentences(report)[0]
    assert not any("nothing changed" in sentence for sentence in sentences(FULL))


def test_an_untrained_net_and_an_interval_that_holds_zero_are_told():
    remark, first, *others = sentences(planted.untrained(FULL))
    assert remark.startswith("ResNet-56 seems untrained")
    assert "not told from 0" in first
    assert not any("least known" in sentence for sentence in others)


def test_of_answers_that_say_nothing_no_class_is_least_known():
    report = copy.deepcopy(FULL)
    knowledge = report["pairs"][-1]["forth"]["knowledge"]
    knowledge["bits"] = planted.interval(0.004, 0.001)
    knowledge["share"] = planted.interval(None, reason="hardly depend on the image")
    (told,) = [of for of in sentences(report) if "bits" in of]
    assert "0.00 [" in told and "hardly depend" in told and "least known" not in told


def test_without_nulls_no_share_of_knowledge_is_claimed():
    report = planted.quick(FULL)
    (first, *_) = answer(Result("compare.json", "compare", report))
    assert "leaves 0.310 [0.306, 0.314]" in as_text(first.text) and " has 0" not in as_text(
        first.text
    )
    assert "class alone would leave 0.604" in as_text(first.text)
    assert first.limit.startswith("Nulls were left out")


def test_without_classes_nothing_is_said_of_a_class(tmp_path):
    report = planted.without_classes(FULL)
    assert not any("class" in sentence for sentence in sentences(report))
    assert "the folder has no classes" in render_compare(report, tmp_path)


def test_pairs_are_named_by_stage_or_by_layers():
    report = copy.deepcopy(FULL)
    report["pairs"][0]["a"]["stage"] = None
    report["pairs"][1]["a"]["stage"] = report["pairs"][1]["b"]["stage"] = None
    result = Result("compare.json", "compare", report)
    labels = [pair_label(result, row) for row in range(3)]
    assert labels == ["layer1.2.relu2 → stage 1", "layer2.2.relu2 → layer2.8.relu2", "stage 3"]


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [((0.5, 0.4, 0.6), (0.7, 0.6, 0.8), True), ((0.5, 0.4, 0.6), (0.7, 0.61, 0.8), False)],
)
def test_intervals_overlap_where_they_touch(one, other, overlap):
    assert Ends(*one).overlaps(Ends(*other)) is Ends(*other).overlaps(Ends(*one)) is overlap


def drawn(report):
    return charts(Result("compare.json", "compare", report))


def test_charts_are_svg_with_words_that_stand_for_them():
    found = drawn(FULL)
    assert len({chart.title for chart in found}) == len(found) == 5
    for chart in found:
        head, body = chart.uri.split(",")
        assert head == "data:image/svg+xml;base64"
        svg = base64.b64decode(body).decode()
        ElementTree.fromstring(svg)
        assert "prefers-color-scheme:dark" in svg and "#1b1f24" in svg.split("</style>")[0]
        assert "#1b1f24" not in svg.split("</style>", 1)[1]
        assert len(chart.alternative) > 60 and chart.caption
    assert "0.56 at stage 3" in found[0].alternative
    assert "conv1 with conv1 (0.93)" in found[2].alternative
    assert "1: 69.0 %, 2: 75.2 %, 3: 77.1 %" in found[3].alternative
    assert "cat 0.71, dog 0.58" in found[4].alternative


def test_nothing_is_drawn_of_what_a_report_lacks():
    assert len(drawn(planted.quick(FULL))) == 1
    assert len(drawn(planted.untrained(FULL))) == 3
    assert drawn(FULL | {"pairs": [], "matrix": None}) == []


def test_trans_nets_stand_beside_the_linear_layers(tmp_path):
    report = planted.with_trans_nets(FULL, state="not at its end")
    _, told, *_ = sentences(report)
    assert "Trans-Nets of 3 layers carry ResNet-20 → ResNet-56 0.61 [0.60, 0.63]" in told
    assert "ResNet-56 → ResNet-20 0.79 [0.78, 0.80]" in told
    assert "+0.030 [+0.028, +0.032] and +0.030" in told
    assert "ResNet-20 → ResNet-56: not at its end" in told and told.count("at its end") == 1
    assert "longer fit" not in sentences(planted.with_trans_nets(FULL))[1]
    made = render_compare(report, tmp_path)
    assert "64 spare channels, 800 steps, not at its end" in made
    first, *_ = drawn(report)
    assert "ResNet-20 has of ResNet-56, Trans-Net: 0.97 at stage 1" in first.alternative
    assert not any("Trans-Net:" in chart.alternative for chart in drawn(FULL))


def test_axes_stay_where_intervals_of_few_images_do_not(monkeypatch):
    figures = []
    monkeypatch.setattr(
        compare_charts, "as_uri", lambda figure: figures.append(figure) or "data:image/svg+xml,"
    )
    found = drawn(planted.few_images(FULL))
    axes = [figure.axes[0] for figure in figures]
    shared, left, matrix, spectrum, classes = axes
    for axis, low, high in ((shared, -0.53, 1.53), (left, 0, 2.11), (spectrum, -50, 101)):
        assert low <= axis.get_ylim()[0] and axis.get_ylim()[1] <= high
    assert classes.get_xlim()[1] < 2.3
    assert matrix.collections[0].norm.vmin == -0.5
    arrows = [{line.get_marker() for line in axis.lines} for axis in axes]
    assert {"v", "^"} <= arrows[0] | arrows[1] and "v" in arrows[3] and ">" in arrows[4]
    # Words have the numbers as they are, and the captions say what an arrow is.
    assert "-4.40 at stage 3" in found[0].alternative
    assert [("arrow" in chart.caption) for chart in found] == [True, True, False, True, True]
    assert not any("arrow" in chart.caption for chart in drawn(FULL))


def test_what_is_below_zero_is_nothing_and_has_its_number():
    first, *_ = sentences(planted.few_images(FULL))
    assert "has nothing (-4.40 [-9.40, 0.60]) of what" in first and "not told from 0" in first


def test_many_layers_and_classes_are_drawn_and_fit_on_a_page(tmp_path):
    report = copy.deepcopy(FULL)
    report["matrix"] = {
        "rows": [f"features.denseblock{n}.denselayer{n}.conv2" for n in range(54)],
        "columns": [f"block.{n}" for n in range(54)],
        "shared": [[1 / (1 + abs(row - column)) for column in range(54)] for row in range(54)],
    }
    report["pairs"] = [copy.deepcopy(FULL["pairs"][n % 3]) for n in range(54)]
    per_class = FULL["pairs"][2]["forth"]["knowledge"]["per_class"]
    report["pairs"][-1]["forth"]["knowledge"]["per_class"] = 100 * per_class
    made = render_compare(report, tmp_path)
    assert "20 worst of 1000 classes" in made and 'class="wide"' in made


def test_every_number_is_on_the_page_with_its_place_and_the_page_is_checked(tmp_path):
    folder = planted.write_comparison(tmp_path / "out", FULL)
    made = page.render(folder)
    assert made == render_compare(json.loads((folder / "compare.json").read_text()), folder)
    found = page.values(made)
    assert Value("compare.json: pairs.2.forth.consistency.value", "0.565", "0.56") in found
    assert Value("compare.json: nets.0.sha256", "a" * 64, "a" * 64) in found
    assert not re.search(r"<script [^>]*src|<link|@import|url\(http", made)
    page.check(made, page.render(folder))
    changed = made.replace('"0.565">', '"0.575">', 1)
    with refused("compare.json", "pairs.2.forth.consistency.value", "0.575", "0.565"):
        page.check(changed, made)
    with refused("matplotlib 0."):
        page.check(made.replace('content="matplotlib ', 'content="matplotlib 0.'), made)
    other = copy.deepcopy(FULL)
    other["nets"][1]["sha256"] = "d" * 64
    planted.write_comparison(tmp_path / "other", other)
    with refused("compare.json", "nets.1.sha256", "d" * 12, "b" * 12):
        page.check(page.render(tmp_path / "other"), made)


def test_a_comparison_beside_other_results_is_refused(tmp_path):
    write_run(planted.write_comparison(tmp_path, FULL))
    with refused("compare.json", "variance.json", "calibration.json"):
        page.render(tmp_path)


def test_pictures_are_embedded_with_their_texts_and_a_lost_one_is_named(tmp_path):
    picture = {"file": "parts.svg", "caption": "Best <channels>", "alternative": "Two maps"}
    report = FULL | {"pictures": [picture]}
    folder = planted.write_comparison(tmp_path, report)
    with refused("compare.json", "parts.svg"):
        page.render(folder)
    (folder / "parts.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (folder / "other.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    made = page.render(folder)
    assert 'alt="Two maps"' in made and "Best &lt;channels&gt;" in made and "other.svg" not in made


def test_a_picture_that_has_no_room_is_named_and_the_page_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_page, "PICTURE_BYTES", 200)
    names = ("small.svg", "large.svg", "third.svg")
    pictures = [{"file": name, "caption": f"of {name}", "alternative": name} for name in names]
    small = '<svg xmlns="http://www.w3.org/2000/svg"/>'
    for name, text in zip(names, (small, small.replace("/>", " " * 300 + "/>"), small)):
        (tmp_path / name).write_text(text)
    made = render_compare(FULL | {"pictures": pictures}, tmp_path)
    assert 'alt="small.svg"' in made and 'alt="third.svg"' in made
    assert 'alt="large.svg"' not in made and "of large.svg" in made and "no room" in made


def test_a_gate_stands_before_the_answer(tmp_path):
    gate = {
        "verdict": "knowledge lost",
        "exit_code": 3,
        "reasons": ["At stage 3, <0.02> is lost."],
        "checks": [
            {
                "name": "retained",
                "where": "stage 3",
                "value": planted.interval(0.9),
                "threshold": 0.98,
                "verdict": "knowledge lost",
            }
        ],
        "policy": {"retained": 0.98},
    }
    made = render_compare(FULL | {"gate": gate}, tmp_path)
    assert made.index("knowledge lost") < made.index("The answer")
    assert "&lt;0.02&gt;" in made and "0.9000 [0.8880, 0.9120]" in re.sub("<[^>]+>", "", made)


@pytest.mark.parametrize("path", [("nets", 0, "name"), ("pairs", 0, "a")])
def test_a_report_that_was_changed_is_refused(tmp_path, path):
    report = copy.deepcopy(FULL)
    del report[path[0]][path[1]][path[2]]
    with refused("compare.json"):
        render_compare(report, tmp_path)


def with_distinctions(references=0, merged=(3, 5)):
    """The planted comparison, whose A does not tell two classes apart."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(200) % 10
    z = 6 * torch.eye(10)[classes] + torch.randn(200, 10, generator=generator)
    senders = [z + 0.5 * torch.randn(200, 10, generator=generator) for _ in range(1 + references)]
    if merged:
        senders[0][:, merged] = senders[0][:, merged].mean(1, keepdim=True)
    paths = [f"photos/{number}.png" for number in range(200)]
    options = {"references": senders[1:], "logits_a": senders[0], "resamples": 50}
    entry = distinctions_entry(
        z, senders[0], classes, "classes", classes=planted.CLASSES, paths=paths, **options
    )
    target, output = (of[:, :, None, None].float().expand(-1, -1, 2, 2) for of in (z, senders[0]))
    carried = carry(lambda maps: maps.mean((2, 3)), target, output)
    entry["directions"] = directions_entry(carried, range(200), paths)
    report = copy.deepcopy(FULL)
    report["pairs"][-1]["forth"]["distinctions"] = entry
    return report


def test_the_least_shared_distinction_is_a_rank_without_references(tmp_path):
    report = with_distinctions()
    *_, told, _ = sentences(report)
    assert told.startswith("Least shared distinctions: cat from dog (1.00") and "a rank" in told
    html = render_compare(report, tmp_path)
    assert "cat and dog" in html and "Images most lost" in html
    assert "Images that both nets answer differently" in html
    exciting = report["pairs"][-1]["forth"]["distinctions"]["directions"]["shown"][0]["most"][0]
    assert exciting["path"] in html
    worst = report["pairs"][-1]["forth"]["distinctions"]["most_lost"][0]["path"]
    assert worst in html
    (chart,) = [
        of for of in charts(Result("compare.json", "compare", report)) if "told apart" in of.title
    ]
    assert "most lost cat and dog 1.00" in chart.alternative


def test_references_turn_a_rank_into_a_finding_or_into_none(tmp_path):
    *_, told, _ = sentences(with_distinctions(references=3))
    assert told.startswith("ResNet-56 tells cat from dog (1.00")
    assert "apart in a way that ResNet-20 does not" in told and "rank" not in told
    *_, told, _ = sentences(with_distinctions(references=3, merged=()))
    assert told.startswith("ResNet-56 is shown to tell no pair of classes apart")
    assert "not called" in render_compare(with_distinctions(references=3, merged=()), tmp_path)


def test_a_direction_without_references_stays_a_rank_beside_calls(tmp_path):
    report = with_distinctions(references=3)
    back = with_distinctions()["pairs"][-1]["forth"]["distinctions"]
    report["pairs"][-1]["back"]["distinctions"] = back
    *_, told, _ = sentences(report)
    called, rank = told.split(". Least shared")
    assert "ResNet-56 tells cat from dog" in called and "ResNet-56 to ResNet-20" in rank
    assert "no finding without reference nets" in rank
