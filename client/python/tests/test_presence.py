"""The agent is there, late, gone, back, stopped, slow, or something else altogether."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from agent import Agent, Reply, Taken
from scripts import HERE

from prov4ml import _wire
from prov4ml._client import Client, Description

METRICS = _wire.SYSTEM_METRICS
USUAL = _wire.usual("")


def log(client: Client, step: int, synchronous: bool = True) -> float:
    """One call, as the package makes it; how long it took, in seconds."""
    began = time.monotonic()
    if synchronous or not client.tell(USUAL, step):
        client.log(METRICS, f'"step":{step},', synchronous)
    return time.monotonic() - began


def steps(taken: list[Taken]) -> list[int]:
    return [t.message["step"] for t in taken]


# There.


def test_calls_go_over_one_connection_each(agent: Agent, client: Client, said: Any) -> None:
    client.hello()
    for step in range(200):
        log(client, step, step % 3 != 0)
    taken = agent.wait_logs(200)
    assert sorted(steps(taken)) == list(range(200))
    assert steps([t for t in taken if t.streamed]) == [step for step in range(200) if step % 3 == 0]
    assert len({t.connection for t in taken if t.streamed}) == 1
    assert len({t.connection for t in agent.taken if not t.streamed}) == 1
    assert sorted(t.message["seq"] for t in taken) == list(range(1, 201))
    assert len(agent.described()) == 1
    assert said() == []


def test_hello_waits_for_nothing(path: str, agents: list[Agent], client: Client) -> None:
    agents.append(Agent(path, hello=Reply(delay=0.9)))
    began = time.monotonic()
    client.hello()
    assert time.monotonic() - began < 0.8
    log(client, 1)
    assert len(agents[0].described()) == 1
    assert steps(agents[0].logs()) == [1]


def test_the_hello_is_answered_before_the_stream_begins(path: str, agents: list[Agent], client: Client) -> None:
    agents.append(Agent(path, hello=Reply(delay=0.2)))
    log(client, 1, synchronous=False)
    agents[0].wait_logs(1)
    assert [t.function for t in agents[0].taken] == ["DescribeRun", "LogSystemMetrics"]
    assert agents[0].taken[1].at - agents[0].taken[0].at >= 0.2


def test_an_asynchronous_call_is_written_in_the_call(agent: Agent, client: Client) -> None:
    for step in range(100):
        log(client, step, synchronous=False)
    # Nothing drains afterwards: what has not been written by now would never be.
    client.forked()
    assert steps(agent.wait_logs(100)) == list(range(100))


def test_the_usual_call_says_what_the_other_says(agent: Agent, client: Client) -> None:
    log(client, 0, synchronous=False)
    began = time.monotonic_ns()
    assert client.tell(_wire.usual('"context":"x",'), -5)
    client.log(METRICS, '"context":"x","step":-5,', False)
    _, usual, other = (t.message for t in agent.wait_logs(3))
    assert (usual.pop("seq"), other.pop("seq")) == (2, 3)
    assert began < usual.pop("monotonicNanos") < other.pop("monotonicNanos") < time.monotonic_ns()
    assert usual == other == {"synchronous": False, "context": "x", "step": -5}


def test_the_usual_call_does_nothing_when_something_is_not_usual(agent: Agent, client: Client) -> None:
    assert not client.tell(USUAL, 1)  # no stream
    log(client, 2, synchronous=False)
    client._put_aside(Description(name="x"))
    assert not client.tell(USUAL, 3)
    log(client, 4, synchronous=False)
    with client._lock:
        assert not client.tell(USUAL, 5)
    log(client, 6, synchronous=False)
    assert steps(agent.wait_logs(3)) == [2, 4, 6]
    assert [t.message["seq"] for t in agent.logs()] == [1, 2, 3]


# Not there.


def test_absent_is_said_once_with_socket_and_cure(path: str, client: Client, said: Any) -> None:
    client.hello()
    assert said() == []
    for step in range(50):
        log(client, step, step % 2 == 0)
    assert len(said()) == 1
    assert path in said()[0]
    assert "prov4ml-agent run" in said()[0]
    assert "PROV4ML_AGENT_SOCKET" in said()[0]


def test_a_dead_socket_is_said_with_its_mode(path: str, client: Client, said: Any) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    os.chmod(path, 0o640)
    log(client, 1)
    assert f"nobody listens on it (socket mode 0640, owner root, group {_group(path)})" in said()[0]


def _group(path: str) -> str:
    import grp

    return grp.getgrgid(os.stat(path).st_gid).gr_name


@pytest.mark.parametrize(
    "bad", ["x" * 120, "a\0b", "relative/none.sock", "unix:///none.sock", "/etc/passwd", "/", "/etc/passwd/x"]
)
def test_bad_paths(monkeypatch: pytest.MonkeyPatch, client: Client, said: Any, bad: str) -> None:
    if "\0" in bad:
        monkeypatch.setattr("prov4ml._client.socket_path", lambda: bad)
    else:
        monkeypatch.setenv("PROV4ML_AGENT_SOCKET", bad)
    client.hello()
    log(client, 1)
    log(client, 2, synchronous=False)
    client.describe(Description(name="x"))
    assert len(said()) == 1


def test_late(path: str, agents: list[Agent], client: Client, said: Any) -> None:
    """Calls made before are told, in order and with their own time, and later ones come after them."""
    client.describe(Description(name="early", attributes={"lr": "0.1"}))
    for step in range(5):
        log(client, step, step % 2 == 0)
    agents.append(Agent(path))
    time.sleep(1.1)  # the longest pause
    log(client, 5)
    log(client, 6, synchronous=False)
    taken = agents[0].wait_logs(7)
    assert sorted(steps(taken)) == list(range(7))
    assert [t.message["seq"] for t in sorted(taken, key=lambda t: t.message["step"])] == list(range(1, 8))
    made = [t.message["monotonicNanos"] for t in sorted(taken, key=lambda t: t.message["step"])]
    assert made == sorted(made)
    assert made[5] - made[4] > 1_000_000_000
    described = agents[0].described()[0]
    assert (described["name"], described["attributes"]) == ("early", {"lr": "0.1"})
    assert len(said()) == 1


def test_late_and_asynchronous_alone(path: str, agents: list[Agent], client: Client, said: Any) -> None:
    """The hello of an agent that has just come needs its time; that is no stall."""
    log(client, 0, synchronous=False)
    agents.append(Agent(path, hello=Reply(delay=0.2)))
    time.sleep(0.1)
    log(client, 1, synchronous=False)
    assert steps(agents[0].wait_logs(2)) == [0, 1]
    assert agents[0].taken[1].at - agents[0].taken[0].at >= 0.2
    assert len(said()) == 1


def test_an_attempt_to_connect_is_rare(client: Client, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    attempts = []

    def connect(path: str) -> socket.socket:
        attempts.append(path)
        raise FileNotFoundError(2, "no such file")

    monkeypatch.setattr("prov4ml._client.connect", connect)
    for step in range(2000):
        log(client, step)
    assert 1 <= len(attempts) < 20


def test_what_is_kept_is_bounded_and_the_rest_is_counted(path: str, agents: list[Agent], client: Client) -> None:
    for step in range(3000):
        log(client, step, step % 2 == 0)
    assert len(client._kept) == 1024
    agents.append(Agent(path))
    time.sleep(1.1)
    log(client, 3000)
    taken = agents[0].wait_logs(1025)
    assert sorted(steps(taken)) == list(range(3000 - 1024, 3001))
    reported = [t.message["droppedCalls"] for t in taken if "droppedCalls" in t.message]
    assert reported == [3000 - 1024]


def test_kept_bytes_are_bounded(client: Client, path: str) -> None:
    for _ in range(50):
        client.log(METRICS, f'"label":"{"x" * 500_000}",', False)
    assert sum(len(call.fields) for call in client._kept) <= 4 << 20
    assert client._kept_bytes == sum(len(call.fields) for call in client._kept)


# Gone and back.


def test_killed_and_back(path: str, agents: list[Agent], client: Client, said: Any) -> None:
    agents.append(Agent(path))
    client.describe(Description(name="run", attributes={"lr": "0.1"}))
    log(client, 1)
    log(client, 2, synchronous=False)
    agents[0].wait_logs(2)
    agents[0].remove()
    log(client, 3)
    log(client, 4, synchronous=False)
    agents.append(Agent(path))  # a new inode
    time.sleep(0.2)
    log(client, 5)
    log(client, 6, synchronous=False)
    taken = agents[1].wait_logs(4)
    assert sorted(steps(taken)) == [3, 4, 5, 6]
    described = agents[1].described()[0]
    assert (described["name"], described["attributes"]) == ("run", {"lr": "0.1"})
    assert len(said()) == 1


@pytest.mark.parametrize("synchronous", [True, False])
def test_restarted_between_two_calls(
    path: str, agents: list[Agent], client: Client, said: Any, synchronous: bool
) -> None:
    agents.append(Agent(path))
    log(client, 1, synchronous)
    agents[0].wait_logs(1)
    agents[0].remove()
    agents.append(Agent(path))
    log(client, 2, synchronous)
    agents[1].wait_logs(1)
    assert [t.function for t in agents[1].taken] == ["DescribeRun", "LogSystemMetrics"], "no hello before the call"
    assert said() == []


def test_an_idle_connection_that_was_closed_costs_no_call(
    path: str, agents: list[Agent], client: Client, said: Any
) -> None:
    hang_up = Reply(hang_up=True)
    agents.append(Agent(path, decide=lambda _: hang_up))
    for step in range(5):
        log(client, step)
    assert steps(agents[0].wait_logs(5)) == list(range(5))
    assert said() == []


def test_a_farewell_is_no_answer(path: str, agents: list[Agent], client: Client) -> None:
    """Some servers end an idle connection with an answer 408 that nobody asked for."""
    farewell = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    agents.append(Agent(path))
    log(client, 1)
    for connection in agents[0]._connections:
        connection.sendall(farewell)
    log(client, 2)
    assert 2 in steps(agents[0].logs())


def test_a_call_that_the_agent_read_before_it_died_is_counted_and_not_sent_again(
    path: str, agents: list[Agent], client: Client
) -> None:
    seen = []

    def decide(taken: Taken) -> Reply:
        seen.append(taken.message["step"])
        poison = taken.message["step"] == 1
        return Reply(silent=poison, hang_up=poison)

    agents.append(Agent(path, decide=decide))
    log(client, 1)
    log(client, 2)
    log(client, 3)
    assert seen == [1, 2, 3]
    assert [t.message.get("droppedCalls") for t in agents[0].logs()] == [1, None]


def test_a_call_that_the_agent_died_without_reading_is_sent_again(
    path: str, agents: list[Agent], client: Client
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    client.hello()
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def die() -> None:
        select.select([connection], [], [])  # the call is there
        listener.close()
        os.unlink(path)
        agents.append(Agent(path))
        connection.close()

    thread = threading.Thread(target=die)
    thread.start()
    log(client, 1)
    thread.join()
    (taken,) = agents[0].wait_logs(1)
    assert (taken.message["step"], taken.message["seq"], "droppedCalls" in taken.message) == (1, 1, False)


# Stopped or slow.


@pytest.fixture
def far(path: str, tmp_path: Any) -> Iterator[Any]:
    """An agent in a process of its own: (its process, a function that reads the calls it has taken)."""
    out = tmp_path / "taken.jsonl"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "agent.py"), path, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def taken(count: int) -> list[dict[str, Any]]:
        import json

        for _ in range(500):
            lines = [json.loads(line) for line in out.read_text().splitlines()]
            logs = [line for line in lines if line["function"] != "DescribeRun"]
            if len(logs) >= count:
                return logs
            time.sleep(0.02)
        raise AssertionError(lines)

    yield process, taken
    process.kill()
    process.wait()
    process.stdout.close()


def test_stopped_costs_one_second_once(far: Any, client: Client, said: Any) -> None:
    process, taken = far
    log(client, 0)
    os.kill(process.pid, signal.SIGSTOP)
    times = [log(client, step, step % 4 != 0) for step in range(1, 400)]
    assert len([t for t in times if t > 0.9]) == 1
    assert len(said()) == 1
    assert "did not answer" in said()[0]
    os.kill(process.pid, signal.SIGCONT)
    taken(400)
    time.sleep(0.1)
    log(client, 400)
    logs = taken(401)
    assert sorted(line["step"] for line in logs) == list(range(401))
    assert not logs[-1]["streamed"], "it answers again, so calls should wait again"
    assert len(said()) == 1


def test_stopped_agent_with_full_buffers_keeps_and_counts(far: Any, client: Client) -> None:
    process, taken = far
    log(client, 0, synchronous=False)
    os.kill(process.pid, signal.SIGSTOP)
    step, slow = 0, 0
    while len(client._kept) < 1024 or not client._dropped:  # the kernel's buffer first, then ours
        step += 1
        slow += log(client, step, synchronous=False) > 0.9
        assert step < 200_000
    assert slow <= 1  # the machine's own; a call that waited would wait each time
    assert len(client._kept) == 1024
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.5)
    log(client, step + 1)
    for _ in range(200):
        logs = taken(1)
        dropped = sum(int(line.get("droppedCalls", 0)) for line in logs)
        if len(logs) + dropped >= step + 2:
            break
        time.sleep(0.05)
    assert dropped > 0
    assert len(logs) + dropped == step + 2
    numbers = sorted(line["step"] for line in logs)
    assert numbers == sorted(set(numbers))


def test_stopped_at_import_and_at_exit(far: Any) -> None:
    from scripts import script

    process, taken = far
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    done = script(
        """
        import prov4ml
        for step in range(100):
            prov4ml.log_system_metrics("x", step)
        for step in range(100, 200):
            prov4ml.log_system_metrics("x", step, False)
        """
    )
    assert time.monotonic() - began < 30  # 200 calls that wait would take 200 s
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("prov4ml:") == 1
    os.kill(process.pid, signal.SIGCONT)
    assert sorted(line["step"] for line in taken(200)) == list(range(200))


def test_stopped_again_and_again(path: str, agents: list[Agent], client: Client) -> None:
    """An agent that needs more than a second for every call is waited for less and less often."""
    agents.append(Agent(path, decide=lambda taken: Reply(delay=0.0 if taken.streamed else 1.2)))
    waited = 0
    began = time.monotonic()
    while time.monotonic() - began < 6:
        waited += log(client, 1) > 0.5
        time.sleep(0.05)
    assert waited <= 3


def test_slow_but_in_time(path: str, agents: list[Agent], client: Client, said: Any) -> None:
    agents.append(Agent(path, decide=lambda _: Reply(delay=0.3)))
    assert log(client, 1) >= 0.3
    assert said() == []


def test_an_answer_in_pieces(path: str, agents: list[Agent], client: Client, said: Any) -> None:
    """The parts of an answer come one by one, two answers at once, and their bytes are counted right."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            got = b""
            while got.count(b"POST ") < 2:
                got += connection.recv(65536)
            for byte in answer + answer:  # the hello's and the description's
                connection.sendall(bytes((byte,)))
                time.sleep(0.001)
            connection.recv(65536)
            connection.sendall(answer[:-1])
            time.sleep(0.05)
            connection.sendall(answer[-1:])
            connection.recv(65536)

    thread = threading.Thread(target=serve)
    thread.start()
    client.hello()
    client.describe(Description(name="run"))
    log(client, 1)
    assert client._steady
    client.close(0)
    thread.join(5)
    listener.close()
    assert said() == []


