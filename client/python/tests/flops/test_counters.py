"""Numbers that are counted elsewhere."""

from __future__ import annotations

import math
from typing import Any, Iterator

import pytest
import torch

from prov4ml import _flops
from prov4ml._flops import counters


class Model:
    pass


class Derived(Model):
    pass


@pytest.fixture
def register() -> Iterator[Any]:
    yield _flops.register_counter
    for cls in (Model, Derived, torch.nn.Linear):
        _flops.register_counter(cls, None)


def _count(model: Any, batch: Any) -> Any:
    return _flops.batch_cost(model, batch).result(10)["count"]


def test_registered(register: Any) -> None:
    register(Model, lambda model, batch: 10 * len(batch))
    assert _count(Model(), [1, 2]) == {"method": "user", "forward": "20"}
    assert _count(Derived(), [1, 2]) == {"method": "user", "forward": "20"}
    register(Derived, lambda model, batch: (10**30, 0))
    assert _count(Derived(), [1]) == {"method": "user", "forward": "1" + 30 * "0", "backward": "0"}
    register(Derived, lambda model, batch: {"forward": 3.0, "backward": 6, "dtype": "bfloat16"})
    assert _count(Derived(), [1]) == {"method": "user", "forward": "3", "backward": "6", "dtype": "bfloat16"}
    register(Derived, None)
    assert _count(Derived(), [1])["forward"] == "10"


def test_registered_wins_over_a_trace(register: Any) -> None:
    register(torch.nn.Linear, lambda model, batch: model.in_features)
    assert _count(torch.nn.Linear(8, 4), torch.randn(2, 8)) == {"method": "user", "forward": "8"}


@pytest.mark.parametrize(
    "answer", [None, 0, -1, True, math.nan, math.inf, "many", (1, -2), (0, 1), {"backward": 3}, 10**90, [1]]
)
def test_what_is_no_count_is_refused(answer: Any, register: Any) -> None:
    register(Model, lambda model, batch: answer)
    count = _count(Model(), [1])
    assert "forward" not in count
    assert "no count" in count["missingReason"]


def test_a_counter_that_raises(register: Any) -> None:
    register(Model, lambda model, batch: 1 / 0)
    assert "ZeroDivisionError" in _count(Model(), [1])["missingReason"]


def test_bad_registrations() -> None:
    with pytest.raises(TypeError, match="must be a class"):
        _flops.register_counter(Model(), print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a function or None"):
        _flops.register_counter(Model, 3)  # type: ignore[arg-type]


def test_an_epoch_of_counted_batches(register: Any) -> None:
    register(Model, lambda model, batch: (len(batch), 2 * len(batch)))
    fragment = _flops.epoch_cost(Model(), [[1, 2], [3]]).result(1)
    assert fragment == {"count": {"method": "user", "forward": "3", "backward": "6"}}
    register(Model, lambda model, batch: 0)
    assert "no count" in _flops.epoch_cost(Model(), [[1, 2], [3]]).result(1)["incompleteReason"]
    assert counters.total([]) == {"incompleteReason": "the epoch has no batches"}


class Stubborn(torch.nn.Module):
    """Cannot be traced, and knows its own cost."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        return self.linear(x) if x.sum() > 0 else x

    def flops(self, batch: Any) -> int:
        return 10 * len(batch)


def test_a_torch_models_own_method_is_the_last_rung() -> None:
    model = Stubborn()
    answer = _flops.batch_cost(model, torch.randn(3, 8))
    _flops.close(10)
    assert answer.result(10)["count"] == {"method": "user", "forward": "30"}


def test_a_traceable_models_own_method_is_not_asked() -> None:
    class Traceable(Stubborn):
        def forward(self, x: Any) -> Any:
            return self.linear(x)

        def flops(self, batch: Any) -> int:
            raise AssertionError

    assert "operators" in _flops.batch_cost(Traceable(), torch.randn(3, 8)).result(30)


def test_registering_later_takes_effect(register: Any) -> None:
    model = torch.nn.Linear(8, 4)
    assert "operators" in _flops.batch_cost(model, torch.randn(2, 8)).result(30)
    register(torch.nn.Linear, lambda model, batch: 7)
    assert _count(model, torch.randn(2, 8)) == {"method": "user", "forward": "7"}
    register(torch.nn.Linear, None)
    assert "signature" in _flops.batch_cost(model, torch.randn(2, 8)).result(30)
