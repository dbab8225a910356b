"""The FLOPs calls' way to the agent; what a model costs is prov4ml._flops's own business and tests."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from agent import Agent, Reply, Taken
from scripts import script

from prov4ml import Context
from prov4ml._client import Client


class Cost:
    def __init__(self, part: Any = None) -> None:
        self._known = threading.Event()
        self._part = part
        if part is not None:
            self._known.set()

    def known(self, part: Any) -> None:
        self._part = part
        self._known.set()

    def done(self) -> bool:
        return self._known.is_set()

    def result(self, timeout: float | None = None) -> Any:
        if not self._known.wait(timeout):
            raise TimeoutError
        if isinstance(self._part, Exception):
            raise self._part
        return self._part


class Flops:
    """Stands for prov4ml._flops: a batch is its own cost, or something that is raised."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed: list[float] = []

    def batch_cost(self, model: object, batch: Any) -> Any:
        self.asked += 1
        if isinstance(batch, Exception):
            raise batch
        return batch

    epoch_cost = batch_cost

    def operators(self, signature: str) -> Any:
        return None if signature == "forgotten" else {"signature": signature, "operators": [{"name": "aten.mm"}]}

    def close(self, seconds: float) -> None:
        self.closed.append(seconds)


@pytest.fixture
def flops(package: Any) -> Flops:
    package._flops_calls._flops = Flops()
    return package._flops_calls._flops  # type: ignore[no-any-return]


def message(taken: Taken) -> dict[str, Any]:
    return {k: v for k, v in taken.message.items() if k not in ("seq", "monotonicNanos", "context", "step", "label")}


OPERATORS = {"signature": "s", "operators": [{"name": "aten.mm", "count": 2}]}


def test_operators_first_then_the_signature(package: Any, flops: Flops, agent: Agent) -> None:
    package.log_flops_per_batch("f", None, Cost({"operators": OPERATORS}), Context.TRAINING, 1, synchronous=True)
    package.log_flops_per_batch("f", None, Cost({"signature": "s"}), Context.TRAINING, 2, synchronous=True)
    package.log_flops_per_batch("f", None, Cost({"signature": "s"}), Context.TRAINING, 3, False)
    assert [message(t) for t in agent.wait_logs(3)] == [
        {"operators": OPERATORS},
        {"signature": "s"},
        {"signature": "s", "synchronous": False},
    ]


def test_an_epoch_brings_the_operators_that_are_not_there_yet(package: Any, flops: Flops, agent: Agent) -> None:
    batches = [
        {"signature": "s", "batches": 9},
        {"signature": "t", "batches": 1},
        {"signature": "forgotten", "batches": 1},
    ]
    package.log_flops_per_batch("f", None, Cost({"operators": OPERATORS}), synchronous=True)
    package.log_flops_per_epoch("e", None, Cost({"batches": batches}))
    package.log_flops_per_epoch("e", None, Cost({"batches": batches}))
    other = {"signature": "t", "operators": [{"name": "aten.mm"}]}
    assert [message(t) for t in agent.wait_logs(3)] == [
        {"operators": OPERATORS},
        {"operators": [other], "batches": batches},
        {"batches": batches},
    ]


def test_a_new_agent_gets_the_operators_again(package: Any, flops: Flops, path: str, agents: list[Agent]) -> None:
    agents.append(Agent(path))
    package.log_flops_per_batch("f", None, Cost({"operators": OPERATORS}), synchronous=True)
    package.log_system_metrics("x", 1)
    agents[0].remove()
    package.log_system_metrics("x", 2)  # finds out
    package.log_flops_per_batch("f", None, Cost({"signature": "s"}), synchronous=True)
    agents.append(Agent(path))
    time.sleep(0.2)
    package.log_flops_per_batch("f", None, Cost({"signature": "s"}), synchronous=True)
    package.log_flops_per_batch("f", None, Cost({"signature": "s"}), synchronous=True)
    again = {"signature": "s", "operators": [{"name": "aten.mm"}]}
    taken = [t for t in agents[1].wait_logs(4) if t.function == "LogFlopsPerBatch"]
    parts = [message(t) for t in sorted(taken, key=lambda t: t.message["seq"])]
    assert parts[0].pop("synchronous") is False
    # The second call finds that the connection is another, and what the first will have told there is not known then.
    assert parts == [{"operators": again}, {"operators": again}, {"signature": "s"}]


