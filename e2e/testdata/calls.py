"""Logs argv[1] calls of argv[2] (sync or async), argv[3] seconds apart, and prints what training computed."""

import sys
import time

import prov4ml

count, mode, pause = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
total = 0
slowest = 0.0
for step in range(count):
    total = (total * 31 + step) % 1_000_003
    before = time.monotonic()
    prov4ml.log_system_metrics("training", step=step, synchronous=mode == "sync")
    slowest = max(slowest, time.monotonic() - before)
    print(f"step {step}", flush=True)
    time.sleep(pause)
print(f"result {total}", flush=True)
print(f"slowest {slowest:.3f}", flush=True)
sys.exit(7)
