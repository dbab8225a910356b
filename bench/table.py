"""Makes the tables of docs/benchmark.md from what calls.py and load.py measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from typing import Any

WAYS = {
    "empty": "empty call",
    "prov4ml asynchronous": "`log_system_metrics`, `synchronous=False`",
    "prov4ml synchronous": "`log_system_metrics` (measured and recorded)",
    "psutil host": "psutil `cpu_percent` + `virtual_memory`",
    "psutil tree": "psutil over the tree: RSS, I/O",
}
SPACINGS = {0.0: "back to back", 0.0005: "0.5 ms apart", 0.005: "5 ms apart"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", required=True, help="result of calls.py")
    parser.add_argument("--load", required=True, help="result of load.py")
    parser.add_argument("--traces", required=True, help="traces.jsonl of the run of calls.py")
    parser.add_argument("--document", help="Markdown file whose section is replaced")
    arguments = parser.parse_args()
    calls, load = read(arguments.calls), read(arguments.load)
    spans, disk = count_spans(arguments.traces)
    text = "\n".join([*machine(disk), "", *costs(calls, spans), "", *rates(load), ""])
    print(text)
    if arguments.document:
        replace_section(arguments.document, text)
    # Figures of lost calls are worth nothing.
    return 0 if spans == calls["logged"] and load["exported"] == load["calls"] else 1


def read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def count_spans(path: str) -> tuple[int, str]:
    """Returns how many log calls the file holds, and where their disk values come from."""
    spans = 0
    sources: set[str] = set()
    with open(path, encoding="utf-8") as file:
        for line in file:
            for resource in json.loads(line)["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        if span["name"] != "log_system_metrics":
                            continue
                        spans += 1
                        for attribute in span["attributes"]:
                            if attribute["key"] == "prov4ml.source.disk":
                                sources.add(attribute["value"]["stringValue"])
    return spans, ", ".join(sorted(sources)) or "nowhere"


def machine(disk: str) -> list[str]:
    model = "unknown CPU"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    one, five, _ = os.getloadavg()
    return [
        f"{os.cpu_count()} cores of {model}, Linux {platform.release()}, Python {platform.python_version()}; "
        f"load average {one:.1f} over the last minute, {five:.1f} over five. Values from {disk}."
    ]


def costs(calls: dict[str, Any], spans: int) -> list[str]:
    blocks = {(b["way"], b["spacing_seconds"]): b["nanoseconds"] for b in calls["blocks"]}
    head = [f"p50 / p99 {name}" for name in SPACINGS.values()]
    lines = [
        f"Microseconds a call on the calling thread: the median of {calls['rounds']} rounds, in brackets the smallest "
        f"and the largest of a round. {spans:,} of {calls['logged']:,} logged calls are in the files. Blocks of "
        "synchronous calls left out, since one found no answer within a second and those after it did not wait: "
        f"{calls['given_up']}.",
        "",
        "| | " + " | ".join(head) + " |",
        "|---|" + "---|" * len(head),
    ]
    for way, title in WAYS.items():
        cells = [
            f"{over_rounds(blocks[way, spacing], 0.5)} / {over_rounds(blocks[way, spacing], 0.99)}"
            for spacing in SPACINGS
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def over_rounds(rounds: list[list[int]], quantile: float) -> str:
    """One quantile of each round in microseconds: their median and range."""
    values = []
    for nanoseconds in rounds:
        ordered = sorted(nanoseconds)
        values.append(ordered[min(int(len(ordered) * quantile), len(ordered) - 1)] / 1e3)
    return f"{show(statistics.median(values))} ({show(min(values))}-{show(max(values))})"


def show(microseconds: float) -> str:
    if microseconds >= 100:
        return f"{microseconds:,.0f}"
    return f"{microseconds:.1f}" if microseconds >= 1 else f"{microseconds:.2f}"


def rates(load: dict[str, Any]) -> list[str]:
    return [
        f"{load['processes']} processes that call as fast as they are answered: "
        f"**{load['calls'] / load['answered_seconds']:,.0f} calls/s** measured and recorded, "
        f"**{load['exported'] / load['exported_seconds']:,.0f} calls/s** as far as the spans' file "
        f"({load['exported']:,} of {load['calls']:,} calls exported)."
    ]


def replace_section(path: str, text: str) -> None:
    """Replaces what stands between the two marks."""
    begin, end = "<!-- make bench writes from here -->\n", "<!-- to here -->\n"
    with open(path, encoding="utf-8") as file:
        document = file.read()
    head, found, rest = document.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"{path} lacks the lines {begin.strip()} and {end.strip()}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(head + begin + text + end + tail)


if __name__ == "__main__":
    sys.exit(main())
