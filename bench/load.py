"""How many calls a second the agent takes, records and exports. Runs under `prov4ml-agent run --out DIR`.

Several processes make synchronous calls as fast as they are answered: each answer means that the call is measured and
committed. Then it waits until every call stands in DIR/traces.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import prov4ml

# How a span of ours stands in OTLP JSON.
SPAN = b'"name":"log_system_metrics"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--traces", required=True, help="the run's traces.jsonl")
    parser.add_argument("--result", required=True, help="file for the measurements, JSON")
    arguments = parser.parse_args()
    start = time.monotonic()
    pipes = [fork_caller(start + arguments.seconds) for _ in range(arguments.processes)]
    calls = sum(int(pipe.read()) for pipe in pipes)
    answered = time.monotonic() - start
    for _ in pipes:
        os.wait()
    exported, exports_end = wait_for(arguments.traces, calls, start, timeout=60.0)
    with open(arguments.result, "w", encoding="utf-8") as file:
        json.dump(
            {
                "processes": arguments.processes,
                "calls": calls,
                "answered_seconds": answered,
                "exported": exported,
                "exported_seconds": exports_end,
            },
            file,
        )


def fork_caller(end: float):
    """Forks a process that logs until end and writes how often into the returned pipe."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        calls = 0
        while time.monotonic() < end:
            prov4ml.log_system_metrics(prov4ml.Context.TRAINING, calls % 1000)
            calls += 1
        os.write(write, str(calls).encode())
        os._exit(0)
    os.close(write)
    return os.fdopen(read)


def wait_for(path: str, calls: int, start: float, timeout: float) -> tuple[int, float]:
    """Counts the spans in a file until all calls are there. Returns their number and the seconds since start."""
    found = 0
    rest = b""
    with open(path, "rb") as file:
        while time.monotonic() - start < timeout:
            data = file.read()
            if not data:
                if found >= calls:
                    break
                time.sleep(0.01)
                continue
            # The name may lie across two reads.
            data = rest + data
            found += data.count(SPAN)
            rest = data[-(len(SPAN) - 1) :]
    if found < calls:
        print(f"only {found} of {calls} calls were exported in {timeout:.0f} s", file=sys.stderr)
    return found, time.monotonic() - start


if __name__ == "__main__":
    main()
