"""Every shape that a batch has: its tensors, its samples, its first samples, and what each caller makes of it."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_lr import ActivationCompression, Constant, LearningRateSchedule
from lightning_lr.activations import CheckpointPolicy
from lightning_lr.cli.plan.activation_memory import activation_summary, compression_summary, saved_bytes
from lightning_lr.nested import batch_tensors, first_samples, map_tensors, samples_in, tensors_in, with_samples
from tests.support.toy import fit


class Named(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Plain:
    x: Tensor
    y: Tensor
    note: str = "kept"


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: Tensor


class Encoding(collections.UserDict):  # type: ignore[type-arg]
    """A mapping with attributes, as transformers' BatchEncoding is."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError as error:
            raise AttributeError(name) from error


class Holder:
    """An object of the user's."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.itself = x, y, self


class Calling(Holder):
    def __call__(self) -> None:
        """As torch_geometric's Data has it."""


class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


class Pair(tuple):  # type: ignore[type-arg]
    """A tuple of the user's."""

    __slots__ = ()


SHAPES: dict[str, Any] = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "tuple of one's own": lambda x, y: Pair((x, y)),
    "namedtuple": Named,
    "dict": lambda x, y: {"x": x, "y": y},
    "ordered dict": lambda x, y: collections.OrderedDict(x=x, y=y),
    "encoding": lambda x, y: Encoding(x=x, y=y),
    "read-only mapping": lambda x, y: MappingProxyType({"x": x, "y": y}),
    "dataclass": Plain,
    "frozen dataclass": Frozen,
    "object": Holder,
    "callable object": Calling,
    "object with slots": Slots,
    "nested": lambda x, y: {"inputs": Plain(x, torch.ones(())), "targets": [Named(y, torch.zeros(3))]},
}


def unpacked(batch: Any) -> tuple[Tensor, Tensor]:
    """What a user's training_step takes from its batch, in its own way."""
    if isinstance(batch, Mapping) and "inputs" in batch:
        return batch["inputs"].x, batch["targets"][0].x
    if isinstance(batch, tuple | list):
        return batch[0], batch[1]
    return (batch["x"], batch["y"]) if type(batch) in (dict, MappingProxyType) or isinstance(batch, dict) else (
        batch.x, batch.y,
    )  # fmt: skip


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(6)])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = unpacked(batch)
        assert x.shape[0] == y.shape[0]
        return (self.blocks(x).mean(1) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(params=SHAPES)
def made(request: pytest.FixtureRequest) -> Any:
    return SHAPES[request.param]


@pytest.mark.parametrize("count", [1, 3, 10, 25])
def test_a_batch_is_cut_or_repeated_and_keeps_its_type(made: Any, count: int) -> None:
    x, y = torch.arange(10 * 32.0).reshape(10, 32), torch.arange(10.0)
    batch = made(x, y)
    assert samples_in(batch) == 10
    found = with_samples(batch, count)
    assert type(found) is type(batch) or isinstance(batch, MappingProxyType)
    rows = [index % 10 for index in range(count)]
    assert torch.equal(unpacked(found)[0], x[rows])
    assert torch.equal(unpacked(found)[1], y[rows])
    assert [tensor.shape for tensor in batch_tensors(batch)[:1]] == [(10, 32)], "the batch itself is as it was"
    first = first_samples(batch, count)
    assert first is batch if count >= 10 else samples_in(first) == count


def test_what_is_not_one_entry_per_sample_stays() -> None:
    batch = {
        "pair": Plain(torch.zeros(10, 3), torch.zeros(10)),
        "labels": [torch.zeros(10), torch.zeros(4)],
        "names": [str(index) for index in range(10)],
        "scale": torch.ones(()),
        "sizes": [1, 2],
    }
    cut = first_samples(batch, 4)
    assert [tuple(tensor.shape) for tensor in tensors_in(cut)] == [(4, 3), (4,), (4,), (4,), ()]
    assert cut["names"] == ["0", "1", "2", "3"]
    assert (cut["sizes"], cut["pair"].note) == ([1, 2], "kept")


@pytest.mark.parametrize(
    ("batch", "samples"),
    [(torch.zeros(5, 2), 5), (torch.zeros(()), 1), ((torch.ones(()), torch.zeros(7)), 7), ("text", None), (None, None),
     ({"ids": [1, 2]}, None), (nn.Linear(2, 3), None), ([], None)],
)  # fmt: skip
def test_samples_are_those_of_the_first_tensor_that_has_a_dimension(batch: Any, samples: int | None) -> None:
    assert samples_in(batch) == samples
    assert with_samples(batch, 3) is batch or samples is not None


def test_a_block_may_be_given_back_its_containers_with_other_tensors() -> None:
    given = ({"a": [torch.ones(2)]}, Named(torch.ones(1), torch.zeros(1)), "x")
    changed = map_tensors(given, lambda tensor: tensor + 1)
    assert [float(tensor.sum()) for tensor in tensors_in(changed)] == [4.0, 2.0, 1.0]
    assert type(changed[1]) is Named


@pytest.mark.parametrize("made", [made for name, made in SHAPES.items() if name != "frozen dataclass"])
def test_training_counts_the_samples(made: Any) -> None:
    """Lightning itself refuses to move a frozen dataclass to the device."""
    data = [(torch.randn(32), torch.tensor(0.0)) for _ in range(12)]

    def collate(items: list[Any]) -> Any:
        x, y = (torch.stack(part) for part in zip(*items, strict=True))
        return made(x, y)

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(data)

    schedule = LearningRateSchedule(Constant())
    fit([schedule], module=Net(), loader=DataLoader(Stream(), 4, collate_fn=collate), max_steps=3, max_epochs=-1)
    assert schedule.clock_state is not None
    assert schedule.clock_state["samples_seen"] == 12


@pytest.mark.filterwarnings("ignore:.*log.*")
def test_plan_has_the_bytes_of_the_same_tensors_in_a_tuple(made: Any) -> None:
    torch.manual_seed(0)
    x, y, policy = torch.randn(64, 32), torch.zeros(64), CheckpointPolicy()
    settings = ActivationCompression(bits=4, group_size=32).settings
    answers = []
    for batch in ((x, y), made(x, y)):
        notes: list[str] = []
        model = Net()
        answers.append([
            saved_bytes(None, None, model, batch, 256, "32-true", notes),
            saved_bytes(policy, None, model, batch, 256, "32-true", notes),
            {h: text.split(" (")[0] for h, text in activation_summary(policy, model, batch, "32-true", notes).items()},
            compression_summary(settings, model, batch, "32-true", notes),
            notes,
        ])  # fmt: skip
    assert answers[1] == answers[0]
    assert answers[0][:2] == [205_824.0, 140_288.0]
    assert answers[0][4] == []


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_plan_measures_a_small_batch_by_repeating_its_samples(samples: int) -> None:
    large, small = ((torch.randn(n, 32), torch.zeros(n)) for n in (64, samples))
    notes: list[str] = []
    found = [saved_bytes(None, None, Net(), batch, 256, "32-true", notes) for batch in (large, small)]
    # both hold the batch that was cut: 64 samples of 32 numbers, or 8
    assert found == [205_824.0, 205_824.0 - 4 * 32 * (64 - 8)]
    assert notes == []
