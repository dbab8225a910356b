"""Fixtures: sockets, agents, clients of their own."""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
# Without a reachable agent, whatever agent this machine runs.
os.environ["PROV4ML_AGENT_SOCKET"] = "/nonexistent/agent.sock"
for name in [name for name in os.environ if name.startswith("PROV4ML_") and name != "PROV4ML_AGENT_SOCKET"]:
    del os.environ[name]
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(ROOT))

from agent import Agent  # noqa: E402

from prov4ml._client import Client  # noqa: E402
from prov4ml._notice import Notices  # noqa: E402


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A short path for a socket, named by PROV4ML_AGENT_SOCKET; nobody listens there yet."""
    with tempfile.TemporaryDirectory(prefix="p4-") as folder:
        path = f"{folder}/agent.sock"
        monkeypatch.setenv("PROV4ML_AGENT_SOCKET", path)
        yield path


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    """Agents to be closed at the end."""
    started: list[Agent] = []
    yield started
    for agent in started:
        agent.close()


@pytest.fixture
def agent(path: str, agents: list[Agent]) -> Agent:
    agents.append(Agent(path))
    return agents[0]


@pytest.fixture
def client(path: str) -> Iterator[Client]:
    """A client that has said nothing yet."""
    client = Client(Notices())
    yield client
    client.close(time.monotonic_ns())


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    """The notices so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == "prov4ml"]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, client: Client) -> Any:
    """The package with a client of the test's own behind it."""
    import prov4ml
    from prov4ml._costs import Costs

    notices = client.notices
    monkeypatch.setattr(prov4ml, "_notices", notices)
    monkeypatch.setattr(prov4ml, "_agent", client)
    monkeypatch.setattr(prov4ml, "_flops_calls", Costs(client))
    return prov4ml
