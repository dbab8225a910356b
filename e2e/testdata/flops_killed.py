"""300 calls of log_flops_per_batch that wait for nothing, on two shapes; a fork's child makes ten of its own. Then prints
"called" and waits to be killed."""

import os
import time

import prov4ml
import torch

TRAINING = prov4ml.Context.TRAINING
model = torch.nn.Linear(8, 4)
batches = [torch.randn(16, 8), torch.randn(2, 8)]

for batch in batches:
    prov4ml.log_flops_per_batch("first", model, batch, TRAINING, 0)
time.sleep(3)  # both are traced


def log(label: str, count: int) -> None:
    for step in range(count):
        # Two in a row of each shape, so that calls are repeated and are not.
        prov4ml.log_flops_per_batch(label, model, batches[step // 2 % 2], TRAINING, step)
        time.sleep(0.002)


log("mine", 300)
child = os.fork()
if child == 0:
    log("child", 10)
    time.sleep(1)
    os._exit(0)
os.waitpid(child, 0)
log("after", 5)
print("called", flush=True)
time.sleep(60)
