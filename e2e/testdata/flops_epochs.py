"""Two epochs of a small model: the first whole, the second ended after two of three batches; every batch logged."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import prov4ml
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
TRAINING = prov4ml.Context.TRAINING


def main() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(10, 8), torch.zeros(10, dtype=torch.long)), batch_size=4)
    for epoch, last in enumerate((3, 2)):
        for number, (inputs, target) in enumerate(loader):
            if number == last:
                break
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
            prov4ml.log_flops_per_batch("batches", model, (inputs, target), TRAINING, step=number)
        prov4ml.log_flops_per_epoch("epochs", model, loader, TRAINING, step=epoch)


main()
