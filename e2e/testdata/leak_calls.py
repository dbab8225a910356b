"""Logs as fast as it is answered. Each line of standard input says how often; prints "logged N" when all calls are answered.

argv = how many different steps the calls have, how many calls are told (asynchronous) between two that are answered.
"""

import sys

import prov4ml

steps, told = int(sys.argv[1]), int(sys.argv[2])
total = 0
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=0)
print("ready", flush=True)
for line in sys.stdin:
    last = total + int(line) - 1
    for number in range(total, last + 1):
        synchronous = number == last or number % (told + 1) == 0
        prov4ml.log_system_metrics(prov4ml.Context.TRAINING, number % steps, synchronous)
    total = last + 1
    print(f"logged {total}", flush=True)
