"""The calls as scripts write them: every documented form, and whatever else they may pass."""

from __future__ import annotations

import enum
import inspect
from typing import Any

import numpy as np
import pytest
from agent import Agent

import prov4ml
from prov4ml import Context


class Cost:
    """What prov4ml._flops answers when a cost is known at once."""

    def __init__(self, part: dict[str, Any]) -> None:
        self._part = part

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        return self._part


class Flops:
    """Stands for prov4ml._flops."""

    def batch_cost(self, model: object, batch: object) -> Cost:
        return Cost({"count": {"forward": "6", "method": "user"}})

    def epoch_cost(self, model: object, dataset: object) -> Cost:
        return Cost({"count": {"forward": "60", "method": "user"}})

    def operators(self, signature: str) -> None:
        return None

    def close(self, seconds: float) -> None:
        pass


@pytest.fixture
def calls(package: Any, agent: Agent) -> Any:
    package._flops_calls._flops = Flops()
    return package


def test_signatures() -> None:
    for function, names in (
        (prov4ml.log_system_metrics, ["context", "step", "synchronous", "timestamp"]),
        (prov4ml.log_flops_per_epoch, ["label", "model", "dataset", "context", "step", "synchronous", "timestamp"]),
        (prov4ml.log_flops_per_batch, ["label", "model", "batch", "context", "step", "synchronous", "timestamp"]),
    ):
        assert list(inspect.signature(function).parameters) == names


def test_context_is_the_originals() -> None:
    assert {context.name: context.value for context in Context} == {
        "TRAINING": "training",
        "VALIDATION": "validation",
        "EVALUATION": "evaluation",
        "TESTING": "testing",
    }
    assert Context("training") is Context.TRAINING
    assert Context["TESTING"] is Context.TESTING
    assert str(Context.TRAINING) == "Context.TRAINING"
    assert len({Context.TRAINING, Context.TRAINING, Context.TESTING}) == 2


COMMON = ("seq", "monotonicNanos", "synchronous")

T = Context.TRAINING
FORMS = [
    # log_system_metrics: every form of the original's examples, docs and eras.
    ("log_system_metrics", (T,), {}, {"context": "training"}),
    ("log_system_metrics", (T,), {"step": 3}, {"context": "training", "step": 3}),
    ("log_system_metrics", (T, 3), {}, {"context": "training", "step": 3}),
    ("log_system_metrics", (T, 3, True, None), {}, {"context": "training", "step": 3}),
    ("log_system_metrics", (T, 3, True, 17), {}, {"context": "training", "step": 3, "timestamp": 17}),
    ("log_system_metrics", (T, 3, True, 0), {}, {"context": "training", "step": 3, "timestamp": 0}),
    ("log_system_metrics", (), {"context": T, "step": 3}, {"context": "training", "step": 3}),
    ("log_system_metrics", (), {}, {}),
    ("log_system_metrics", ("pretrain", 0), {}, {"context": "pretrain", "step": 0}),
    ("log_system_metrics", (None, -1), {}, {"step": -1}),
    ("log_system_metrics", (Context.TESTING, None), {"synchronous": True}, {"context": "testing"}),
    # The FLOPs calls.
    ("log_flops_per_batch", ("f", None, [1], T), {"step": 4}, {"label": "f", "context": "training", "step": 4}),
    ("log_flops_per_batch", ("f", None, [1], T, 4), {}, {"label": "f", "context": "training", "step": 4}),
    (
        "log_flops_per_batch",
        ("f",),
        {"model": None, "batch": [1], "context": T, "step": 4},
        {"label": "f", "context": "training", "step": 4},
    ),
    (
        "log_flops_per_batch",
        (),
        {"label": "f", "model": None, "batch": [1], "context": "x", "synchronous": True, "timestamp": 9},
        {"label": "f", "context": "x", "timestamp": 9},
    ),
    ("log_flops_per_epoch", ("f", None, [1], T), {"step": 4}, {"label": "f", "context": "training", "step": 4}),
    (
        "log_flops_per_epoch",
        ("f",),
        {"model": None, "dataset": [1], "context": T, "step": 4},
        {"label": "f", "context": "training", "step": 4},
    ),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "message"), FORMS)
def test_form(calls: Any, agent: Agent, name: str, args: Any, kwargs: Any, message: dict[str, Any]) -> None:
    assert getattr(calls, name)(*args, **kwargs) is None
    (taken,) = agent.wait_logs(1)
    cost = {"log_flops_per_batch": {"forward": "6"}, "log_flops_per_epoch": {"forward": "60"}}.get(name)
    if cost is not None:
        assert taken.message.pop("count") == {**cost, "method": "user"}
    assert {key: value for key, value in taken.message.items() if key not in COMMON} == message
    assert taken.function == "".join(word.capitalize() for word in name.split("_"))
    # The call that is made for every step does not wait, unless it is told to.
    assert taken.streamed == (name == "log_flops_per_batch" and "synchronous" not in kwargs)
    assert taken.message["seq"] == 1
    assert taken.message["monotonicNanos"] > 0


