"""Writes small files: argv = directory, how many, bytes of each. Each is made dirty and flushed by itself."""

import os
import sys

import prov4ml

directory, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=0)
for number in range(count):
    with open(os.path.join(directory, str(number)), "wb", buffering=0) as file:
        file.write(b"s" * size)
        os.fsync(file.fileno())
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=1)