@pytest.mark.parametrize("code", ["not_found", "failed_precondition"])
def test_an_agent_that_does_not_know_a_signature(
    package: Any, flops: Flops, path: str, agents: list[Agent], code: str
) -> None:
    refusal = Reply(status=400, body={"code": code, "message": "unknown signature"})
    known = []

    def decide(taken: Taken) -> Reply:
        if "signature" in taken.message and not known:
            return refusal
        known.append(taken)
        return Reply()

    agents.append(Agent(path, decide=decide))
    package.log_flops_per_batch("f", None, Cost({"operators": OPERATORS}), None, 1, synchronous=True)
    known.clear()
    package.log_flops_per_batch("f", None, Cost({"signature": "s"}), None, 2, synchronous=True)
    package.log_flops_per_batch("f", None, Cost({"signature": "s"}), None, 3, synchronous=True)
    assert [(t.message["step"], sorted(message(t))) for t in agents[0].logs()] == [
        (1, ["operators"]),
        (2, ["operators"]),
        (3, ["signature"]),
    ]


def test_a_cost_that_comes_later_does_not_hold_up_the_training(package: Any, flops: Flops, agent: Agent) -> None:
    later = Cost()
    began = time.monotonic_ns()
    package.log_flops_per_batch("f", None, later, Context.TRAINING, 1)
    package.log_flops_per_batch("f", None, Cost({"signature": "s"}), Context.TRAINING, 2)
    package.log_system_metrics(Context.TRAINING, 3)
    assert [t.message["step"] for t in agent.wait_logs(1)] == [3]
    before = time.monotonic_ns()
    later.known({"operators": OPERATORS})
    taken = agent.wait_logs(3)[1:]
    assert [(t.message["step"], list(message(t))) for t in taken] == [(1, ["operators"]), (2, ["signature"])]
    # The time is that of the call.
    assert began <= taken[0].message["monotonicNanos"] < before


def test_costs_that_never_come_are_bounded(package: Any, flops: Flops, agent: Agent) -> None:
    never = Cost()
    for step in range(1200):
        package.log_flops_per_batch("f", None, never, None, step)
    package.log_system_metrics("x", 1)
    assert 0 < agent.wait_logs(1)[0].message["droppedCalls"] < 200
    never.known({"signature": "s"})


class Unspeakable:
    pass


@pytest.mark.parametrize(
    "batch",
    [
        RuntimeError("no shapes"),
        Cost(ValueError("no shapes")),
        Cost({"count": {"forward": Unspeakable()}}),
        Cost({"count": {"forward": float("nan")}}),
        "no cost",
        None,
        Cost([1]),
    ],
    ids=range(7),
)
def test_what_cannot_be_counted_is_said_to_be_missing(
    package: Any, flops: Flops, agent: Agent, said: Any, batch: Any
) -> None:
    package.log_flops_per_batch("f", None, batch, Context.TRAINING, 1)
    (taken,) = agent.wait_logs(1)
    assert taken.message["count"]["missingReason"]
    assert said() == []


def test_an_agent_without_the_functions(package: Any, flops: Flops, path: str, agents: list[Agent], said: Any) -> None:
    """One notice per function; afterwards nothing is traced or sent."""
    refusal = Reply(status=501, body={"code": "unimplemented", "message": "FLOPs come with a later version"})
    agents.append(Agent(path, decide=lambda taken: refusal if "Flops" in taken.function else Reply()))
    for step in range(5):
        package.log_flops_per_batch("f", None, Cost({"operators": OPERATORS}), None, step, synchronous=True)
        package.log_flops_per_epoch("f", None, Cost({"count": {"forward": "1"}}), None, step)
        package.log_system_metrics("x", step)
    assert len(agents[0].logs()) == 5
    assert flops.asked == 2
    assert len(said()) == 2
    assert "has no LogFlopsPerBatch (FLOPs come with a later version)" in said()[0]


