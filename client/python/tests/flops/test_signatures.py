"""What a known signature costs, what makes a new one, and what happens to open costs."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, Callable

import pytest
import torch
from torch import nn

from prov4ml import _flops
from prov4ml._flops import tracer, watch

SECONDS = 60
X = torch.randn(4, 8)


def _net(layers: int = 3) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)])


ONE = 2 * 4 * 8 * 8


def test_the_list_is_handed_out_once(settle: Callable[[], None]) -> None:
    model = _net()
    first, second = _flops.batch_cost(model, X), _flops.batch_cost(model, X)
    a, b = first.result(SECONDS), second.result(SECONDS)
    assert set(a) == {"operators"}
    assert b == {"signature": a["operators"]["signature"]}
    known = _flops.batch_cost(model, X)
    assert known.done()
    assert known.result() == b
    assert len(b["signature"]) <= 64
    assert _flops.operators(b["signature"]) == a["operators"]
    assert json.loads(json.dumps(a)) == a
    assert _flops.operators("no such signature") is None


def test_equal_models_share_a_signature() -> None:
    one, two = _flops.batch_cost(_net(), X).result(SECONDS), _flops.batch_cost(_net(), X).result(SECONDS)
    assert two == {"signature": one["operators"]["signature"]}


@pytest.mark.parametrize("layers", [3, 200], ids=["few parameters", "many parameters"])
def test_freezing_is_noticed_within_the_bound(layers: int, cost: Callable[..., Any]) -> None:
    model = _net(layers)
    calls = -(-2 * layers // watch.SLICE)
    assert cost(model, X).backward == ONE * (2 * layers - 1)
    for number in (layers - 1, 0, layers // 2):
        model[number].weight.requires_grad_(False)
        for _ in range(calls):
            counted = cost(model, X)
        assert counted.backward == ONE * (2 * layers - 1) - ONE
        model[number].weight.requires_grad_(True)
        for _ in range(calls):
            counted = cost(model, X)
        assert counted.backward == ONE * (2 * layers - 1)


def test_a_replaced_layer_is_noticed_at_once(cost: Callable[..., Any]) -> None:
    model = _net()
    assert cost(model, X).forward == 3 * ONE
    model[2] = nn.Linear(8, 16)
    assert cost(model, X).forward == 2 * ONE + 2 * ONE


def test_an_added_layer_and_a_setting_are_noticed_within_128_calls(cost: Callable[..., Any]) -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = _net(4)
            self.depth = 1

        def forward(self, x: torch.Tensor) -> Any:
            for layer in self.layers[: self.depth]:
                x = layer(x)
            return x

    model = Grows()
    assert cost(model, X).forward == ONE
    model.depth = 3
    for _ in range(watch.CALLS):
        _flops.batch_cost(model, X)
    assert cost(model, X).forward == 3 * ONE
    model.layers.append(nn.Linear(8, 8))
    model.depth = 5
    # A change of mode is a reason to look at once.
    assert cost(model.eval(), X).forward == 5 * ONE
    assert cost(model.train(), X).forward == 5 * ONE


def test_a_step_counter_does_not_trace_for_ever(settle: Callable[[], None]) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.steps = 0

        def forward(self, x: torch.Tensor) -> Any:
            return self.linear(x)

    model = Counts()
    for step in range(10 * watch.CALLS):
        model.steps = step
        _flops.batch_cost(model, X).result(SECONDS)
    assert len(tracer._tracer.state(model).entries) <= 4


def test_a_train_flag_of_a_part_and_input_gradients_make_a_new_signature(cost: Callable[..., Any]) -> None:
    model = _net()
    assert cost(model, X).backward == 5 * ONE
    assert cost(model, X.clone().requires_grad_()).backward == 6 * ONE
    assert cost(model.eval(), X).backward == 0


def test_no_grad_around_the_call_does_not_matter(cost: Callable[..., Any]) -> None:
    model = _net()
    with torch.no_grad():
        assert cost(model, X).backward == 5 * ONE
    with torch.inference_mode():
        inside = torch.randn(5, 8)
        assert cost(_net(), inside).backward == 5 * ONE * 5 // 4


def test_threads() -> None:
    models = [_net(), _net(5)]
    failures = []

    def work(number: int) -> None:
        try:
            for step in range(50):
                rows = 1 + (step + number) % 7
                _flops.batch_cost(models[number % 2], torch.randn(rows, 8)).result(SECONDS)
        except Exception as err:  # noqa: BLE001
            failures.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(tracer._tracer.state(models[0]).entries) == 7


def test_close_completes_everything() -> None:
    class Endless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            while True:
                x = self.linear(x)

    endless, after = _flops.batch_cost(Endless(), X), _flops.batch_cost(_net(), X)
    _flops.close(0.5)
    for cost in (endless, after):
        fragment = cost.result(1)
        operators = fragment.get("operators") or _flops.operators(fragment["signature"])
        assert "process ended" in operators["missingReason"]
    assert "process was ending" in _flops.batch_cost(_net(4), X).result(1)["count"]["missingReason"]
    assert not any(thread.name == "prov4ml-flops" for thread in threading.enumerate())


def test_callbacks() -> None:
    seen = []
    cost = _flops.batch_cost(_net(), X)
    cost.add_done_callback(seen.append)
    cost.add_done_callback(lambda _: 1 / 0)
    cost.result(SECONDS)
    _flops.close(SECONDS)
    cost.add_done_callback(seen.append)
    assert seen == [cost, cost]
    with pytest.raises(TimeoutError):
        _flops.Cost().result(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _net()
    first = _flops.batch_cost(model, X).result(SECONDS)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            tracer._tracer.forked()
            known = _flops.batch_cost(model, X).result(SECONDS)
            new = _flops.batch_cost(model, torch.randn(6, 8)).result(SECONDS)
            again = _flops.batch_cost(model, X).result(SECONDS)
            os.write(writing, json.dumps([known == first, list(new), list(again)]).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        # The child's agent has heard nothing yet: it gets the operators once, without tracing them again.
        assert json.loads(pipe.read()) == [True, ["operators"], ["signature"]]


def test_only_torch_in_use_is_touched() -> None:
    import subprocess

    code = (
        "import sys, prov4ml._flops as f\n"
        "class Own:\n"
        "    def flops(self, batch): return 7 * len(batch)\n"
        "print(f.batch_cost(Own(), [1, 2]).result(), f.batch_cost(3, 4).result())\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "'forward': '14'" in done.stdout
    assert "register_counter(int, fn)" in done.stdout


def test_bad_models_never_raise() -> None:
    class Hostile(nn.Module):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("hostile")

    for model, batch in [(None, None), (Hostile.__new__(Hostile), X), (_net(), object()), (nn.LazyLinear(3), X)]:
        cost = _flops.batch_cost(model, batch)
        _flops.epoch_cost(model, batch)
        assert isinstance(cost, _flops.Cost)


def test_too_long_a_list_loses_its_modules() -> None:
    from prov4ml._flops.tracer import _fit

    operators = {
        "operators": [
            {"name": "aten.mm", "module": f"layer.{number}", "inputs": [{"dims": [number % 7]}]}
            for number in range(30_000)
        ]
    }
    text = _fit(operators)
    assert len(operators["operators"]) == 7
    assert sum(operator["count"] for operator in operators["operators"]) == 30_000
    assert "module" in operators["notes"][0]
    assert len(text) < 900 << 10
    huge = {"operators": [{"name": f"op.{number}"} for number in range(30_000)]}
    _fit(huge)
    assert huge["operators"] == []
    assert "30000" in huge["missingReason"]


def test_too_many_shapes_at_once_say_so_and_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "_MAX_WAITING", 3)
    gate = threading.Event()

    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            gate.wait(SECONDS)
            return x @ x.T

    model = Slow()
    costs = [_flops.batch_cost(model, torch.randn(rows, 8)) for rows in range(1, 9)]
    refused = [cost for cost in costs if cost.done()]
    assert len(refused) == 5
    assert "waiting to be traced" in refused[0].result()["count"]["missingReason"]
    gate.set()
    assert "operators" in costs[0].result(SECONDS)
    costs[2].result(SECONDS)
    assert "operators" in _flops.batch_cost(model, torch.randn(8, 8)).result(SECONDS)


BUSY = threading.Event()


class Slow(nn.Module):
    """A trace that is for a while at a place where a fork would be fatal, and then between two operators."""

    def forward(self, x: torch.Tensor) -> Any:
        for _ in range(100):
            BUSY.set()
            time.sleep(0.01)
            BUSY.clear()
            x = x * 2
        return x


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_fork_waits_for_the_tracing_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tracer._tracer
    cost = _flops.batch_cost(Slow(), X)
    assert BUSY.wait(SECONDS)
    began = time.monotonic()
    for _ in range(5):
        mine.before_fork()
        pid = os.fork()
        if pid == 0:
            mine.forked()
            os._exit(1 if BUSY.is_set() else 0)
        mine.after_fork()
        assert os.waitpid(pid, 0)[1] == 0
    # Not for the whole trace each time.
    assert time.monotonic() - began < 60
    assert "operators" in cost.result(SECONDS)
