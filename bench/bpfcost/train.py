"""A training whose steps bpfcost times: ResNet-18 on the CPU, a DataLoader worker that reads a file a sample, and a
checkpoint every ten steps.

It takes orders on standard input, a JSON text in a line each, and answers how many steps it made in how many seconds.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import sys
import time

import torch
import torchvision
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

FILES, SIDE, BATCH = 64, 64, 8


class Files(Dataset[torch.Tensor]):
    """Images in files of 48 KiB, without end."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir()
        self.files = [folder / str(number) for number in range(FILES)]
        for file in self.files:
            file.write_bytes(torch.randn(3, SIDE, SIDE).numpy().tobytes())

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> torch.Tensor:
        data = bytearray(self.files[index % FILES].read_bytes())
        return torch.frombuffer(data, dtype=torch.float32).reshape(3, SIDE, SIDE)


def main() -> None:
    torch.manual_seed(1)
    folder = pathlib.Path(sys.argv[1])
    model = torchvision.models.resnet18(weights=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    target = torch.randint(0, 1000, (BATCH,))
    batches = iter(DataLoader(Files(folder / "images"), batch_size=BATCH, num_workers=1))
    number = itertools.count(1)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(next(batches)), target).backward()
        optimizer.step()
        if next(number) % 10 == 0:
            torch.save(model.state_dict(), folder / "checkpoint.pt")

    step()  # the first builds what the others use
    for line in sys.stdin:
        begin = time.monotonic()
        end, steps = begin + json.loads(line)["Seconds"], 0
        while time.monotonic() < end:
            step()
            steps += 1
        print(json.dumps({"Operations": steps, "Seconds": time.monotonic() - begin}), flush=True)


if __name__ == "__main__":
    main()