def test_an_unimplemented_function_is_asked_for_again_at_a_new_agent(
    package: Any, flops: Flops, path: str, agents: list[Agent], client: Client
) -> None:
    agents.append(Agent(path, decide=lambda _: Reply(status=501, body={"code": "unimplemented", "message": ""})))
    package.log_flops_per_batch("f", None, Cost({"operators": OPERATORS}))
    agents[0].remove()
    agents.append(Agent(path))
    package.log_system_metrics("x", 1)
    package.log_flops_per_batch("f", None, Cost({"operators": OPERATORS}))
    assert agents[1].wait_logs(2)[1].function == "LogFlopsPerBatch"


def test_the_end_waits_for_costs(agent: Agent) -> None:
    done = script(
        """
        import sys, threading, time, types

        class Cost:
            def done(self): return False
            def result(self, timeout=None):
                time.sleep(0.5)
                return {"count": {"forward": "1"}}

        flops = types.ModuleType("prov4ml._flops")
        flops.batch_cost = lambda model, batch: Cost()
        flops.close = lambda seconds: print(25 < seconds <= 30)
        sys.modules["prov4ml._flops"] = flops
        import prov4ml
        prov4ml.log_flops_per_batch("f", None, None, "x", 1)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    (taken,) = agent.wait_logs(1)
    assert taken.message.get("count") == {"forward": "1"}, taken


def test_the_end_does_not_wait_longer_than_asked(agent: Agent) -> None:
    began = time.monotonic()
    done = script(
        """
        import sys, time, types

        class Cost:
            def done(self): return False
            def result(self, timeout=None): time.sleep(100)

        flops = types.ModuleType("prov4ml._flops")
        flops.batch_cost = lambda model, batch: Cost()
        flops.close = lambda seconds: None
        sys.modules["prov4ml._flops"] = flops
        import prov4ml
        prov4ml.log_flops_per_batch("f", None, None, "x", 1)
        """,
        PROV4ML_EXIT_SECONDS="0.2",
    )
    assert done.returncode == 0
    assert time.monotonic() - began < 20


def test_a_registered_counter(agent: Agent) -> None:
    """Needs no torch, and importing the package loads nothing for it."""
    done = script(
        """
        import sys
        import prov4ml

        class Model: pass
        class Derived(Model): pass

        print("prov4ml._flops" in sys.modules)
        print(prov4ml.register_counter(Model, lambda model, batch: (10 * len(batch), 20 * len(batch))))
        prov4ml.log_flops_per_batch("f", Derived(), [1, 2], "x", 1)
        prov4ml.log_flops_per_epoch("e", Derived(), [[1, 2], [3]], "x", 1)
        prov4ml.register_counter(Model, None)
        prov4ml.log_flops_per_batch("f", Derived(), [1, 2], "x", 2)
        print("torch" in sys.modules)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\nNone\nFalse\n", "")
    # Two of them came on the stream, one on the other connection.
    logs = sorted(agent.wait_logs(3), key=lambda taken: taken.message["seq"])
    batch, epoch, gone = (message(taken)["count"] for taken in logs)
    assert batch == {"method": "user", "forward": "20", "backward": "40"}
    assert epoch == {"method": "user", "forward": "30", "backward": "60"}
    assert "register_counter(Derived, fn)" in gone["missingReason"]


@pytest.mark.parametrize(("cls", "fn"), [(object(), len), (list, 3), (None, None)])
def test_a_registration_that_cannot_be(package: Any, said: Any, cls: Any, fn: Any) -> None:
    assert package.register_counter(cls, fn) is None
    assert len(said()) == 1
    assert "register_counter failed and the training goes on: TypeError: register_counter: the " in said()[0]
