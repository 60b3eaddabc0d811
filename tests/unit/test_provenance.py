import json
from dataclasses import replace
from typing import Any

import pytest

from tests.mistakes import check_line, refused
from utils.provenance import NetSource, Provenance

A = NetSource("alexnet", "features.10", "nets/a.pth.tar", "aaaaaaaa11")
B = NetSource("resnet34", "layer3.5.add", "nets/b.pth.tar", "bbbbbbbb22")
WHOLE = Provenance(
    A,
    B,
    dataset="folder",
    name="cows",
    split="train",
    sample_num="50par_A",
    classes=["calf", "cow"],
    transform={"image_size": 64, "view": "resize", "mean": [0.5]},
    arch="alexnet-resnet34",
    label="10-3",
)
RECORD = {
    "dataset": "folder",
    "name": "cows",
    "split": "train",
    "sample_num": "50par_A",
    "classes": ["calf", "cow"],
    "transform": {"image_size": 64, "view": "resize", "mean": [0.5]},
    "arch": "alexnet-resnet34",
    "layer": "10-3",
    "arch_a": "alexnet",
    "layer_a": "features.10",
    "path_a": "nets/a.pth.tar",
    "checkpoint_a": "aaaaaaaa11",
    "arch_b": "resnet34",
    "layer_b": "layer3.5.add",
    "path_b": "nets/b.pth.tar",
    "checkpoint_b": "bbbbbbbb22",
}


def with_net(role: str, **changes: Any) -> Provenance:
    return replace(WHOLE, **{role: replace(getattr(WHOLE, role), **changes)})


def unequal(found: Provenance, other: Provenance) -> bool:
    """Compare all fields, also those that `==` leaves out."""
    return found.to_record() != other.to_record()


# --- records


def test_the_stored_record_is_flat_and_comes_back():
    assert WHOLE.to_record() == RECORD
    again = Provenance.from_record(RECORD)
    assert again == WHOLE and again.to_record() == RECORD
    assert (again.a.path, again.b.path, again.arch, again.label) == (
        A.path,
        B.path,
        WHOLE.arch,
        WHOLE.label,
    )


ALIKE, OTHER = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))


