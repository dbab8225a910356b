"""Epochs by the batches that their loader would make, without starting it."""

from __future__ import annotations

import random
from typing import Any, Callable, Dict, Iterator, List

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from prov4ml import _flops

SECONDS = 60
ONE = 3 * 2 * 8 * 16 - 2 * 8 * 16  # forward and the weight's gradient of Linear(8, 16), one sample


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(x)


class Items(Dataset):  # type: ignore[type-arg]
    """Draws from every generator when it is read, and says what was read."""

    def __init__(self, length: int, extents: Any = 8) -> None:
        self.length = length
        self.extents = extents
        self.read: List[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Any:
        self.read.append(number)
        extent = self.extents(number) if callable(self.extents) else self.extents
        return torch.rand(extent) + random.random(), number % 3


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("a stream must not be read")


class Sized(Stream):
    def __len__(self) -> int:
        return 10


@pytest.fixture
def total(counter: Callable[[Dict[str, Any]], Dict[str, Any]]) -> Callable[..., Any]:
    """(FLOP, batches, reason) of an epoch."""

    def of(model: Any, dataset: Any) -> Any:
        fragment = _flops.epoch_cost(model, dataset).result(SECONDS)
        flops = batches = 0
        for part in fragment.get("batches", ()):
            operators = _flops.operators(part["signature"])
            assert operators is not None
            counted = counter(operators)
            flops += part["batches"] * (int(counted["forward"]) + int(counted["backward"]))
            batches += part["batches"]
        return flops, batches, fragment.get("incompleteReason", "")

    return of


def _loader(dataset: Any, **settings: Any) -> Any:
    return DataLoader(dataset, **settings)


LOADERS = [
    ("even", lambda: _loader(Items(12), batch_size=4), 12, 3),
    ("last short", lambda: _loader(Items(10), batch_size=4), 10, 3),
    ("drop last", lambda: _loader(Items(10), batch_size=4, drop_last=True), 8, 2),
    ("fewer than one batch", lambda: _loader(Items(3), batch_size=4), 3, 1),
    ("shuffled", lambda: _loader(Items(10), batch_size=4, shuffle=True), 10, 3),
    ("workers", lambda: _loader(Items(10), batch_size=4, num_workers=2, persistent_workers=True), 10, 3),
    ("subset", lambda: _loader(Subset(Items(100), range(20, 30)), batch_size=4), 10, 3),
    (
        "batch sampler",
        lambda: _loader(Items(10), batch_sampler=BatchSampler(RandomSampler(Items(10)), 4, False)),
        10,
        3,
    ),
    ("list of batches of numbers", lambda: _loader(Items(10), batch_sampler=[[0, 1], [2, 3, 4], [5]]), 6, 3),
    (
        "sampler of replacement",
        lambda: _loader(Items(10), batch_size=4, sampler=RandomSampler(Items(10), True, 30)),
        30,
        8,
    ),
    (
        "rank 1 of 3, padded",
        lambda: _loader(Items(10), batch_size=3, sampler=DistributedSampler(Items(10), 3, 1)),
        4,
        2,
    ),
    (
        "rank 1 of 3, cut",
        lambda: _loader(Items(10), batch_size=3, sampler=DistributedSampler(Items(10), 3, 1, drop_last=True)),
        3,
        1,
    ),
    ("no batching", lambda: _loader([torch.randn(5, 8) for _ in range(7)], batch_size=None), 35, 7),
]


@pytest.mark.parametrize(("name", "make", "samples", "batches"), LOADERS, ids=[row[0] for row in LOADERS])
@pytest.mark.parametrize("logged", [False, True], ids=["nothing logged", "a batch logged"])
def test_loader(
    name: str, make: Callable[[], Any], samples: int, batches: int, logged: bool, total: Callable[..., Any]
) -> None:
    model, loader = Net(), make()
    if logged:
        size = 5 if name == "no batching" else 4
        _flops.batch_cost(model, (torch.randn(size, 8), torch.zeros(size))).result(SECONDS)
    assert total(model, loader) == (ONE * samples, batches, "")
    assert getattr(loader, "_iterator", None) is None


def test_reading_moves_no_generator() -> None:
    model, items = Net(), Items(10)
    random.seed(1)
    torch.manual_seed(1)
    loader = DataLoader(items, batch_size=4, shuffle=True, num_workers=2)
    before = random.getstate(), torch.get_rng_state()
    _flops.epoch_cost(model, loader).result(SECONDS)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert set(items.read) == {0, 1}


def test_nothing_is_read_when_batches_were_logged() -> None:
    model, items = Net(), Items(10)
    for size in (4, 4, 2):
        _flops.batch_cost(model, (torch.randn(size, 8), torch.zeros(size)))
    fragment = _flops.epoch_cost(model, DataLoader(items, batch_size=4)).result(SECONDS)
    assert items.read == []
    assert sorted(part["batches"] for part in fragment["batches"]) == [1, 2]
    assert "operators" not in fragment


def test_a_dataset_takes_the_logged_batch_size(total: Callable[..., Any]) -> None:
    model = Net()
    flops, batches, reason = total(model, Items(10))
    assert (flops, batches) == (ONE * 10, 10)
    assert "one sample at a time" in reason
    _flops.batch_cost(model, (torch.randn(4, 8), torch.zeros(4))).result(SECONDS)
    assert total(model, Items(10)) == (ONE * 10, 3, "")
    assert total(model, Subset(Items(100), range(6))) == (ONE * 6, 2, "")
    assert total(model, BatchSampler(SequentialSampler(Items(10)), 4, True)) == (ONE * 8, 2, "")


def test_affine_models_are_not_multiplied(total: Callable[..., Any]) -> None:
    class Affine(Net):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Linear(8, 8)
            self.register_buffer("positions", torch.randn(50, 8))

        def forward(self, x: torch.Tensor) -> Any:
            return self.linear(x) + self.table(self.positions).sum()

    table = 2 * 2 * 50 * 8 * 8
    assert total(Affine(), DataLoader(TensorDataset(torch.randn(10, 8)), batch_size=4)) == (ONE * 10 + 3 * table, 3, "")


def test_variable_lengths_are_not_guessed(total: Callable[..., Any]) -> None:
    model = Net()
    items = Items(10, extents=lambda number: (number + 1, 8))
    loader = DataLoader(items, batch_size=2, collate_fn=lambda samples: torch.cat([x for x, _ in samples]))
    flops, batches, reason = total(model, loader)
    assert (flops, batches) == (0, 0)
    assert "samples differ in shape" in reason
    for rows in (3, 7, 11, 15, 19):
        _flops.batch_cost(model, torch.randn(rows, 8))
    flops, batches, reason = total(model, loader)
    assert (flops, batches) == (ONE * 55, 5) or reason


def test_padded_batches_of_different_lengths_are_summed(total: Callable[..., Any]) -> None:
    model = Net()
    loader = DataLoader(Items(8), batch_size=4)
    for length in (5, 9, 5):
        _flops.batch_cost(model, torch.randn(4, length, 8))
    flops, batches, reason = total(model, loader)
    assert (flops, batches) == (ONE * 4 * 19, 3)
    assert "logged" in reason


def test_streams(total: Callable[..., Any]) -> None:
    model = Net()
    assert total(model, DataLoader(Stream(), batch_size=4))[:2] == (0, 0)
    assert "no batch was logged" in total(model, Stream())[2]
    for size in (4, 4, 3):
        _flops.batch_cost(model, torch.randn(size, 8))
    flops, batches, reason = total(model, DataLoader(Stream(), batch_size=4))
    assert (flops, batches) == (ONE * 11, 3)
    assert "no length" in reason
    # The next epoch begins anew.
    assert total(model, Stream())[:2] == (0, 0)
    _flops.batch_cost(model, torch.randn(4, 8))
    assert total(model, DataLoader(Sized(), batch_size=4)) == (ONE * 10, 3, "")


def test_a_list_of_batches_says_everything(total: Callable[..., Any]) -> None:
    batches = [(torch.randn(size, 8), torch.zeros(size)) for size in (4, 4, 2, 7)]
    assert total(Net(), batches) == (ONE * 17, 4, "")


def test_a_generator_is_not_consumed(total: Callable[..., Any]) -> None:
    batches = (torch.randn(4, 8) for _ in range(3))
    flops, _, reason = total(Net(), batches)
    assert flops == 0
    assert "generator" in reason
    assert len(list(batches)) == 3


def test_a_dataset_that_raises(total: Callable[..., Any]) -> None:
    class Broken(Items):
        def __getitem__(self, number: int) -> Any:
            raise OSError("no such file")

    assert "no such file" in total(Net(), DataLoader(Broken(4), batch_size=2))[2]


def test_an_epoch_of_evaluation_has_no_backward(total: Callable[..., Any]) -> None:
    model = Net().eval()
    assert total(model, DataLoader(Items(10), batch_size=4)) == (2 * 8 * 16 * 10, 3, "")


def test_autocast_of_the_steps_is_the_epochs(total: Callable[..., Any]) -> None:
    model = Net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _flops.batch_cost(model, torch.randn(4, 8)).result(SECONDS)
    fragment = _flops.epoch_cost(model, DataLoader(Items(8), batch_size=4)).result(SECONDS)
    (part,) = fragment["batches"]
    operators = _flops.operators(part["signature"])
    assert operators is not None
    assert operators["autocastDtype"] == "bfloat16"


def test_not_torch() -> None:
    class Own:
        def flops(self, batch: Any) -> int:
            return 100 * len(batch)

    assert _flops.epoch_cost(Own(), [[1, 2], [3]]).result(1) == {"count": {"method": "user", "forward": "300"}}
    assert "incompleteReason" in _flops.epoch_cost(object(), [1]).result(1)
