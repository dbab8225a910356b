"""Logs the FLOPs of 900 steps of 5 ms on two shapes, for which nobody waits, and says when it is under way."""

import time

import prov4ml
import torch

TRAINING = prov4ml.Context.TRAINING
model = torch.nn.Linear(8, 4)
batches = [torch.randn(16, 8), torch.randn(2, 8)]
for batch in batches:
    prov4ml.log_flops_per_batch("first", model, batch, TRAINING, 0)
time.sleep(3)  # both are traced
for step in range(900):
    prov4ml.log_flops_per_batch("f", model, batches[step // 10 % 2], TRAINING, step)
    if step == 200:
        print("under way", flush=True)
    time.sleep(0.005)
