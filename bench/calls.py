"""What a call costs on the thread that makes it: ours, beside what people call today. Runs under `prov4ml-agent run`.

Every pair of a way and a spacing is measured in blocks of calls, the blocks of a round in random order, and the round
several times: a table says the median over the rounds and the smallest and largest, so that noise shows. Four forked
children stand by, as DataLoader workers do, for whoever looks at the process tree. The thread sleeps between calls; a
call after a sleep finds colder caches and a lower clock than one behind another, so each figure states its spacing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from time import perf_counter_ns, sleep
from typing import TYPE_CHECKING, Any

import prov4ml
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

CHILDREN = 4
# Seconds between calls -> calls in a block.
SPACINGS = {0.0: 400, 0.0005: 400, 0.005: 100}
WARM_UP = 10
# A synchronous call that has waited for a second gives up, and those after it do not wait until the agent answers.
GAVE_UP_NANOSECONDS = 900_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", required=True, help="file for the measurements, JSON")
    arguments = parser.parse_args()
    children = [fork_idle() for _ in range(CHILDREN)]
    try:
        measured = measure(arguments.rounds, random.Random(arguments.seed))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    with open(arguments.result, "w", encoding="utf-8") as file:
        json.dump(measured, file)


def fork_idle() -> int:
    """Forks a child that waits."""
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    return child


def measure(rounds: int, rng: random.Random) -> dict[str, Any]:
    ways = make_ways()
    blocks: dict[tuple[str, float], list[list[int]]] = {}
    logged = 0
    given_up = 0
    for number in range(rounds):
        order = [(name, spacing) for name in ways for spacing in SPACINGS]
        rng.shuffle(order)
        for name, spacing in order:
            call = ways[name]
            calls = SPACINGS[spacing]
            for _ in range(WARM_UP):
                call()
            waits = name == "prov4ml synchronous"
            gave_up = waits and prov4ml._agent._stalled
            took = block(call, spacing, calls)
            if gave_up or (waits and max(took) >= GAVE_UP_NANOSECONDS):
                given_up += 1  # its figures would be those of calls that did not wait
            else:
                blocks.setdefault((name, spacing), []).append(took)
            if name.startswith("prov4ml"):
                logged += WARM_UP + calls
            sleep(0.2)  # what an asynchronous block has left to do must not fall into the next one
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return {
        "rounds": rounds,
        "logged": logged,
        "given_up": given_up,
        "blocks": [
            {"way": name, "spacing_seconds": spacing, "nanoseconds": nanoseconds}
            for (name, spacing), nanoseconds in blocks.items()
        ],
    }


def block(call: Callable[[], object], spacing: float, calls: int) -> list[int]:
    """Times each of some calls."""
    took = [0] * calls
    if spacing:
        for i in range(calls):
            sleep(spacing)
            start = perf_counter_ns()
            call()
            took[i] = perf_counter_ns() - start
    else:
        for i in range(calls):
            start = perf_counter_ns()
            call()
            took[i] = perf_counter_ns() - start
    return took


def make_ways() -> dict[str, Callable[[], object]]:
    """The calls to compare, by name."""
    log, training = prov4ml.log_system_metrics, prov4ml.Context.TRAINING
    me = psutil.Process()
    step = 0

    def synchronous() -> None:
        nonlocal step
        step += 1
        log(training, step)

    def asynchronous() -> None:
        nonlocal step
        step += 1
        log(training, step, synchronous=False)

    def host() -> tuple[float, float]:
        return psutil.cpu_percent(), psutil.virtual_memory().percent

    def tree() -> tuple[int, int]:
        rss = written = 0
        for process in [me, *me.children(recursive=True)]:
            rss += process.memory_info().rss
            written += process.io_counters().write_bytes
        return rss, written

    return {
        "empty": lambda: None,
        "prov4ml synchronous": synchronous,
        "prov4ml asynchronous": asynchronous,
        "psutil host": host,
        "psutil tree": tree,
    }


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