@pytest.mark.parametrize("synchronous", [False, 0, None, ""])
def test_asynchronous_form(calls: Any, agent: Agent, synchronous: object) -> None:
    calls.log_system_metrics(T, 1, synchronous)
    calls.log_flops_per_batch("f", None, None, T, 2, synchronous)
    calls.log_system_metrics(T, 3, synchronous=synchronous, timestamp=5)
    taken = agent.wait_logs(3)
    assert [t.streamed for t in taken] == [True] * 3
    assert [t.message["synchronous"] for t in taken] == [False] * 3
    assert [t.message["seq"] for t in taken] == [1, 2, 3]
    assert [t.message["step"] for t in taken] == [1, 2, 3]


class OtherContext(enum.Enum):
    TRAINING = "training"
    NUMBER = 1


class Odd:
    """Everything about it raises."""

    def __raise(self, *_: object) -> Any:
        raise RuntimeError("odd")

    __str__ = __repr__ = __bool__ = __index__ = __int__ = __float__ = __len__ = __iter__ = __hash__ = __eq__ = __raise  # type: ignore[assignment]
    __format__ = __lt__ = __le__ = __gt__ = __ge__ = __getattr__ = __raise  # type: ignore[assignment]


class OddInt(int):
    def __format__(self, _: str) -> str:
        return "drop table"

    __str__ = __repr__ = lambda self: "not a number"


CONTEXTS = [
    (OtherContext.TRAINING, "training"),
    (OtherContext.NUMBER, "NUMBER"),
    ('quote " \\ \n ü 😀', 'quote " \\ \n ü 😀'),
    ("", ""),
    (5, "5"),
    (b"x", "b'x'"),
    ("half \ud800", "half ?"),
    (Odd(), None),
    (np.str_("training"), "training"),
]


@pytest.mark.parametrize(("context", "sent"), CONTEXTS, ids=range(len(CONTEXTS)))
def test_any_context(calls: Any, agent: Agent, context: object, sent: object) -> None:
    calls.log_system_metrics(context, 1)
    assert agent.wait_logs(1)[0].message.get("context") == sent


STEPS = [
    (np.int64(5), 5),
    (np.float32(5), 5),
    (True, 1),
    (5.0, 5),
    ("5", 5),
    (OddInt(5), 5),
    ((1 << 63) - 1, (1 << 63) - 1),
    (-(1 << 63), -(1 << 63)),
    (1 << 63, None),
    (5.5, None),
    (float("nan"), None),
    ("epoch 5", None),
    ([5], None),
    (Odd(), None),
    (np.array([5, 6]), None),
]


@pytest.mark.parametrize(("step", "sent"), STEPS, ids=range(len(STEPS)))
def test_any_step_and_timestamp(calls: Any, agent: Agent, said: Any, step: object, sent: object) -> None:
    calls.log_system_metrics(T, step)
    calls.log_system_metrics(T, 1, True, step)
    calls.log_system_metrics(T, step)
    first, second, _ = agent.wait_logs(3)
    assert first.message.get("step") == sent
    assert second.message.get("timestamp") == sent
    assert len(said()) == (2 if sent is None else 0), said()


WEIRD = [
    None,
    0,
    -1,
    1 << 70,
    1.5,
    float("nan"),
    "",
    "x",
    "x" * 3000,
    b"\xff",
    [],
    {},
    (),
    object(),
    Odd(),
    T,
    len,
    Odd,
]


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("weird", WEIRD, ids=range(len(WEIRD)))
def test_nothing_raises(calls: Any, agent: Agent, weird: object, synchronous: bool) -> None:
    for call in (
        lambda: calls.log_system_metrics(weird, weird, synchronous, weird),
        lambda: calls.log_system_metrics(T, 1, weird),
        lambda: calls.log_flops_per_batch(weird, weird, weird, weird, weird, synchronous, weird),
        lambda: calls.log_flops_per_epoch(weird, weird, weird, weird, weird, synchronous, weird),
        lambda: calls.log_param(weird, weird),
        lambda: calls.log_metric(weird, weird, weird, weird, weird, weird),
        lambda: calls.log_metric("loss", 1.0, weird, weird, weird, weird),
        lambda: calls.start_run(weird, weird, weird),
        lambda: calls.end_run(weird),
    ):
        assert call() is None
    calls.log_system_metrics(T, 77)
    agent.wait(lambda: any(taken.message.get("step") == 77 for taken in agent.logs()))


def test_a_message_beyond_the_limit_is_dropped_and_counted(calls: Any, agent: Agent, said: Any) -> None:
    calls.log_system_metrics("x" * (1 << 20), 1)
    calls.log_system_metrics(T, 2)
    calls.log_system_metrics(T, 3)
    first, second = agent.wait_logs(2)
    assert (first.message["step"], first.message["droppedCalls"], first.message["seq"]) == (2, 1, 1)
    assert "droppedCalls" not in second.message
    assert len(said()) == 1
    assert "1048576" in said()[0]
