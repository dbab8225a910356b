"""The job of `prov4ml-agent demo flops`: logs three models, counts them with what else is installed and by formula, and
trains with and without the calls. What it finds goes to the file that is the only argument, as JSON."""

import copy
import hashlib
import json
import os
import random
import statistics
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import prov4ml
import torch
from torch import nn
from torch.nn import functional

STEPS = 50


class Convolutions(nn.Module):
    """A stem, a depthwise and a pointwise convolution, a grouped transposed one, a head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32),
            nn.Conv2d(32, 64, 1),
            nn.Dropout(0.1),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1, groups=4),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))

    batch = staticmethod(lambda: torch.randn(8, 3, 32, 32))

    @staticmethod
    def truth():
        n = 8
        stem = 2 * n * 16 * 16 * 32 * 3 * 9
        rest = (
            2 * n * 16 * 16 * 32 * 1 * 9  # each of 32 channels by itself
            + 2 * n * 16 * 16 * 64 * 32
            + 2 * n * 16 * 16 * 64 * 8 * 16  # each of 16 x 16 inputs goes to 8 channels of its group, 4 x 4 taps
            + 2 * n * 32 * 10
        )
        # The gradients of weight and input; the images need none.
        return stem + rest, stem + 2 * rest


class Decoder(nn.Module):
    """Two decoder blocks with causal attention, and a head over the vocabulary."""

    samples, length, width, heads, inner, vocabulary, depth = 4, 64, 64, 4, 256, 500, 2

    def __init__(self):
        super().__init__()
        d = self.width
        self.embedding = nn.Embedding(self.vocabulary, d)
        self.qkv = nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(self.depth))
        self.out = nn.ModuleList(nn.Linear(d, d) for _ in range(self.depth))
        self.up = nn.ModuleList(nn.Linear(d, self.inner) for _ in range(self.depth))
        self.down = nn.ModuleList(nn.Linear(self.inner, d) for _ in range(self.depth))
        self.head = nn.Linear(d, self.vocabulary)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for qkv, out, up, down in zip(self.qkv, self.out, self.up, self.down):
            q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in qkv(x).chunk(3, 2))
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(attended.transpose(1, 2).flatten(2))
            x = x + down(functional.gelu(up(x)))
        return self.head(x)

    @staticmethod
    def batch():
        return torch.randint(0, Decoder.vocabulary, (Decoder.samples, Decoder.length))

    @staticmethod
    def truth():
        n, s, d = Decoder.samples, Decoder.length, Decoder.width
        block = 2 * n * s * d * (3 * d + d + 2 * Decoder.inner) + 2 * (2 * n * s * s * d)  # the full square, twice
        forward = Decoder.depth * block + 2 * n * s * d * Decoder.vocabulary
        return forward, 2 * forward  # every product has two operands that need a gradient


class Tagger(nn.Module):
    """A bidirectional LSTM of two layers and a head."""

    samples, length, width, hidden = 8, 32, 64, 96

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(1000, self.width)
        self.lstm = nn.LSTM(self.width, self.hidden, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * self.hidden, 10)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0][:, -1])

    @staticmethod
    def batch():
        return torch.randint(0, 1000, (Tagger.samples, Tagger.length))

    @staticmethod
    def truth():
        n, h = Tagger.samples, Tagger.hidden
        rows = n * Tagger.length
        head = 2 * n * 2 * h * 10
        recurrent = 2 * 4 * h * h * rows
        forward, backward = head, 2 * head
        for inputs in (Tagger.width, 2 * h):
            products = 2 * 4 * h * inputs * rows
            forward += 2 * (products + recurrent)  # two directions
            # The state before the first step needs no gradient.
            backward += 2 * (2 * products + 2 * recurrent - 2 * 4 * h * h * n)
        return forward, backward


MODELS = {"convolutions": Convolutions, "decoder": Decoder, "LSTM": Tagger}


def by_flop_counter_mode(model, batch):
    """A real forward and backward of a copy."""
    from torch.utils.flop_counter import FlopCounterMode

    model = copy.deepcopy(model)
    with FlopCounterMode(display=False) as counter:
        loss = model(batch).float().mean()
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return {"forward": forward, "backward": counter.get_total_flops()}


def by_fvcore(model, batch):
    """A traced real forward of a copy. What it calls a FLOP is a multiply-add."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(copy.deepcopy(model), batch)
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    return {"forward": 2 * int(analysis.total())}


def others(model, batch):
    found = {}
    for name, count in (("FlopCounterMode", by_flop_counter_mode), ("fvcore", by_fvcore)):
        try:
            found[name] = count(model, batch)
        except ImportError:
            pass  # not installed: its column is empty
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    return found


def count_models():
    rows = []
    for name, make in MODELS.items():
        torch.manual_seed(1)
        model, batch = make(), make.batch()
        prov4ml.log_flops_per_batch(name, model, batch, prov4ml.Context.TRAINING, step=0)
        forward, backward = make.truth()
        rows.append({"model": name, "forward": str(forward), "backward": str(backward), "others": others(model, batch)})
    return rows


def digest(model, optimizer):
    """Weights, statistics, optimizer state and every random generator after a training."""
    hashed = hashlib.sha256()
    tensors = list(model.state_dict().values())
    for state in optimizer.state.values():
        tensors += [value for _, value in sorted(state.items()) if isinstance(value, torch.Tensor)]
    for tensor in tensors:
        hashed.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    hashed.update(torch.get_rng_state().numpy().tobytes())
    hashed.update(repr(random.getstate()).encode())
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        hashed.update(numpy.random.get_state()[1].tobytes())
    return hashed.hexdigest()


def train(synchronous):
    """Steps with dropout, batch statistics and batches of changing size, without calls if synchronous is None."""
    torch.manual_seed(2)
    random.seed(3)
    model = Convolutions()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps, calls = [], []
    for step in range(STEPS):
        began = time.perf_counter()
        size = 8 if random.random() < 0.8 else 5
        images, target = torch.randn(size, 3, 32, 32), torch.randint(0, 10, (size,))
        optimizer.zero_grad()
        functional.cross_entropy(model(images), target).backward()
        optimizer.step()
        steps.append(time.perf_counter() - began)
        if synchronous is not None:
            began = time.perf_counter()
            prov4ml.log_flops_per_batch(
                "training", model, (images, target), prov4ml.Context.TRAINING, step, synchronous=synchronous
            )
            calls.append(time.perf_counter() - began)
    known = sorted(calls[STEPS // 2 :])  # by then both shapes are known
    return {
        "digest": digest(model, optimizer),
        "step_seconds": statistics.median(steps),
        "call_seconds": [known[0], statistics.median(known), known[int(len(known) * 0.9)]] if known else [],
        "first_call_seconds": calls[0] if calls else 0,
    }


def main():
    torch.set_num_threads(1)
    found = {"torch": torch.__version__, "models": count_models(), "steps": STEPS}
    found["trainings"] = [
        {"name": name, **train(synchronous)}
        for name, synchronous in (
            ("without calls", None),
            ("with calls", True),
            ("with asynchronous calls", False),
            ("without calls, again", None),
        )
    ]
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(found, file)


main()
