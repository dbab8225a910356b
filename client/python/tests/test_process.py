"""Processes and threads: import, fork, workers, signals, exit, kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from agent import Agent, Reply, Taken
from scripts import ROOT, script

from prov4ml import _wire
from prov4ml._client import Client


def steps(taken: list[Taken]) -> list[int]:
    return sorted(t.message["step"] for t in taken)


def test_import_brings_nothing_heavy(path: str) -> None:
    done = script(
        """
        import sys
        import prov4ml
        prov4ml.log_system_metrics(prov4ml.Context.TRAINING, 1)
        heavy = {"torch", "numpy", "prov4ml._flops", "http.client", "asyncio", "multiprocessing", "ssl", "typing"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_import_says_hello(agent: Agent) -> None:
    done = script("import prov4ml", TRACEPARENT="00-1-2-01", RANK="3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    agent.wait(lambda: len(agent.described()) == 1)
    (hello,) = agent.described()
    assert hello["environment"] == {"RANK": "3"}
    assert hello["traceparent"] == "00-1-2-01"
    assert agent.logs() == []


def test_a_script_names_itself(agent: Agent, tmp_path: Any) -> None:
    file = tmp_path / "train_me.py"
    file.write_text("import prov4ml")
    subprocess.run([sys.executable, str(file), "--lr", "1"], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    agent.wait(lambda: len(agent.described()) == 1)
    assert agent.described()[0]["script"] == "train_me.py"


def test_a_rank_that_comes_late_is_said_before_the_first_call(agent: Agent) -> None:
    done = script(
        """
        import os, prov4ml
        os.environ["RANK"] = "5"
        prov4ml.log_system_metrics("x", 1)
        os.environ["RANK"] = "6"
        prov4ml.log_system_metrics("x", 2)
        """
    )
    assert done.returncode == 0
    assert [t.message.get("environment", t.message.get("step")) for t in agent.taken] == [{}, {"RANK": "5"}, 1, 2]


def test_warnings_as_errors_are_no_errors(path: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "import prov4ml; prov4ml.log_system_metrics('x', 1.5); prov4ml.log_model(1)",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("\n") == 3, done.stderr  # the step, the absence, the name


def test_a_default_sigpipe_does_not_kill(path: str, agents: list[Agent]) -> None:
    agents.append(Agent(path))
    process = script(
        """
        import signal, sys
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        import prov4ml
        prov4ml.log_system_metrics("x", 1)
        prov4ml.log_system_metrics("x", 2, False)
        print("gone?", flush=True)
        sys.stdin.readline()
        prov4ml.log_system_metrics("x", 3)
        prov4ml.log_system_metrics("x", 4, False)
        print("alive", flush=True)
        """,
        wait=False,
    )
    assert process.stdout.readline() == "gone?\n"
    agents[0].wait_logs(2)
    agents[0].remove()
    out, err = process.communicate("\n", timeout=30)
    assert (process.returncode, out) == (0, "alive\n"), err


def test_killed_after_asynchronous_calls(agent: Agent) -> None:
    process = script(
        """
        import os, signal, prov4ml
        for step in range(100):
            prov4ml.log_system_metrics("x", step, False)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        wait=False,
    )
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert steps(agent.wait_logs(100)) == list(range(100))


# Fork.

FORK = """
import os, sys, prov4ml
prov4ml.start_run("ns", "name")
prov4ml.log_system_metrics("parent", 1)
prov4ml.log_system_metrics("parent", 2, False)
child = os.fork()
if child == 0:
    prov4ml.log_system_metrics("child", 3)
    prov4ml.log_system_metrics("child", 4, False)
    {end}
os.waitpid(child, 0)
prov4ml.log_system_metrics("parent", 5)
prov4ml.log_system_metrics("parent", 6, False)
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_fork(agent: Agent, end: str) -> None:
    done = script(FORK.format(end=end))
    assert (done.returncode, done.stderr) == (0, "")
    taken = agent.wait_logs(6)
    assert steps(taken) == [1, 2, 3, 4, 5, 6]
    parent = [t for t in taken if t.message["context"] == "parent"]
    child = [t for t in taken if t.message["context"] == "child"]
    assert len({t.peer for t in parent}) == len({t.peer for t in child}) == 1
    assert parent[0].peer != child[0].peer
    assert len({t.connection for t in parent}) == 2, "the parent's connections must outlive the child"
    assert sorted(t.message["seq"] for t in parent) == [1, 2, 3, 4]
    assert sorted(t.message["seq"] for t in child) == [1, 2]
    hellos = [t for t in agent.taken if "environment" in t.message]
    assert [t.message.get("name") for t in hellos] == [None, "name", "name"]


def test_a_forked_child_that_does_not_log_says_nothing(agent: Agent) -> None:
    done = script("import os, prov4ml\nif os.fork() == 0: os._exit(0)\nos.wait()\nprov4ml.log_system_metrics('x', 1)")
    assert done.returncode == 0
    assert len(agent.described()) == 1


def test_a_fork_without_hooks(agent: Agent) -> None:
    """A fork by a C library runs no hooks of Python's; the process id tells."""
    done = script(
        """
        import ctypes, os, prov4ml
        prov4ml.log_system_metrics("parent", 1)
        if ctypes.PyDLL(None).fork() == 0:
            prov4ml.log_system_metrics("child", 2)
            os._exit(0)
        os.wait()
        prov4ml.log_system_metrics("parent", 3)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert steps(agent.wait_logs(3)) == [1, 2, 3]
    assert len({t.peer for t in agent.logs()}) == 2


def test_fork_while_another_thread_waits_for_the_agent(path: str, agents: list[Agent]) -> None:
    agents.append(Agent(path, decide=lambda taken: Reply(delay=0.9 if taken.message["context"] == "slow" else 0)))
    done = script(
        """
        import os, threading, time, prov4ml
        thread = threading.Thread(target=prov4ml.log_system_metrics, args=("slow", 1))
        thread.start()
        time.sleep(0.1)
        if os.fork() == 0:
            began = time.monotonic()
            prov4ml.log_system_metrics("child", 2)
            os._exit(time.monotonic() - began > 0.7)
        _, status = os.wait()
        thread.join()
        prov4ml.log_system_metrics("parent", 3)
        print(status)
        """
    )
    assert (done.returncode, done.stdout) == (0, "0\n")
    assert "prov4ml" not in done.stderr  # newer Pythons have a word of their own on fork and threads
    assert steps(agents[0].wait_logs(3)) == [1, 2, 3]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(agent: Agent, tmp_path: Any, method: str) -> None:
    file = tmp_path / "script.py"
    file.write_text(
        f"""
import multiprocessing, os
import prov4ml

def work(step):
    prov4ml.log_system_metrics("worker", step)
    prov4ml.log_system_metrics("worker", step + 10, synchronous=False)

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    prov4ml.log_system_metrics("main", 100)
    workers = [context.Process(target=work, args=(step,)) for step in range(3)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
"""
    )
    done = subprocess.run(
        [sys.executable, str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    taken = agent.wait_logs(7)
    assert steps(taken) == [0, 1, 2, 10, 11, 12, 100]
    assert len({t.peer for t in taken}) == 4


def test_a_forked_worker_sends_at_its_end_what_it_could_not_before(path: str, agents: list[Agent]) -> None:
    """multiprocessing's forked workers end by os._exit and (before Python 3.12) run no atexit functions."""
    process = script(
        """
        import multiprocessing, sys
        import prov4ml

        def work(ready, go):
            prov4ml.log_system_metrics("worker", 1)
            ready.set()
            go.wait()

        context = multiprocessing.get_context("fork")
        ready, go = context.Event(), context.Event()
        worker = context.Process(target=work, args=(ready, go))
        worker.start()
        ready.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        go.set()
        worker.join()
        """,
        wait=False,
    )
    assert process.stdout.readline() == "ready\n"
    agents.append(Agent(path))
    process.communicate("\n", timeout=30)
    assert steps(agents[0].wait_logs(1)) == [1]


def test_data_loader_workers(agent: Agent) -> None:
    """Reading samples in forked workers: the parent's connections are not disturbed, a worker that logs is itself."""
    done = script(
        """
        import torch
        from torch.utils.data import DataLoader, Dataset
        import prov4ml

        class Data(Dataset):
            def __len__(self): return 8
            def __getitem__(self, index):
                if index == 5: prov4ml.log_system_metrics("worker", 1000)
                return torch.tensor(index)

        step = 0
        for epoch in range(2):
            for batch in DataLoader(Data(), batch_size=2, num_workers=2):
                step += 1
                prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step, synchronous=step % 2 == 0)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    taken = agent.wait_logs(10)
    parent = [t for t in taken if t.message["context"] == "training"]
    assert steps(parent) == list(range(1, 9))
    assert len({t.peer for t in parent}) == 1
    assert len({t.peer for t in taken}) == 3


# Threads and signals.


def test_threads(agent: Agent, client: Client) -> None:
    def work(number: int) -> None:
        for step in range(100):
            client.log(_wire.SYSTEM_METRICS, f'"step":{number * 100 + step},', step % 2 == 0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = agent.wait_logs(800)
    assert steps(taken) == list(range(800))
    assert sorted(t.message["seq"] for t in taken) == list(range(1, 801))


def test_threads_with_a_stopped_agent_wait_one_second_together(path: str, agents: list[Agent], client: Client) -> None:
    agents.append(Agent(path, decide=lambda taken: Reply(silent=not taken.streamed)))
    began = time.monotonic()
    threads = [
        threading.Thread(target=client.log, args=(_wire.SYSTEM_METRICS, f'"step":{step},', True)) for step in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.9 < time.monotonic() - began < 5  # one after the other: 6 s
    client.log(_wire.SYSTEM_METRICS, '"step":6,', True)
    assert len(agents[0].wait_logs(6)) == 6  # all but the one that is waited for


def test_a_signal_handler_may_log_while_a_call_waits(path: str, agents: list[Agent]) -> None:
    agents.append(Agent(path, decide=lambda taken: Reply(delay=0.9 if taken.message["step"] == 1 else 0)))
    done = script(
        """
        import os, signal, threading, time, prov4ml

        def handler(number, frame):
            began = time.monotonic()
            prov4ml.log_system_metrics("handler", 2)
            prov4ml.log_metric("loss", 3)
            print(time.monotonic() - began < 0.6)

        signal.signal(signal.SIGUSR1, handler)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        prov4ml.log_system_metrics("slow", 1)
        prov4ml.log_system_metrics("after", 3)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert steps(agents[0].wait_logs(3)) == [1, 2, 3]
    assert any("metrics" in described for described in agents[0].described())


def test_signals_do_not_prolong_the_wait(path: str, agents: list[Agent]) -> None:
    """Profilers send a signal every few ms."""
    agents.append(Agent(path, decide=lambda taken: Reply(silent=not taken.streamed)))
    done = script(
        """
        import signal, time, prov4ml
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        began = time.monotonic()
        prov4ml.log_system_metrics("x", 1)
        print(0.9 < time.monotonic() - began < 10)
        signal.setitimer(signal.ITIMER_REAL, 0)
        """
    )
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_ctrl_c_passes_and_leaves_the_client_in_order(path: str, agents: list[Agent]) -> None:
    agents.append(Agent(path, decide=lambda taken: Reply(delay=0.5 if taken.message["step"] == 1 else 0)))
    done = script(
        """
        import os, signal, threading, prov4ml
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            prov4ml.log_system_metrics("x", 1)
        except KeyboardInterrupt:
            print("interrupted")
        prov4ml.log_system_metrics("x", 2)
        prov4ml.log_system_metrics("x", 3, False)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
    agents[0].wait(lambda: {2, 3} <= {t.message["step"] for t in agents[0].logs()})


def test_a_lock_that_is_lost_is_given_up(agent: Agent, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come just after a thread has taken the lock."""
    monkeypatch.setattr("prov4ml._client._LOST_LOCK_NANOS", 200_000_000)
    client.log(_wire.SYSTEM_METRICS, '"step":0,', True)
    client._lock.acquire()
    began = time.monotonic()
    for step in range(1, 101):
        client.log(_wire.SYSTEM_METRICS, f'"step":{step},', True)
    assert 0.9 < time.monotonic() - began < 10  # each of them for itself: 20 s
    time.sleep(0.2)
    client.log(_wire.SYSTEM_METRICS, '"step":101,', True)
    taken = agent.wait_logs(66)
    assert steps(taken) == [*range(65), 101]
    assert sum(t.message.get("droppedCalls", 0) for t in taken) == 36


def test_a_logging_handler_may_log(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    done = script(
        """
        import logging, prov4ml

        class Handler(logging.Handler):
            def emit(self, record):
                prov4ml.log_system_metrics("handler", 2)
                raise RuntimeError("a handler's own trouble")

        logging.getLogger("prov4ml").addHandler(Handler())
        logging.raiseExceptions = False
        prov4ml.log_system_metrics("x", "no number")
        prov4ml.log_system_metrics("x", 3)
        """
    )
    assert done.returncode == 0
    assert sorted(t.message.get("step", 0) for t in agent.wait_logs(3)) == [0, 2, 3]


# The end.


def test_the_end_sends_what_is_kept(path: str, agents: list[Agent]) -> None:
    process = script(
        """
        import sys, prov4ml
        for step in range(10):
            prov4ml.log_system_metrics("x", step, step % 2 == 0)
        prov4ml.log_param("lr", 1)
        print("made", flush=True)
        sys.stdin.readline()
        """,
        wait=False,
    )
    assert process.stdout.readline() == "made\n"
    agents.append(Agent(path))
    _, err = process.communicate("\n", timeout=30)
    assert (process.returncode, err.count("prov4ml:")) == (0, 1)
    assert steps(agents[0].wait_logs(10)) == list(range(10))
    assert agents[0].described()[0]["attributes"] == {"lr": "1"}


def test_the_end_without_an_agent_is_quick_and_quiet(path: str) -> None:
    began = time.monotonic()
    done = script("import prov4ml\nfor step in range(2000): prov4ml.log_system_metrics('x', step)\nraise SystemExit(3)")
    assert time.monotonic() - began < 20  # the end would wait 30 s for an agent
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)


def test_what_a_slow_agent_has_not_read_at_the_end_is_not_lost(path: str, agents: list[Agent]) -> None:
    agents.append(Agent(path, decide=lambda taken: Reply(delay=0.3 if taken.message["step"] % 100 == 0 else 0)))
    text = """
    import prov4ml
    for step in range(500):
        prov4ml.log_system_metrics("x" * 900, step, False)
    """
    assert script(text).returncode == 0
    assert steps(agents[0].wait_logs(500)) == list(range(500))


def test_the_end_waits_until_asynchronous_calls_are_recorded(path: str, agents: list[Agent]) -> None:
    agents.append(Agent(path, decide=lambda _: Reply(delay=0.01)))
    assert script("import prov4ml\nfor step in range(20): prov4ml.log_system_metrics('x', step, False)").returncode == 0
    assert steps(agents[0].logs()) == list(range(20))


@pytest.mark.parametrize("seconds", ["0", "0.1", "nonsense", "-5", "1e99", ""])
def test_exit_seconds_in_any_form(agent: Agent, seconds: str) -> None:
    done = script("import prov4ml; prov4ml.log_system_metrics('x', 1, False)", PROV4ML_EXIT_SECONDS=seconds)
    assert (done.returncode, done.stderr) == (0, "")
    assert steps(agent.wait_logs(1)) == [1]


def test_calls_at_exit_still_arrive(agent: Agent) -> None:
    done = script(
        """
        import atexit
        late = lambda: prov4ml.log_system_metrics("late", 2)
        atexit.register(late)  # runs after the package's own
        import prov4ml
        prov4ml.log_system_metrics("x", 1)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert steps(agent.wait_logs(2)) == [1, 2]


# What is sent of the environment.


def test_only_the_list_leaves_the_process(agent: Agent) -> None:
    secrets = {
        "SLURM_JWT": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PROV4ML_TOKEN": "secret",
        "OMPI_SECRET": "secret",
        "RAY_PASSWORD": "secret",
        "HOME_SECRET": "secret",
        "MASTER_SECRET": "secret",
    }
    wanted = {
        "PROV4ML_RUN_ID": "r",
        "PROV4ML_RUN_NAME": "n",
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "3",
        "SLURM_RESTART_COUNT": "1",
        "RANK": "3",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "2",
        "OMPI_COMM_WORLD_RANK": "3",
        "PMI_RANK": "3",
        "PMIX_RANK": "3",
        "PALS_RANKID": "3",
        "FLUX_TASK_RANK": "3",
        "PET_RDZV_ID": "p",
        "JOBSET_NAME": "j",
        "POD_NAMESPACE": "s",
        "RAY_JOB_ID": "y",
    }
    assert script("import prov4ml", **secrets, **wanted).returncode == 0
    agent.wait(lambda: len(agent.described()) == 1)
    assert agent.described()[0]["environment"] == wanted
    assert b"secret" not in b"".join(agent.bytes)


def test_long_and_odd_values(agent: Agent) -> None:
    assert script("import prov4ml", RANK="x" * 5000, PROV4ML_RUN_NAME='ü "q" \udcff', PMI_RANK="").returncode == 0
    agent.wait(lambda: len(agent.described()) == 1)
    environment = agent.described()[0]["environment"]
    assert set(environment) == {"PROV4ML_RUN_NAME"}
    json.dumps(environment).encode()
