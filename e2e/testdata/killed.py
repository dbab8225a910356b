"""100 asynchronous calls; then prints "called" and waits to be killed."""

import time

import prov4ml

for step in range(100):
    prov4ml.log_system_metrics("training", step=step, synchronous=False)
print("called", flush=True)
time.sleep(60)