# Something else.

GARBAGE = [
    b"SSH-2.0-OpenSSH\r\n",
    b"\0" * 100,
    b"HTTP/1.1 \r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: zz\r\n\r\n",
    b"a" * 100_000,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("on_hello", [True, False])
def test_garbage(path: str, agents: list[Agent], client: Client, said: Any, garbage: bytes, on_hello: bool) -> None:
    reply = Reply(raw=garbage)
    agents.append(Agent(path, decide=lambda _: reply, hello=reply if on_hello else None))
    slow = [t for t in (log(client, step, step % 3 != 0) for step in range(100)) if t > 0.9]
    assert len(slow) <= 1
    assert said()
    assert len(said()) <= 2
    assert any("no prov4ml agent" in text or "hung up" in text for text in said())


def test_hangs_up_at_once(path: str, client: Client, said: Any) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            listener.accept()[0].close()

    threading.Thread(target=serve, daemon=True).start()
    slow, step = 0, 0
    while not said() and step < 500:
        slow += log(client, step, step % 3 != 0) > 0.9
        step += 1
        time.sleep(0.01)
    over.set()
    assert slow <= 1
    assert "hangs up" in said()[0]


def test_refused_calls_are_told_once_with_the_agents_sentence(
    path: str, agents: list[Agent], client: Client, said: Any
) -> None:
    refusal = Reply(
        status=400, body={"code": "invalid_argument", "message": "context has 2000 bytes, the limit is 1024"}
    )
    agents.append(Agent(path, decide=lambda taken: refusal if taken.message["step"] % 2 else Reply()))
    for step in range(10):
        log(client, step)
    assert steps(agents[0].logs()) == [0, 2, 4, 6, 8]
    assert said() == [
        "prov4ml: the agent refused LogSystemMetrics: context has 2000 bytes, the limit is 1024 (invalid_argument)"
    ]


def test_refused_asynchronous_calls_are_told_at_the_end(
    path: str, agents: list[Agent], client: Client, said: Any
) -> None:
    refusal = Reply(status=400, body={"code": "invalid_argument", "message": "label is too long"})
    agents.append(Agent(path, decide=lambda taken: refusal if taken.message["step"] % 2 else Reply()))
    for step in range(10):
        log(client, step, synchronous=False)
    client.close(time.monotonic_ns() + 10**9)
    assert said() == ["prov4ml: the agent refused 5 asynchronous calls, the first: label is too long"]


def test_a_stream_that_the_agent_ends_is_opened_again(
    path: str, agents: list[Agent], client: Client, said: Any
) -> None:
    refusal = Reply(status=429, body={"code": "resource_exhausted", "message": "too many calls"}, hang_up=True)
    agents.append(Agent(path, decide=lambda taken: refusal if taken.message["step"] == 3 else Reply()))
    for step in range(6):
        log(client, step, synchronous=False)
        time.sleep(0.02)
    assert steps(agents[0].wait_logs(5)) == [0, 1, 2, 4, 5]
    assert said() == ["prov4ml: the agent refused LogStream: too many calls (resource_exhausted)"]


def test_a_full_queue_of_callers_is_absence(path: str, client: Client, said: Any) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(path)
    assert log(client, 1) < 0.95
    assert "full queue" in said()[0]
    waiting.close()
    listener.close()


# Descriptions.


def test_descriptions_arrive_before_the_next_call(agent: Agent, client: Client) -> None:
    client.describe(Description(name="run"))
    client.describe(Description(attributes={"lr": "0.1"}))
    client.describe(Description(metric='{"key":"loss","value":0.5}'))
    log(client, 1, synchronous=False)
    client.describe(Description(end=True))
    agent.wait_logs(1)
    hello, *rest = agent.described()
    assert {"environment", "script", "clientVersion"} <= set(hello)
    assert hello["name"] == "run"
    assert rest == [{"attributes": {"lr": "0.1"}}, {"metrics": [{"key": "loss", "value": 0.5}]}, {"end": True}]


def test_descriptions_are_kept_while_the_agent_is_away(
    path: str, agents: list[Agent], client: Client, said: Any
) -> None:
    for number in range(2000):
        client.describe(Description(metric=f'{{"key":"loss","value":{number}}}', attributes={f"p{number}": "x"}))
    agents.append(Agent(path))
    time.sleep(1.1)
    log(client, 1)
    hello = agents[0].described()[0]
    assert len(hello["attributes"]) == 128
    assert [metric["value"] for metric in hello["metrics"]] == list(range(2000 - 1024, 2000))
    assert agents[0].logs()[0].message["droppedCalls"] == 2000 - 1024
    assert len(said()) == 2


def test_metrics_survive_an_agent_that_dies_with_them(path: str, agents: list[Agent], client: Client) -> None:
    agents.append(Agent(path))
    log(client, 1)
    agents[0].remove()
    agents.append(Agent(path))
    client.describe(Description(metric='{"key":"loss","value":7}'))
    assert [d["metrics"] for d in agents[1].described() if "metrics" in d] == [[{"key": "loss", "value": 7}]]
