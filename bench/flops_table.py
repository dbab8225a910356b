"""Makes the FLOPs section of docs/benchmark.md from what flops_step.py measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from typing import Any

BEGIN, END = "<!-- make bench-flops writes from here -->\n", "<!-- to here: bench-flops -->\n"

TITLES = {
    "send": "a bare `send` of 200 bytes to a waiting thread",
    "prov4ml": "`log_flops_per_batch` (recorded when it returns)",
    "prov4ml asynchronous": "`log_flops_per_batch`, `synchronous=False`",
    "FlopCounterMode": "the step inside torch's FlopCounterMode",
    "fvcore": "fvcore's traced real forward, as the original does",
}
LOGGED = ("prov4ml", "prov4ml asynchronous")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", required=True, help="result of flops_step.py")
    parser.add_argument("--traces", required=True, help="traces.jsonl of its run")
    parser.add_argument("--document", help="Markdown file whose section is replaced")
    arguments = parser.parse_args()
    with open(arguments.measured, encoding="utf-8") as file:
        measured: dict[str, Any] = json.load(file)
    logged = sum(len(b["call"]) + 1 for b in measured["blocks"] if b["way"] in LOGGED) + 1
    spans, flops = read_spans(arguments.traces)
    text = "\n".join([*machine(measured), "", *table(measured), "", *proof(measured, logged, spans, flops), ""])
    print(text)
    if arguments.document:
        replace_section(arguments.document, text)
    # Figures of calls that were lost, or counted differently, are worth nothing.
    return 0 if spans == logged and len(flops) == 1 else 1


def read_spans(path: str) -> tuple[int, set[str]]:
    """How many FLOPs spans the file holds, and which counts."""
    spans, flops = 0, set()
    with open(path, encoding="utf-8") as file:
        for line in file:
            for resource in json.loads(line)["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        if span["name"] != "log_flops_per_batch":
                            continue
                        spans += 1
                        values = {a["key"]: a["value"].get("stringValue") for a in span["attributes"]}
                        flops.add(values.get("prov4ml.flops.exact") or "none")
    return spans, flops


def machine(measured: dict[str, Any]) -> list[str]:
    model = "unknown CPU"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    one, five, _ = os.getloadavg()
    return [
        f"{os.cpu_count()} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}, torch "
        f"{measured['torch']} on one thread; load average {one:.1f} over the last minute, {five:.1f} over five."
    ]


def medians(blocks: list[dict[str, Any]], way: str, key: str) -> list[float]:
    """The median of each round, in microseconds."""
    return [statistics.median(b[key]) / 1e3 for b in blocks if b["way"] == way]


def spread(values: list[float]) -> str:
    return f"{show(statistics.median(values))} ({show(min(values))} to {show(max(values))})"


def show(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if abs(microseconds) >= 100 else f"{microseconds:.1f}"


def table(measured: dict[str, Any]) -> list[str]:
    blocks = measured["blocks"]
    plain = medians(blocks, "plain", "step")
    empty = statistics.median(medians(blocks, "plain", "call"))
    lines = [
        f"A step (ResNet-18, {measured['samples']} images of {measured['extent']} pixels, forward, backward, SGD): "
        f"{statistics.median(plain) / 1e3:,.1f} ms ({min(plain) / 1e3:,.1f} to {max(plain) / 1e3:,.1f}). Microseconds "
        f"added to a step: p50 of {measured['steps']} steps, the median of {measured['rounds']} rounds, in brackets "
        f"the smallest and the largest; an empty call measured the same way takes {show(empty)}. The thread's own CPU "
        "time leaves out waiting, for the agent and for other processes of the machine.",
        "",
        "| | added to a step | of a step | CPU time of the calling thread |",
        "|---|---|---|---|",
    ]
    for way, title in TITLES.items():
        if not any(b["way"] == way for b in blocks):
            continue
        added, cpu = added_by(blocks, way, ""), added_by(blocks, way, "_cpu")
        share = 100 * statistics.median(added) / statistics.median(plain)
        lines.append(f"| {title} | {spread(added)} | {share:.2g} % | {spread(cpu)} |")
    return lines


def added_by(blocks: list[dict[str, Any]], way: str, clock: str) -> list[float]:
    """What a way adds to a step, by round."""
    if way != "FlopCounterMode":
        return medians(blocks, way, "call" + clock)
    # It is inside the step.
    pairs = zip(medians(blocks, way, "step" + clock), medians(blocks, "plain", "step" + clock))
    return [inside - outside for inside, outside in pairs]


def proof(measured: dict[str, Any], logged: int, spans: int, flops: set[str]) -> list[str]:
    return [
        f"The first call of a batch shape, which builds the shadow of the model and starts its trace beside the "
        f"training: {measured['first_call_nanos'] / 1e6:.1f} ms. {spans} of {logged} calls are in the file of spans, "
        f"each with {', '.join(sorted(flops))} FLOP."
    ]


def replace_section(path: str, text: str) -> None:
    """Replaces what stands between the two marks."""
    with open(path, encoding="utf-8") as file:
        document = file.read()
    head, found, rest = document.partition(BEGIN)
    _, found_end, tail = rest.partition(END)
    if not found or not found_end:
        raise SystemExit(f"{path} lacks the lines {BEGIN.strip()} and {END.strip()}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(head + BEGIN + text + END + tail)


if __name__ == "__main__":
    sys.exit(main())
