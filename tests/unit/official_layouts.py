"""The official layouts of the data sets in miniature."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.unit.photos import make_photo

BIRDS = {"001.Albatross": 4, "002.Ani": 3, "003.Auklet": 3}
DOGS = {"n02085620-Chihuahua": 4, "n02085782-Japanese_spaniel": 3}
Object = tuple[str, tuple[int, int, int, int], bool]


def make_cub(root: Path) -> Path:
    """CUB_200_2011 with photos of 40x30, every third in test, box k,2 of 20x15."""
    lists: dict[str, list[str]] = {
        name: [] for name in ("images", "bounding_boxes", "train_test_split")
    }
    number = 0
    for name, count in BIRDS.items():
        for _ in range(count):
            number += 1
            make_photo(root / "images" / name / f"bird_{number}.jpg", number)
            lists["images"].append(f"{number} {name}/bird_{number}.jpg")
            lists["bounding_boxes"].append(f"{number} {number}.0 2.0 20.0 15.0")
            lists["train_test_split"].append(f"{number} {int(number % 3 != 0)}")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def make_annotation(path: Path, objects: list[Object]) -> None:
    """PASCAL XML; every object comes with a part, whose name and box are not the object's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = ("xmin", "ymin", "xmax", "ymax")
    text = ""
    for name, box, difficult in objects:
        edges = "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(corners, box))
        part = "<part><name>hand</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
        text += f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox>{edges}</bndbox>{part}</object>"  # noqa: E501
    path.write_text(f"<annotation>{text}</annotation>")


def make_dogs(root: Path) -> Path:
    """Stanford Dogs: Images, Annotation and the two lists;
    the first photo of a class shows a second, larger dog.
    """
    paths: dict[str, list[str]] = {"train": [], "test": []}
    number = 0
    for name, count in DOGS.items():
        for position in range(count):
            number += 1
            stem = f"{name.split('-')[0]}_{number}"
            make_photo(root / "Images" / name / f"{stem}.jpg", 50 + number)
            dogs: list[Object] = [(name.split("-")[1], (1, 2, 11, 12), False)]
            if position == 0:
                dogs.append((name.split("-")[1], (0, 0, 30, 25), False))
            make_annotation(root / "Annotation" / name / stem, dogs)
            paths["test" if position == 1 else "train"].append(f"{name}/{stem}.jpg")
    for split, names in paths.items():
        cells = np.empty((len(names), 1), dtype=object)
        cells[:, 0] = names
        savemat(
            root / f"{split}_list.mat", {"file_list": cells, "labels": np.ones((len(names), 1))}
        )
    return root


def make_voc(root: Path, image_sets: bool = True) -> Path:
    """VOC2012 of four photos: cats, a person, a difficult cow, a car."""
    objects: dict[str, list[Object]] = {
        "2008_01": [
            ("cat", (1, 1, 11, 11), False),
            ("person", (2, 2, 30, 25), False),
            ("cat", (5, 5, 25, 15), False),
        ],
        "2008_02": [("cow", (1, 1, 20, 20), True), ("cow", (3, 3, 23, 13), False)],
        "2008_03": [("car", (1, 1, 40, 30), False)],
        "2008_04": [("sheep", (1, 1, 21, 16), False)],
    }
    for number, (stem, entries) in enumerate(objects.items()):
        make_photo(root / "JPEGImages" / f"{stem}.jpg", 90 + number)
        make_annotation(root / "Annotations" / f"{stem}.xml", entries)
    if image_sets:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_text("2008_01\n2008_02 \n")
        (root / "ImageSets" / "Main" / "val.txt").write_text("2008_03\n2008_04\n")
    return root
