"""What is changed for a while is put back: buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_lr.patching import buffers_put_back


class Counts(nn.Module):
    """Has batch norm, a buffer that is changed in place and one that is assigned anew, as running means often are."""

    steps: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        normalized: Tensor = self.norm(x)
        return normalized


def test_buffers_are_put_back_changed_in_place_or_assigned_anew() -> None:
    module = Counts()
    before = {name: (id(buffer), buffer.clone()) for name, buffer in module.named_buffers()}
    with buffers_put_back(module):
        module(torch.randn(8, 2))
        assert not torch.equal(module.mean, torch.ones(2))
    for name, buffer in module.named_buffers():
        assert id(buffer) == before[name][0]
        assert torch.equal(buffer, before[name][1])
