"""The simulated accelerator itself: it computes as the CPU does, and sees what it is there for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.accelerator import simulated

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is the accelerator here")
DEVICE = "simulated"
HERE = "tests/accelerator/test_simulated.py"


@pytest.fixture
def waits():
    with simulated.accelerator() as counted:
        yield counted


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_net_is_trained_to_the_same_weights_as_on_the_cpu(waits, amp):
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    nets = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(1)
        net = small_net().to(device)
        optimizer = torch.optim.Adam(net.parameters(), fused=True)
        for _ in range(3):
            with torch.autocast(device, amp or torch.bfloat16, enabled=amp is not None):
                loss = F.cross_entropy(net(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        nets.append(net)
    on_cpu, on_device = nets
    assert {value.device.type for value in on_device.state_dict().values()} == {DEVICE}
    for expected, value in zip(on_cpu.state_dict().values(), on_device.state_dict().values()):
        assert torch.equal(value.cpu(), expected)


def test_it_is_an_accelerator_for_a_block_alone():
    assert not torch.accelerator.is_available()
    with simulated.accelerator():
        assert torch.accelerator.current_accelerator(check_available=True).type == DEVICE
        assert torch.accelerator.device_count() == 2
    assert torch.accelerator.current_accelerator(check_available=True) is None


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: there + here,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: here @ there,
        lambda here, there: F.linear(there, here),
        lambda here, there: here.add_(there),
        lambda here, there: torch.mean(there, 1, out=here),
        lambda here, there: F.mse_loss(there, here),
        lambda here, there: torch.where(there > 0, here, here),
        lambda here, there: here[there > 0],
        lambda here, there: torch.randn(3, device=DEVICE, generator=torch.Generator()),
    ],
)
def test_two_devices_in_one_operator_are_refused(waits, mixed):
    here, there = torch.ones(4, 4), torch.ones(4, 4).to(DEVICE)
    with pytest.raises(RuntimeError, match=r"simulated:0|device"):
        mixed(here, there)
    with pytest.raises(RuntimeError, match="simulated:1"):
        torch.ones(4, device="simulated:1") + there[0]


def test_a_model_that_stayed_behind_is_refused(waits):
    with pytest.raises(RuntimeError, match="same device"):
        small_net()(torch.zeros(2, 3, 8, 8, device=DEVICE))


def test_scalars_and_indices_may_come_from_the_cpu_as_on_cuda(waits):
    there = torch.arange(4.0, device=DEVICE)
    assert (there * torch.tensor(2.0)).cpu().tolist() == [0, 2, 4, 6]
    assert there[torch.tensor([2, 1])].cpu().tolist() == [2, 1]
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


@pytest.mark.parametrize(
    ("waiting", "times"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x.sum() > 0), 1),
        (lambda x: float(x[0]), 1),
        (lambda x: int(x[0]), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: torch.accelerator.synchronize(), 1),
        (lambda x: torch.ones(2).to(x.device), 1),
        (lambda x: torch.tensor([1.0], device=x.device), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.masked_select(x > 0), 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x[torch.tensor([0])], 1),
        (lambda x: x[[0, 1]], 1),
        (lambda x: torch.linalg.cholesky(torch.eye(2, device=x.device)), 1),
        (lambda x: torch.ones(2).to(x.device, non_blocking=True), 0),
        (lambda x: x[x.argsort()], 0),
        (lambda x: x.index_select(0, x.argsort()), 0),
        (lambda x: x[1:] + 2, 0),
        (lambda x: torch.where(x > 0, x, 1.0).sum(), 0),
        (lambda x: x.masked_fill(x > 0, 1.0), 0),
        (lambda x: x.to(torch.float64), 0),
        (lambda x: torch.zeros(3, device=x.device), 0),
        (copy.deepcopy, 0),
    ],
)
def test_what_waits_for_the_device_is_counted_by_its_line(waits, waiting, times):
    x = torch.ones(3).to(DEVICE, non_blocking=True)
    waiting(x)
    lines = [line for line in waits.by_line if line.startswith(f"{HERE}:")]
    assert sum(waits.by_line.values()) == times and len(lines) == (times > 0)


def test_a_wait_within_a_backward_pass_is_counted(waits):
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            gradient.sum().item()
            return gradient

    x = torch.ones(3, device=DEVICE, requires_grad=True)
    Reading.apply(x).sum().backward()
    assert sum(waits.by_line.values()) == 1


def test_a_copy_that_is_not_waited_for_does_not_hold_its_values(waits):
    x = torch.ones(3, device=DEVICE)
    copy = x.to("cpu", non_blocking=True)
    x += 1
    assert copy.isnan().all()
    torch.accelerator.synchronize()
    assert copy.tolist() == [1, 1, 1]


def test_views_share_memory(waits):
    x = torch.zeros(2, 3, device=DEVICE)
    x[0] += 1
    x.mT[2].fill_(5)
    assert x.cpu().tolist() == [[1, 1, 5], [0, 0, 5]]


def test_a_device_without_float64_refuses_it():
    with simulated.accelerator(has_float64=False):
        with pytest.raises(TypeError, match="float64"):
            torch.ones(2, device=DEVICE).double()
        assert torch.ones(2, device=DEVICE).sum().item() == 2


def test_a_saved_tensor_is_read_without_the_device(tmp_path):
    with simulated.accelerator():
        torch.save({"x": torch.ones(2, device=DEVICE)}, tmp_path / "x.pth")
    assert torch.equal(torch.load(tmp_path / "x.pth", weights_only=True)["x"], torch.ones(2))
