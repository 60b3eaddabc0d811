import copy
import doctest

import pytest
import torch
from torch import nn

import consistency
from consistency import compared_in_memory
from consistency.compared import equality
from models.layers import matched_by_depth
from tests.mistakes import refused
from utils.kept import Kept

SIZE, CLASSES = 8, 3


def make_net(seed: int, channels: int = 5) -> nn.Module:
    """Two convolutions, of which the second halves the maps, and a layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    ).eval()


@pytest.fixture(scope="module")
def batches():
    """Images whose colour says their class, and noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % CLASSES
    images = torch.randn(240, 3, SIZE, SIZE, generator=generator)
    images[torch.arange(240), labels] += 1
    return list(zip(images.split(60), labels.split(60)))


def compare(net_a, net_b, batches, **options):
    return consistency.compare(net_a, net_b, batches, layers=["1", "3"], resamples=100, **options)


def permuted(net: nn.Module) -> nn.Module:
    """The same net with the first layer's channels in another order."""
    other, order = copy.deepcopy(net), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        other[0].weight.copy_(net[0].weight[order])
        other[0].bias.copy_(net[0].bias[order])
        other[2].weight.copy_(net[2].weight[:, order])
    return other


def test_the_docstring_is_true():
    assert doctest.testmod(compared_in_memory).failed == 0


def test_a_net_shares_all_with_itself(batches):
    report = compare(make_net(0), make_net(0), batches).record
    assert report["weights"] == "equal"
    for pair in report["pairs"]:
        assert pair["shared"]["value"] == pytest.approx(1, abs=1e-5)
        assert pair["forth"]["instability"]["value"] < 1e-5
    assert report["answers"]["agreement"]["value"] == 1
    assert report["answers"]["negative_flips"]["value"] == 0 and report["answers"]["mcnemar_p"] == 1


def test_channels_in_another_order_are_the_same_knowledge(batches):
    net = make_net(0)
    report = compare(net, permuted(net), batches).record
    assert report["weights"] == "different"
    assert [pair["shared"]["value"] for pair in report["pairs"]] == pytest.approx([1, 1], abs=1e-5)
    knowledge = report["pairs"][0]["forth"]["knowledge"]
    assert knowledge["agreement"]["value"] == pytest.approx(1, abs=0.01)
    assert knowledge["share"] is None or knowledge["share"]["value"] in (
        None,
        pytest.approx(1, abs=1e-3),
    )


class Noise(nn.Module):
    """A layer whose values say nothing of the image but are the same every time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(1e4 * x)


def test_what_says_nothing_of_the_other_net_shares_nothing(batches):
    """Hashed pixels are a feature from which no convolution makes another net's."""
    hashed = nn.Sequential(Noise(), *make_net(1))
    report = consistency.compare(
        hashed, make_net(0), batches, layers=["0"], layers_b=["1"], resamples=100
    ).record
    pair = report["pairs"][0]
    assert abs(pair["shared"]["value"]) < 0.1 and pair["forth"]["instability"]["value"] > 0.9


def test_quick_holds_it_against_class_means(batches):
    report = compare(make_net(0), make_net(1), batches, quick=True).record
    pair = report["pairs"][0]
    assert pair["forth"]["null"] is None and pair["forth"]["consistency"] is None
    floor, left = (pair["forth"][name] for name in ("floor", "instability"))
    ways = [1 - pair[way]["instability"]["value"] / pair[way]["floor"] for way in ("forth", "back")]
    assert 0 < left["value"] < floor
    assert pair["shared"]["value"] == pytest.approx(min(ways))
    assert pair["shared_beyond"] == "class means"


def test_permutations_give_a_p_value(batches):
    report = compare(make_net(0), make_net(1), batches, permutations=19).record
    assert report["pairs"][0]["forth"]["p"] == pytest.approx(0.05)


def test_one_class_leaves_out_what_is_within_classes(batches):
    images = [images for images, _ in batches]
    report = compare(make_net(0), make_net(1), images).record
    pair = report["pairs"][0]
    assert pair["per_class"] == [] and pair["forth"]["floor"] is None
    assert 0 < pair["shared"]["value"] <= 1


