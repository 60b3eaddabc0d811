"""The initialisers of DCM's and HSAKD's networks, functions for `nn.Module.apply`."""

from torch import nn


def convolutions_by_fan_out(module: nn.Module) -> None:
    """Convolutions: weight normal with std √(2 / (k²·out)), whatever the groups; bias 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def linear_bias_zero(module: nn.Module) -> None:
    """Linear layers: PyTorch's default weight, bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def linear_normal(module: nn.Module) -> None:
    """Linear layers: weight normal with standard deviation 0.01, bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


def as_dcm_wrn(module: nn.Module) -> None:
    """DCM's WRN: weights normal with std √(2 / fan_in), BatchNorm scales in [0, 1), biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight)
    if isinstance(module, nn.Linear | nn.BatchNorm2d):
        nn.init.zeros_(module.bias)
