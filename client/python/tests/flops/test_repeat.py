"""The call that is logged again without asking for its cost: what it must notice."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import nn

from prov4ml import Context, _flops
from prov4ml._flops import watch
from prov4ml._repeat import Repeat
from prov4ml._ring import Ring

X, Y = torch.randn(4, 8), torch.randint(0, 8, (4,))


class _Case:
    """A Repeat of one call, and everything that it may be asked with."""

    def __init__(self, settle: Callable[[], None], batch: Any) -> None:
        self.model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(20)])
        self.batch = batch
        _flops.batch_cost(self.model, batch)
        settle()
        form = _flops.form(self.model, batch)
        assert form is not None
        self.form = form
        self.ring = Ring(1)
        self.ring.until = 1 << 62
        self.context: object = Context.TRAINING
        self.repeat = Repeat(form, Context.TRAINING, self.ring, 7)

    def log(self, step: int = 1) -> bool:
        return self.repeat.log(self.model, self.batch, self.context, step)


@pytest.fixture
def case(settle: Callable[[], None]) -> _Case:
    return _Case(settle, (X, Y))


@pytest.mark.parametrize("batch", [X, (X, Y), [X], {"input": X}, (X,)], ids=["tensor", "tuple", "list", "dict", "one"])
def test_the_same_call_is_logged(settle: Callable[[], None], batch: Any) -> None:
    case = _Case(settle, batch)
    before = case.form.entry.batches
    assert all(case.log(step) for step in range(5))
    assert case.ring.last == 5
    assert [tuple(case.ring.words[512 + 4 * n : 514 + 4 * n]) for n in range(1, 6)] == [(7, step) for step in range(5)]
    assert case.form.entry.batches == before + 5


def _set(name: str, value: Any) -> Callable[[_Case], None]:
    return lambda case: setattr(case, name, value)


CHANGES: dict[str, Callable[[_Case], None]] = {
    "a last short batch": _set("batch", (X[:2], Y[:2])),
    "another dtype": _set("batch", (X.double(), Y)),
    "an input that wants a gradient": _set("batch", (X.clone().requires_grad_(), Y)),
    "one tensor less": _set("batch", (X,)),
    "one tensor more": _set("batch", (X, Y, Y)),
    "another collection": _set("batch", [X, Y]),
    "no tensor": _set("batch", (X, None)),
    "numpy": _set("batch", (X.numpy(), Y.numpy())),
    "another context": _set("context", Context.VALIDATION),
    "a context of the script's": _set("context", "training"),
    "an equal model": lambda case: setattr(case, "model", nn.Sequential(*[nn.Linear(8, 8) for _ in range(20)])),
    "evaluation": lambda case: case.model.eval() and None,
    "another agent": lambda case: setattr(case.ring, "connection", 2),
    "an agent not looked at for a second": lambda case: setattr(case.ring, "until", 0),
    "a full ring": lambda case: setattr(case.ring, "room", 1),
    "a walk that found another model": lambda case: setattr(case.form.watch, "digest", 0),
    "calls for a walk": lambda case: setattr(case.form.watch, "calls", watch.CALLS),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_call_is_not(case: _Case, name: str) -> None:
    assert case.log()
    CHANGES[name](case)
    assert not case.log()
    assert case.ring.last == 1


def test_autocast_is_noticed(case: _Case) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not case.log()
        assert _flops.form(case.model, case.batch) is None
    assert case.log()


def test_a_registered_counter_is_noticed(case: _Case) -> None:
    _flops.register_counter(nn.Sequential, lambda model, batch: 5)
    try:
        assert not case.log()
    finally:
        _flops.register_counter(nn.Sequential, None)
    assert not case.log()


@pytest.mark.parametrize("number", [0, 7, 19])
def test_a_freeze_is_noticed_within_the_bound(case: _Case, number: int) -> None:
    assert case.log()
    layer = case.model[number]
    layer.weight.requires_grad_(False)
    calls = -(-38 // watch.SLICE)
    assert not all(case.log() for _ in range(calls))


def test_a_replaced_layer_is_noticed_within_the_bound(case: _Case) -> None:
    assert case.log()
    case.model[3] = nn.Linear(8, 8)
    calls = -(-38 // watch.SLICE)
    assert not all(case.log() for _ in range(calls))


def test_what_takes_more_than_shapes_has_no_form(settle: Callable[[], None]) -> None:
    model = nn.Linear(8, 8)
    for batch in ((X, 3), {"input": X, "label": "a"}, [], object(), [X] * 9):
        _flops.batch_cost(model, batch)
        settle()
        assert _flops.form(model, batch) is None
    assert _flops.form(object(), X) is None
    assert _flops.form(nn.Linear(8, 8), X) is None


def test_a_step_that_does_not_fit(case: _Case) -> None:
    assert case.log((1 << 63) - 1)
    assert not case.log(-1)
    assert not case.log(1 << 63)


def test_a_frozen_network_is_noticed_at_once(case: _Case) -> None:
    """As in a GAN, whose networks are frozen in turn."""
    assert case.log()
    case.model.requires_grad_(False)
    assert not case.log()


@pytest.mark.parametrize("number", [0, 19])
def test_a_frozen_head_or_input_is_noticed_at_once(case: _Case, number: int) -> None:
    assert case.log()
    case.model[number].requires_grad_(False)
    assert not case.log()