def test_maps_are_averaged_and_said_to_be(batches):
    report = compare(make_net(0), make_net(1), batches, side=4).record
    first, second = report["pairs"]
    assert (first["a"]["averaged_to"], second["a"]["averaged_to"]) == ([4, 4], None)
    assert first["forth"]["knowledge"] is None and first["notes"]
    assert second["forth"]["knowledge"]["bits"]["value"] >= 0


def test_the_table_has_a_row_for_each_direction(batches, tmp_path):
    report = compare(make_net(0), make_net(1), batches)
    rows = report.rows()
    assert [row["direction"] for row in rows] == ["A → B", "B → A"] * 2
    assert rows[1]["instability"] == report.record["pairs"][0]["back"]["instability"]["value"]
    assert len(report.table()) == 4
    axes = report.figure().axes[0]
    assert len(axes.containers) == 3
    files = {file.name for file in report.save(tmp_path)}
    assert {"compare.json", "compare.csv", "answers.npz"} <= files


def test_layers_by_place_are_as_many(batches):
    with refused("--at", "1", "--at2", "2"):
        consistency.compare(make_net(0), make_net(1), batches, layers=["1"], layers_b=["1", "3"])
    with refused("nowhere", "--list_layers"):
        consistency.compare(make_net(0), make_net(1), batches, layers=["nowhere"])
    with refused("(n, 3, S, S)"):
        consistency.compare(make_net(0), make_net(1), [])


def test_nets_of_other_classes_are_compared_without_their_accuracy(batches):
    other = make_net(1)
    other[6] = nn.Linear(6, 7)
    report = compare(make_net(0), other, batches).record
    assert report["nets"][0]["top1_percent"] and report["nets"][1]["top1_percent"] is None
    assert report["nets"][1]["why_no_accuracy"] and report["answers"] is None
    assert report["pairs"][1]["forth"]["knowledge"]["bits"]


def test_weights_are_equal_up_to_what_rounding_changes():
    state = make_net(0).state_dict()
    halved = {name: value.half().float() for name, value in state.items()}
    moved = {name: value + 0.1 for name, value in state.items()}
    assert equality(state, state) == "equal"
    assert equality(state, halved) == "equal but for rounding"
    assert equality(state, moved) == "different" and equality(state, {}) == "different"


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ([0.3, 1], [0.2, 0.4, 1], [(0, 0), (1, 2)]),
        ([0.2, 0.4, 1], [0.3, 1], [(0, 0), (2, 1)]),
        ([0.8, 0.9, 1], [0.2, 0.5, 0.9, 1], [(0, 1), (1, 2), (2, 3)]),
        ([0.5, 1], [0.5, 1], [(0, 0), (1, 1)]),
    ],
)
def test_stages_match_by_depth_in_order(first, second, pairs):
    assert matched_by_depth(first, second) == pairs


def test_results_are_kept_by_what_they_were_made_of(tmp_path):
    kept, made = Kept(tmp_path), []

    def compute():
        made.append(1)
        return {"value": torch.tensor(len(made))}

    assert (
        int(kept.get("x", [1], compute)["value"]) == int(kept.get("x", [1], compute)["value"]) == 1
    )
    assert int(kept.get("x", [2], compute)["value"]) == 2
    next(tmp_path.glob("x_*")).write_bytes(b"damaged")
    kept.get("x", [1], compute), kept.get("x", [2], compute)
    assert len(made) == 3


