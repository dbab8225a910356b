"""Writes for some seconds, itself and by children, and logs as it goes: argv = directory, seconds, seconds between two calls.

Prints "step N" after each call, and at the end "wrote N bytes".
"""

import os
import sys
import time

import prov4ml

MIB = 1 << 20
directory, seconds, every = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])


def write(name):
    with open(os.path.join(directory, name), "ab", buffering=0) as file:
        file.write(b"w" * MIB)
        os.fsync(file.fileno())


def write_in_child(name):
    pid = os.fork()
    if pid == 0:
        write(name)
        os._exit(0)
    return pid


prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=0)
print("step 0", flush=True)
started = called = time.monotonic()
wrote = step = 0
while time.monotonic() < started + seconds:
    write("own")
    os.waitpid(write_in_child("childs"), 0)
    wrote += 2 * MIB
    time.sleep(0.02)
    if time.monotonic() > called + every:
        called = time.monotonic()
        step += 1
        prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=step)
        print(f"step {step}", flush=True)
write("own")  # left for the run's end
wrote += MIB
print(f"wrote {wrote} bytes", flush=True)
