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
    logged = sum(len(b["call_nanos"]) + 1 for b in measured["blocks"] if b["way"] in LOGGED) + 1
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
    plain = medians(blocks, "plain", "step_nanos")
    step = statistics.median(plain)
    empty = statistics.median(medians(blocks, "plain", "call_nanos"))
    lines = [
        f"A step (ResNet-18, {measured['samples']} images of {measured['extent']} pixels, forward, backward, SGD) takes "
        f"{step / 1e3:,.1f} ms ({min(plain) / 1e3:,.1f} to {max(plain) / 1e3:,.1f}). Added time per step in "
        f"microseconds: p50 of {measured['steps']} steps, the median of {measured['rounds']} rounds, in brackets the "
        f"smallest and the largest; an empty call measured the same way takes {show(empty)}.",
        "",
        "| | added per step, p50 | of a step |",
        "|---|---|---|",
    ]
    for way, title in TITLES.items():
        if not any(b["way"] == way for b in blocks):
            continue
        if way == "FlopCounterMode":  # it is in the step
            added = [inside - outside for inside, outside in zip(medians(blocks, way, "step_nanos"), plain)]
        else:
            added = medians(blocks, way, "call_nanos")
        lines.append(f"| {title} | {spread(added)} | {100 * statistics.median(added) / step:.2g} % |")
    return lines


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
