"""Trains a small CNN on real images and logs every step with prov4ml.

The images are scikit-learn's 1,797 handwritten digits. Each becomes a PNG file of its own, is brought to the disk
(fsync) and dropped from the page cache (posix_fadvise), so that the first epoch reads from the disk, not from memory;
later epochs read from the cache, and the log shows that too. Each epoch ends with a checkpoint, brought to the disk.

    prov4ml-agent run -- python examples/train.py --epochs 5

The losses are the same with and without an agent.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import tempfile
import time

import numpy as np
import prov4ml
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

TRAINING = prov4ml.Context.TRAINING
VALIDATION = prov4ml.Context.VALIDATION

SIDE = 32  # pixels; the originals have 8


class Digits(Dataset[tuple[torch.Tensor, int]]):
    """Images in files named <label>-<number>.png. A sample is read when asked for, by a worker of the DataLoader."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file = self.files[index]
        with Image.open(file) as image:
            pixels = np.asarray(image, dtype=np.float32) / 255
        return torch.from_numpy(pixels).unsqueeze(0), int(file.name[0])


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits


def write_samples(folder: pathlib.Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes one file per sample, brings them to the disk, and drops them from the page cache."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (image, label) in enumerate(zip(images, labels)):
        file = folder / f"{label}-{number:04}.png"
        picture = Image.fromarray((image * 255 / 16).astype(np.uint8))
        picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file)
        files.append(file)
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def save_checkpoint(path: pathlib.Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Replaces the checkpoint; it is on the disk when this returns."""
    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def validate(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, int]]) -> tuple[float, float]:
    """Mean loss and accuracy."""
    model.eval()
    loss, right, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            logits = model(images)
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
            count += len(labels)
    return loss / count, right / count


def train(options: argparse.Namespace, folder: pathlib.Path) -> None:
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    digits = load_digits()
    order = np.random.RandomState(options.seed).permutation(len(digits.images))
    held_out = len(order) // 5
    for name, rows in (("training", order[held_out:]), ("validation", order[:held_out])):
        write_samples(folder / name, digits.images[rows], digits.target[rows])
    training, validation = Digits(folder / "training"), Digits(folder / "validation")
    print(f"{len(training)} + {len(validation)} images in {folder}")

    shuffle = torch.Generator().manual_seed(options.seed)
    batches = DataLoader(
        training, batch_size=options.batch_size, shuffle=True, generator=shuffle, num_workers=options.workers
    )
    held_out_batches = DataLoader(validation, batch_size=options.batch_size, num_workers=options.workers)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate, momentum=0.9)

    # Any string is a context. This call closes the window of everything up to here.
    prov4ml.log_system_metrics("preparation")

    step = 0
    for epoch in range(options.epochs):
        began = time.monotonic()
        model.train()
        total = 0.0
        for images, labels in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
            step += 1
            prov4ml.log_flops_per_batch("train_flops", model, (images, labels), TRAINING, step=step)
            if step % options.log_every == 0:
                prov4ml.log_system_metrics(TRAINING, step=step)
        if step % options.log_every:
            prov4ml.log_system_metrics(TRAINING, step=step)
        prov4ml.log_flops_per_epoch("epoch_flops", model, batches, TRAINING, step=epoch)

        loss_held_out, accuracy = validate(model, held_out_batches)
        prov4ml.log_system_metrics(VALIDATION, step=epoch)

        save_checkpoint(folder / "checkpoint.pt", model, optimizer, epoch)
        prov4ml.log_system_metrics("checkpoint", step=epoch)

        print(
            f"epoch {epoch}: loss {total / len(training):.4f}, validation loss {loss_held_out:.4f}, "
            f"accuracy {accuracy:.4f}, {time.monotonic() - began:.1f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CNN on handwritten digits, logged by prov4ml.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--dir", type=pathlib.Path, help="where samples and checkpoints go; default: a temporary folder here"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--log-every", type=int, default=10, metavar="N", help="log_system_metrics every N batches")
    parser.add_argument("--workers", type=int, default=2, help="processes that read samples")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.dir
        if folder is None:
            # Beside the user's files and not in /tmp, which may be memory: its bytes would reach no disk.
            here = "." if os.access(".", os.W_OK) else None
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prov4ml-example-", dir=here)))
        train(options, folder)


if __name__ == "__main__":
    main()
