"""Says hello, writes 5 MiB, and logs its first call later: argv = directory. Goes on at each line of its input."""

import os
import sys
import time

import prov4ml

time.sleep(0.5)  # hello is sent by a thread
print("imported", flush=True)
sys.stdin.readline()
with open(os.path.join(sys.argv[1], "late"), "wb", buffering=0) as file:
    file.write(b"l" * (5 << 20))
    os.fsync(file.fileno())
print("written", flush=True)
sys.stdin.readline()
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=1)
