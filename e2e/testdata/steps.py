"""Logs steps, each writing its own number of MiB and flushing it: argv = directory, then MiB a step."""

import os
import sys

import prov4ml

MIB = 1 << 20
directory, sizes = sys.argv[1], [int(size) for size in sys.argv[2:]]
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=0)
for step, size in enumerate(sizes, start=1):
    with open(os.path.join(directory, f"step{step}"), "wb", buffering=0) as file:
        for _ in range(size):
            file.write(b"s" * MIB)
        os.fsync(file.fileno())
    prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=step)