def test_nets_that_are_normalised_alike_are_recorded_as_before():
    """So that files of earlier versions and newer ones of the same nets are equal."""
    alike = replace(
        with_net("a", normalisation=ALIKE),
        b=replace(B, normalisation=ALIKE),
        transform={"image_size": 64},
    )
    record = alike.to_record()
    assert record["transform"] == {
        "image_size": 64,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    assert record.keys() == RECORD.keys()
    again = Provenance.from_record(record)
    assert again == alike and again.a.normalisation == again.b.normalisation == ALIKE
    assert again.transform == {"image_size": 64} and again.to_record() == record


def test_nets_of_other_constants_are_recorded_one_by_one():
    mixed = replace(
        with_net("a", normalisation=ALIKE),
        b=replace(B, normalisation=OTHER),
        transform={"image_size": 64},
    )
    record = json.loads(json.dumps(mixed.to_record()))
    assert record["transform"] == {"image_size": 64}
    again = Provenance.from_record(record)
    assert again == mixed and (again.a.normalisation, again.b.normalisation) == (ALIKE, OTHER)
    back = Provenance.from_record(mixed.reversed().to_record())
    assert (back.a.normalisation, back.b.normalisation) == (OTHER, ALIKE)


def test_a_net_that_sees_images_otherwise_is_another():
    mixed = replace(with_net("a", normalisation=ALIKE), b=replace(B, normalisation=OTHER))
    other = replace(mixed, b=replace(B, normalisation=ALIKE))
    message = "normalisation 0.4,0.4,0.4,0.2,0.2,0.2 of net B instead of half"
    assert mixed.differs(other) == message
    assert mixed.differs(replace(mixed, b=B)) is None  # nobody recorded it
    old = Provenance.from_record({"transform": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    assert mixed.differs(old) == message


def test_what_is_unknown_is_left_out_and_stays_unknown():
    assert Provenance().to_record() == {}
    assert Provenance.from_record({}) == Provenance()
    record = {"dataset": "CUB200", "layer_b": "features.30", "sample_num": ""}
    assert Provenance.from_record(record) == Provenance(
        b=NetSource(layer="features.30"), dataset="CUB200", sample_num=""
    )
    assert Provenance.from_record(record).to_record() == record


def test_keys_of_other_programs_are_passed_over():
    assert (
        Provenance.from_record(RECORD | {"input": "components", "in_mode": [1]}).to_record()
        == RECORD
    )


def test_the_image_size_is_the_transforms_or_the_authors():
    assert WHOLE.image_size == 64
    assert Provenance().image_size == Provenance(transform={}).image_size == 224


# --- changes


def test_reversed_exchanges_the_nets_alone():
    found = WHOLE.reversed()
    exchanged = dict(RECORD)
    for key in ("arch", "layer", "path", "checkpoint"):
        exchanged[f"{key}_a"], exchanged[f"{key}_b"] = RECORD[f"{key}_b"], RECORD[f"{key}_a"]
    assert found.to_record() == exchanged
    assert not unequal(found.reversed(), WHOLE)


def test_completed_fills_in_what_is_unknown_only():
    half = Provenance(dataset="CUB200", sample_num="")
    found = half.completed(dataset="VOC", sample_num="50par_A", label="30", split="val")
    assert found == Provenance(dataset="CUB200", sample_num="", split="val")
    assert found.label == "30"
    assert half.split is None


# --- comparisons


def test_equal_origins_do_not_differ():
    assert WHOLE.differs(WHOLE) is None
    WHOLE.check(Provenance.from_record(RECORD), "g.pth.tar")


@pytest.mark.parametrize("key", RECORD)
def test_what_one_of_two_does_not_know_is_not_compared(key):
    less = Provenance.from_record({name: value for name, value in RECORD.items() if name != key})
    assert WHOLE.differs(less) is None and less.differs(WHOLE) is None
    assert WHOLE.differs(Provenance()) is None and Provenance().differs(WHOLE) is None


@pytest.mark.parametrize(
    ("other", "facts"),
    [
        (with_net("a", arch="vgg16"), ("arch", "net A", "alexnet", "vgg16")),
        (with_net("b", layer="layer2"), ("layer", "net B", "layer3.5.add", "layer2")),
        (
            with_net("b", path="c.pth.tar", sha256="cccccccc33"),
            ("net B", "nets/b.pth.tar", "bbbbbbbb", "c.pth.tar", "cccccccc"),
        ),
        (replace(WHOLE, dataset="CUB200"), ("dataset", "folder", "CUB200")),
        (replace(WHOLE, name="sheep"), ("name", "cows", "sheep")),
        (replace(WHOLE, split="val"), ("split", "train", "val")),
        (replace(WHOLE, sample_num=""), ("sample_num", "50par_A")),
        (replace(WHOLE, classes=["bull", "calf", "cow"]), ("classes", 2, 3)),
        (replace(WHOLE, classes=["bull", "cow"]), ("classes", 2)),
        (replace(WHOLE, transform={"image_size": 32, "mean": [0.4]}), ("image_size", 64, 32)),
        (replace(WHOLE, transform={"image_size": 64, "mean": [0.4]}), ("mean", [0.5], [0.4])),
    ],
)
def test_a_difference_is_said_with_both_values(other, facts):
    check_line(WHOLE.differs(other) or "", *facts)
    assert other.differs(WHOLE)
    with refused("g.pth.tar", *facts):
        WHOLE.check(other, "g.pth.tar")


def test_the_first_difference_is_the_nets():
    other = replace(with_net("b", layer="layer2"), dataset="CUB200")
    check_line(WHOLE.differs(other) or "", "layer3.5.add", "net B", "layer2")


@pytest.mark.parametrize("changes", [{"arch": "other"}, {"label": "other"}])
def test_parts_of_file_names_are_not_compared(changes):
    assert WHOLE.differs(replace(WHOLE, **changes)) is None


@pytest.mark.parametrize("role", ["a", "b"])
def test_a_moved_file_of_the_same_content_is_the_same_net(role):
    assert WHOLE.differs(with_net(role, path="elsewhere.pth.tar")) is None
    assert with_net(role, path="elsewhere.pth.tar") == WHOLE


def test_a_record_that_does_not_say_what_resized_is_of_pillow():
    transform = {"image_size": 64, "view": "resize", "mean": [0.5]}
    by_torch, by_pillow = (
        replace(WHOLE, transform=transform | {"resize": way}) for way in ("torch", "pillow")
    )
    assert (WHOLE.resize, by_torch.resize, Provenance().resize) == ("pillow", "torch", None)
    assert WHOLE.differs(by_pillow) is None and by_torch.differs(by_torch) is None
    check_line(WHOLE.differs(by_torch) or "", "resize", "pillow", "torch")


@pytest.mark.parametrize(
    "transform",
    [{"image_size": 64, "view": "crop", "mean": [0.5]}, {"image_size": 64}, {"colours": 3}],
)
def test_of_the_transform_what_both_know_is_compared_but_for_the_view(transform):
    assert WHOLE.differs(replace(WHOLE, transform=transform)) is None


def test_exchanged_nets_are_named_as_such():
    for other in (WHOLE, replace(WHOLE, dataset="CUB200")):
        check_line(WHOLE.reversed().differs(other) or "", "--reverse")


def test_a_net_beside_itself_is_exchanged_with_nothing():
    both = Provenance(A, replace(A, layer="features.8"))
    check_line(both.differs(both.reversed()) or "", "features.10", "net A", "features.8")
    assert Provenance(A, A).differs(Provenance(A, A).reversed()) is None


def test_unknown_nets_are_exchanged_with_nothing():
    unknown = Provenance(NetSource(layer="x"), NetSource(layer="y"))
    check_line(unknown.differs(unknown.reversed()) or "", "x", "net A", "y")
    half = Provenance(A, NetSource(layer="y"))
    check_line(half.differs(half.reversed()) or "", "features.10", "net A", "y")


def test_fields_may_be_left_out_of_the_comparison():
    other = replace(WHOLE, split="val", sample_num="")
    assert WHOLE.differs(other, but=("split", "sample_num")) is None
    check_line(WHOLE.differs(other, but=("split",)) or "", "sample_num", "50par_A")
    WHOLE.check(other, "g.pth.tar", but=("split", "sample_num"))
    with refused("g.pth.tar", "split", "train", "val"):
        WHOLE.check(other, "g.pth.tar", but=("sample_num",))
    # What may differ of the images must not hide a net.
    other = replace(with_net("a", layer="x"), split="val")
    check_line(WHOLE.differs(other, but=("split",)) or "", "features.10", "net A", "x")


def test_where_images_were_is_kept_and_not_compared():
    here = replace(WHOLE, folders={"train_path": "a/train"})
    again = Provenance.from_record(here.to_record())
    assert again.folders == {"train_path": "a/train"} and again == WHOLE
    assert WHOLE.differs(again) is None
