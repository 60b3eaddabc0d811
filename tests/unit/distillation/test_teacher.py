import dataclasses
import functools

import pytest
import torch
from torch import nn

from distillation.teacher import live_logits, teacher_logits
from models.classifiers import build
from tests.mistakes import check_some_line, refused
from utils.data.images import ImageData, load_images
from utils.data.loaders import make_loader
from utils.normalisation import NORMALISATIONS
from utils.pixels import FromPixels, normalise

CLASSES = 3


@pytest.fixture
def loader(photos):
    return make_loader(
        load_images("folder", "train", data_root="", image_size=32, path=photos / "train"), 8
    )


@pytest.fixture
def make_teacher(loader, cpu, tmp_path):
    """A function that makes the same net a teacher again, in training mode until then."""
    torch.manual_seed(0)
    original = build("resnet18", CLASSES)
    original(torch.randn(4, 3, 32, 32))  # running statistics that are not those of a batch

    def make(**options):
        model = build("resnet18", CLASSES)
        model.load_state_dict(original.state_dict())
        reader = FromPixels(model, NORMALISATIONS["cifar10"]).train()
        return teacher_logits(reader, loader, CLASSES, cpu, folder=tmp_path, **options)

    return make


@pytest.fixture
def augmented(monkeypatch):
    """A function after whose call images count as augmented."""
    return functools.partial(monkeypatch.setattr, ImageData, "augments", True)


def test_stored_logits_are_those_of_asking_every_time(loader, make_teacher, augmented):
    stored = make_teacher()
    augmented()
    live = make_teacher()
    means = []
    for pixels, _targets, indices in loader:
        assert torch.equal(stored(pixels, indices), live(pixels, indices))
        means.append(live(pixels, indices).mean(0))
        assert not live(pixels, indices).requires_grad
    assert not torch.equal(means[0], means[1])
    shuffled = torch.tensor([5, 0, 23])
    by_index = torch.cat([live(batch[0], batch[2]) for batch in loader])[shuffled]
    assert torch.equal(stored(torch.empty(0), shuffled), by_index)


def test_a_stored_teacher_looks_at_every_image_once_and_a_live_one_at_what_it_is_shown(
    loader, cpu, tmp_path, augmented
):
    seen = []

    class Watched(nn.Linear):
        def forward(self, images):
            seen.append(len(images))
            return super().forward(images.float().mean((2, 3)))

    pixels, _targets, indices = next(iter(loader))
    stored = teacher_logits(Watched(3, CLASSES), loader, CLASSES, cpu, folder=tmp_path)
    for _ in range(2):
        assert stored(pixels, indices).shape == (8, CLASSES)
    assert seen == [8, 8, 8]
    augmented()
    live = teacher_logits(Watched(3, CLASSES), loader, CLASSES, cpu, folder=tmp_path)
    assert seen == [8, 8, 8]
    # The pixels count, not the indices
    assert not torch.equal(live(pixels, indices), live(pixels.flip(0), indices))
    assert seen == [8, 8, 8, 8, 8]


@pytest.mark.parametrize("augments", [False, True])
def test_a_teacher_reads_pixels_by_its_own_constants(loader, cpu, tmp_path, augmented, augments):
    if augments:
        augmented()
    constants, model = (
        NORMALISATIONS["cifar10"],
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES)),
    )
    teacher = teacher_logits(FromPixels(model, constants), loader, CLASSES, cpu, folder=tmp_path)
    pixels, _targets, indices = next(iter(loader))
    torch.testing.assert_close(teacher(pixels, indices), model(normalise(pixels, *constants)))


@pytest.mark.parametrize("augments", [False, True])
def test_the_teacher_is_frozen_in_evaluation_mode(loader, cpu, tmp_path, augmented, augments):
    if augments:
        augmented()
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES)).train()
    model = FromPixels(model, NORMALISATIONS["half"])
    teacher = teacher_logits(model, loader, CLASSES, cpu, folder=tmp_path)
    for pixels, _targets, indices in loader:
        teacher(pixels, indices)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert norm.running_mean is not None and not norm.running_mean.any()


def test_live_logits_are_those_of_what_the_student_sees():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, CLASSES))
    images = torch.randn(2, 3, 4, 4)
    logits = live_logits(model, images, torch.tensor([7, 1]))
    assert torch.equal(logits, model(images))
    assert not logits.requires_grad


def test_a_gpu_of_its_own_has_no_effect_where_logits_are_stored(make_teacher, capsys):
    make_teacher()
    assert "--gpu_teacher" not in capsys.readouterr().out
    make_teacher(gpu=7)
    check_some_line(capsys.readouterr().out, "--gpu_teacher")


def test_a_gpu_that_is_not_there_is_refused(loader, cpu, augmented):
    augmented()
    on_gpu = dataclasses.replace(cpu, device=torch.device("cuda", 0))
    with refused("--gpu_teacher", "99"):
        teacher_logits(nn.Identity(), loader, CLASSES, on_gpu, folder="", gpu=99)


@pytest.mark.gpu
def test_a_teacher_on_a_gpu_answers_where_the_images_are():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, CLASSES))
    pixels, indices = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8), torch.tensor([0, 1])
    expected = live_logits(model, pixels, indices)
    torch.testing.assert_close(live_logits(model.cuda(), pixels, indices), expected)