class Told(nn.Module):
    """Logits that are the image's mean colour, behind a copy of it that is the only layer."""

    def __init__(self, merged: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(3, CLASSES)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[..., None, None])
            if merged:  # the second and the third colour look alike
                self.conv.weight[1:, 1:] = 0.5
            self.conv.bias.fill_(5)
            self.fc.weight.copy_(torch.eye(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


def test_classes_that_a_does_not_tell_apart_are_the_least_shared_distinction(batches):
    report = consistency.compare(
        Told(merged=True), Told(), batches, layers=["relu"], classes=list("rgb"), resamples=100
    )
    (pair,) = report.record["pairs"]
    worst, *others = pair["forth"]["distinctions"]["pairs"]
    assert (worst["first"], worst["second"]) == ("g", "b")
    assert worst["loss"]["low"] > 0.9 and worst["called"] is None
    assert all(other["loss"]["high"] < 0.7 for other in others)
    # A tells no g from b, so nothing can be lost of it the other way
    back = pair["back"]["distinctions"]
    assert ["g", "b"] not in [[of["first"], of["second"]] for of in back["pairs"]]
    assert any("not defined" in note for note in back["notes"])


def seeded(seed: int) -> nn.Module:
    """A net of `Told`'s recipe, whose features another seed mixed and cut off."""
    net = Told()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net.conv.weight += 0.3 * torch.randn(3, 3, 1, 1, generator=generator)
        net.conv.bias.fill_(0.5)
    return net


def test_references_call_what_a_alone_does_not_tell_apart(batches):
    report = consistency.compare(
        Told(merged=True),
        Told(),
        batches,
        layers=["relu"],
        classes=list("rgb"),
        references=[seeded(seed) for seed in (1, 2, 3)],
        resamples=100,
    )
    assert [of["label"] for of in report.record["references"]] == ["B1", "B2", "B3"]
    (pair,) = report.record["pairs"]
    forth, back = (pair[way]["distinctions"] for way in ("forth", "back"))
    called = [of for of in forth["pairs"] if of["called"]]
    assert [(of["first"], of["second"]) for of in called] == [("g", "b")]
    # References are of B: nothing is called the other way
    assert (forth["references"], back["references"], back["called"]) == (3, 0, None)
    control = consistency.compare(
        seeded(4),
        Told(),
        batches,
        layers=["relu"],
        references=[seeded(seed) for seed in (1, 2, 3)],
        resamples=100,
    )
    assert control.record["pairs"][0]["forth"]["distinctions"]["called"] == 0


def test_one_reference_is_refused(batches):
    with refused("1", "2"):
        compare(make_net(0), make_net(1), batches, references=[make_net(2)])


def test_distinctions_are_of_the_last_pair_whose_tail_can_answer(batches):
    other = Told()
    other.fc = nn.Linear(3, CLASSES + 1)  # B has another class
    with torch.no_grad():
        other.fc.weight.copy_(torch.eye(4, 3))
        other.fc.bias.zero_()
    report = consistency.compare(Told(), other, batches, layers=["conv", "relu"], resamples=100)
    first, last = (pair["forth"]["distinctions"] for pair in report.record["pairs"])
    assert first is None and last["images"] == 120
    assert any("answers serve" in note for note in last["notes"])


def test_places_directions_and_differing_images_stand_beside_the_pairs(batches):
    # B finds its colours in one corner of an image, so nothing else can matter
    class Corner(Told):
        def forward(self, x):
            return self.fc(self.relu(self.conv(x))[:, :, 0, 0])

    report = consistency.compare(
        Told(merged=True), Corner(), batches, layers=["relu"], classes=list("rgb"), resamples=100
    )
    (pair,) = report.record["pairs"]
    forth = pair["forth"]["distinctions"]
    carried = report.maps["forth"]["carried"]
    elsewhere = carried.clone()
    elsewhere[:, 0, 0] = 0
    assert elsewhere.abs().max() < 1e-6 < carried[:, 0, 0].abs().max()
    assert report.maps["forth"]["numbers"].tolist() == [of["image"] for of in forth["most_lost"]]
    # The direction that is missing is between the colours that A merged
    first = forth["directions"]["shown"][0]
    weights = {of["channel"]: of["weight"] for of in first["channels"]}
    assert weights[1] * weights[2] < 0 and abs(weights[0]) < 0.3 * abs(weights[1])
    assert first["margin"] > 0.5 * forth["directions"]["lost_margin"]
    assert first["most"][0]["excited"] > first["least"][0]["excited"]
    differing = forth["differing"]
    assert differing["margin"]["value"] > 0.5 and differing["images"] > 0
    assert differing["margin"]["low"] < differing["margin"]["value"] < differing["margin"]["high"]


def test_a_map_that_an_untrue_pair_has_too_is_withdrawn(batches):
    report = consistency.compare(Told(merged=True), Told(), batches, layers=["relu"], resamples=100)
    places = report.record["pairs"][0]["forth"]["distinctions"]["places"]
    # Nothing but the sizes of B's features lies in the map of a tail that averages positions
    assert places["withdrawn"] is (places["like_untrue"]["value"] >= 0.3)
    one = consistency.compare(make_net(0), make_net(1), batches, layers=["5"], resamples=100)
    places = one.record["pairs"][0]["forth"]["distinctions"]["places"]
    assert places["positions"] == 1 and places["withdrawn"] and places["like_untrue"] is None
