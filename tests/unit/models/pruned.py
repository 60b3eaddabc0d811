"""A small network for the tests of pruning, and steps that would move weights that are removed."""

import torch
from torch import nn


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))


def train(net, after_step=lambda *_: None, steps=4):
    """Take steps of SGD with momentum and weight decay,
    both of which move weights that have no gradient.
    """
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    optimizer.register_step_post_hook(after_step)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()
