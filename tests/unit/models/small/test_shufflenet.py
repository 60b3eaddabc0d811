import torch
import torch.nn.functional as F

from models.small.shufflenet import DownUnit, GroupedUnit, SplitUnit


def test_a_grouped_unit_adds_or_concatenates():
    x = torch.randn(1, 240, 8, 8)
    unit = GroupedUnit(240, 240, 1).eval()
    unit.bn3.weight.data.zero_()
    assert torch.equal(unit(x), x.relu())
    down = GroupedUnit(240, 480, 2).eval()
    down.bn3.weight.data.zero_()
    pooled = F.avg_pool2d(x, 3, stride=2, padding=1)
    assert torch.equal(down(x), torch.cat([torch.zeros(1, 240, 4, 4), pooled.relu()], 1))


def test_the_shuffle_goes_by_the_groups_of_the_first_convolution():
    unit = GroupedUnit(240, 240, 1)
    shuffled = unit.shuffle(torch.arange(60.0).reshape(1, 60, 1, 1)).flatten()
    assert shuffled[:6].tolist() == [0, 20, 40, 1, 21, 41]  # one channel of each of three groups
    first = GroupedUnit(24, 240, 2)
    assert first.conv1.groups == 1
    assert torch.equal(
        first.shuffle(torch.arange(54.0).reshape(1, 54, 1, 1)).flatten(), torch.arange(54.0)
    )


def test_a_split_unit_passes_the_first_half_and_interleaves():
    x = torch.randn(1, 8, 4, 4)
    unit = SplitUnit(8, 8, 1).eval()
    out = unit(x)
    assert torch.equal(out[:, ::2], x[:, :4])
    moved = x.clone()
    moved[:, :4] += 1
    assert torch.equal(unit(moved)[:, 1::2], out[:, 1::2])  # the other half does not see it


def test_a_down_unit_halves_the_size_at_stride_2_only():
    x = torch.randn(1, 6, 8, 8)
    assert DownUnit(6, 10, 2)(x).shape == (1, 10, 4, 4)
    unit = DownUnit(6, 10, 1).eval()
    out = unit(x)
    assert out.shape == (1, 10, 8, 8)
    torch.testing.assert_close(out[:, ::2], unit.bn2(unit.conv2(unit.bn1(unit.conv1(x)))).relu())
