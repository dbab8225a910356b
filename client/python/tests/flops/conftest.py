"""The agent's own arithmetic for the tests of the tracer: what a trace amounts to, and fresh caches."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NoReturn, Optional

import pytest

from prov4ml import _flops
from prov4ml._flops import tracer

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[4]
SECONDS = 300


class _Untraceable(pytest.Module):
    """A file of tests where torch is not installed: there is nothing to trace, and the run says so."""

    def collect(self) -> NoReturn:
        pytest.skip("the Python in PYTHON has no torch", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Optional[pytest.Module]:
    if importlib.util.find_spec("torch"):
        return None
    module: pytest.Module = _Untraceable.from_parent(parent, path=module_path)
    return module


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Dict[str, Any]], Dict[str, Any]]:
    """Counts an OperatorList with the agent's package flops, by FLOPS_COUNT_PROGRAM if it is built already."""
    program = os.environ.get("FLOPS_COUNT_PROGRAM") or str(tmp_path_factory.mktemp("count") / "count")
    if "FLOPS_COUNT_PROGRAM" not in os.environ:
        go = shutil.which("go") or "/usr/local/go/bin/go"
        subprocess.run([go, "build", "-o", program, "./flops/internal/count"], cwd=ROOT, check=True)

    def count(operators: Dict[str, Any]) -> Dict[str, Any]:
        done = subprocess.run([program], input=json.dumps(operators), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answer: Dict[str, Any] = json.loads(done.stdout)
        return answer

    return count


class Cost:
    """One batch's cost: the list that was traced and what the agent makes of it."""

    def __init__(self, operators: Dict[str, Any], counted: Dict[str, Any]) -> None:
        self.operators = operators
        self.method = operators.get("method")
        self.notes = operators.get("notes", [])
        self.missing = operators.get("missingReason")
        self.forward = int(counted["forward"])
        self.backward = int(counted["backward"])
        self.recompute = int(counted["recompute"])
        self.complete = counted["complete"]
        self.unknown = counted["unknown"]
        self.counted = counted

    @property
    def pair(self) -> "tuple[int, int]":
        return self.forward, self.backward


@pytest.fixture
def cost(counter: Callable[[Dict[str, Any]], Dict[str, Any]]) -> Callable[..., Cost]:
    """cost(model, batch, step): the cost of one batch; step, if given, is a step that may be watched."""

    def of(model: Any, batch: Any, step: Any = None) -> Cost:
        answer = _flops.batch_cost(model, batch)
        if not answer.done():
            # What only this thread may do is done in its next call.
            _settle()
            _flops.batch_cost(model, batch)
        if step is not None:
            step()
        fragment = answer.result(SECONDS)
        operators = fragment.get("operators") or _flops.operators(fragment["signature"])
        return Cost(operators, counter(operators))

    return of


def _settle() -> None:
    import torch

    torch.set_num_threads(1)
    _flops.batch_cost(torch.nn.Identity(), torch.empty(1)).result(SECONDS)


@pytest.fixture
def settle() -> Callable[[], None]:
    """Waits for the tracing thread to have nothing to do."""
    return _settle


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process's caches, new for each test."""
    mine = tracer.Tracer()
    monkeypatch.setattr(tracer, "_tracer", mine)
    yield
    mine.close(SECONDS)
