"""What it costs to know the FLOPs of every training step: ours, beside what people do today. Runs under
`prov4ml-agent run`.

A ResNet-18 is trained on the CPU. Each way is measured in blocks of steps, the blocks of a round in random order, and
the round several times; plain steps are one of the ways. A way that is a call beside the step is timed by itself; one
that runs inside the step is timed as the whole step. The first step of each block is left out.

fvcore is the original's way: its log_flops_per_batch traces a real forward pass for every batch. A bare send is the
floor for whoever tells another thread or process anything: after a step of this size every cache is cold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import threading
import time
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import prov4ml
import torch
import torchvision
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

TRAINING = prov4ml.Context.TRAINING


class Training:
    """A model in training with a batch on each step."""

    def __init__(self, samples: int, extent: int) -> None:
        torch.manual_seed(1)
        self.model = torchvision.models.resnet18(weights=None)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.images = torch.randn(samples, 3, extent, extent)
        self.target = torch.randint(0, 1000, (samples,))
        self.number = 0

    def step(self) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.images), self.target).backward()
        self.optimizer.step()
        self.number += 1


def make_ways(training: Training) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """By name: what a step is, and what is called beside it."""
    from torch.utils.flop_counter import FlopCounterMode

    model, images, target = training.model, training.images, training.target
    log_flops = prov4ml.log_flops_per_batch

    def inside_counter() -> int:
        with FlopCounterMode(display=False) as counter:
            training.step()
        return counter.get_total_flops()

    here, there = socket.socketpair()

    def receive() -> None:
        while there.recv(4096):
            pass

    threading.Thread(target=receive, daemon=True).start()
    message = b"x" * 200
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "plain": (training.step, lambda: None),
        "send": (training.step, lambda: here.send(message)),
        "prov4ml": (
            training.step,
            lambda: log_flops("train", model, (images, target), TRAINING, training.number, synchronous=True),
        ),
        "prov4ml asynchronous": (
            training.step,
            lambda: log_flops("train", model, (images, target), TRAINING, training.number),
        ),
        "FlopCounterMode": (inside_counter, lambda: None),
    }
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError:
        print("fvcore is not installed: its row is left out", file=sys.stderr)
    else:

        def trace() -> int:
            analysis = FlopCountAnalysis(training.model, training.images)
            analysis.unsupported_ops_warnings(False)
            analysis.uncalled_modules_warnings(False)
            analysis.tracer_warnings("none")
            return int(analysis.total())

        ways["fvcore"] = (training.step, trace)
    return ways


def measure(training: Training, rounds: int, steps: int, rng: random.Random) -> list[dict[str, Any]]:
    ways = make_ways(training)
    blocks = []
    for number in range(rounds):
        order = list(ways)
        rng.shuffle(order)
        for name in order:
            step, call = ways[name]
            block: dict[str, list[int]] = {key: [] for key in ("step", "step_cpu", "call", "call_cpu")}
            for _ in range(steps + 1):
                cpu, began = thread_time_ns(), perf_counter_ns()
                step()
                stepped, stepped_cpu = perf_counter_ns(), thread_time_ns()
                called = perf_counter_ns()
                call()
                returned, called_cpu = perf_counter_ns(), thread_time_ns()
                block["step"].append(stepped - began)
                block["step_cpu"].append(stepped_cpu - cpu)
                block["call"].append(returned - called)
                block["call_cpu"].append(called_cpu - stepped_cpu)
            blocks.append({"way": name, "round": number, **{key: nanos[1:] for key, nanos in block.items()}})
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15, help="steps in a block")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--extent", type=int, default=64, help="pixels of an image's side")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", required=True, help="file for the measurements, JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training = Training(arguments.samples, arguments.extent)
    for _ in range(2):
        training.step()
    began = perf_counter_ns()
    prov4ml.log_flops_per_batch("first", training.model, (training.images, training.target), TRAINING, step=0)
    first = perf_counter_ns() - began
    time.sleep(8)  # the trace runs beside the training: not beside what is measured
    found = {
        "torch": torch.__version__,
        "samples": arguments.samples,
        "extent": arguments.extent,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "first_call_nanos": first,
        "blocks": measure(training, arguments.rounds, arguments.steps, random.Random(arguments.seed)),
    }
    with open(arguments.result, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
