"""Counting leaves nothing behind: hashes of everything before and after, and a training that ends bit-equal."""

from __future__ import annotations

import hashlib
import pickle
import random
import threading
from typing import Any, Callable, Dict, List

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prov4ml import _flops
from prov4ml._flops.settings import SEES_HOOKS

numpy = pytest.importorskip("numpy")
SECONDS = 120


class Noisy(nn.Module):
    """Batch norm, dropout, Python's and numpy's generators, a counter, a list, hooks: all that a forward can move."""

    def __init__(self, host: bool = True, fail: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.host = host
        self.fail = fail
        self.calls = 0
        self.history: List[float] = []
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.steps += 1
        self.history.append(1.0)
        if self.host:
            self.history.append(random.random() + numpy.random.rand())
        x = x + torch.rand(1) + torch.rand(1, generator=self.generator)
        x = self.drop(self.norm(self.conv(x))).mean((2, 3))
        if self.fail:
            raise ValueError("the model's own error")
        head: torch.Tensor = self.head(x)
        return head


class Quiet(Noisy):
    """The same without the generators that only the training thread may restore."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__(host=False, fail=fail)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.steps += 1
        x = x + torch.rand(1) + torch.rand(1, generator=self.generator)
        x = self.drop(self.norm(self.conv(x))).mean((2, 3))
        if self.fail:
            raise ValueError("the model's own error")
        head: torch.Tensor = self.head(x)
        return head


class Checkpointed(nn.Module):
    """Activation checkpointing saves and sets the random generator."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 16))
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().numpy().tobytes(), str(value.dtype), value.requires_grad, value._version
    if isinstance(value, dict):
        return [(str(key), _plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)


# What the hooks of a user saw; no closure, of which a shadow would have its own copy.
FIRED: List[str] = []


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> Dict[str, str]:
    """A digest of each thing that counting must not move."""
    things: Dict[str, Any] = {
        "parameters": [(name, id(p), _plain(p)) for name, p in model.named_parameters()],
        "buffers": [(name, id(b), _plain(b)) for name, b in model.named_buffers()],
        "gradients": [(name, None if p.grad is None else _plain(p.grad)) for name, p in model.named_parameters()],
        "optimizer": _plain(optimizer.state_dict()),
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "hooks": [
            (name, key, list(getattr(module, key)))
            for name, module in model.named_modules()
            for key in vars(module)
            if "hook" in key and hasattr(vars(module)[key], "__len__")
        ],
        "fired": list(FIRED),
        "attributes": [
            (name, sorted((key, id(value)) for key, value in vars(module).items()))
            for name, module in model.named_modules()
        ],
        "settings": [
            (name, key, value)
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (int, list)) and key != "training"
        ],
        "classes": [(name, str(type(module))) for name, module in model.named_modules()],
        "state": list(model.state_dict()),
        "python": random.getstate(),
        "numpy": _plain(numpy.random.get_state()[1]),
        "torch": _plain(torch.get_rng_state()),
        "generator": [_plain(m.generator.get_state()) for m in model.modules() if hasattr(m, "generator")],
        "modes of torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled()),
        "default dtype": str(torch.get_default_dtype()),
    }
    return {name: hashlib.sha256(pickle.dumps(thing)).hexdigest() for name, thing in things.items()}


MODELS: Dict[str, Callable[[], nn.Module]] = {
    "noisy": Noisy,
    "noisy, raises": lambda: Noisy(fail=True),
    "quiet": Quiet,
    "quiet, raises": lambda: Quiet(fail=True),
    "checkpoint": lambda: Checkpointed(False),
    "checkpoint, reentrant": lambda: Checkpointed(True),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_moves(name: str, training: bool, settle: Callable[[], None]) -> None:
    torch.manual_seed(1)
    model = MODELS[name]().train(training)
    batch = torch.randn(4, 16) if isinstance(model, Checkpointed) else torch.randn(4, 3, 12, 12)
    optimizer = torch.optim.AdamW(model.parameters())
    if "raises" not in name:
        model(batch).sum().backward()
        optimizer.step()
    FIRED.clear()
    for module in model.modules():
        module.register_forward_hook(lambda *_: FIRED.append("forward"))
        module.register_forward_pre_hook(lambda *_: FIRED.append("pre"))
        module.register_full_backward_hook(lambda *_: FIRED.append("backward"))
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: FIRED.append("global"))
    try:
        before = everything(model, optimizer)
        cost = _flops.batch_cost(model, batch)
        settle()
        # A model that raises is waited for with two hooks; they are gone when it has been given up.
        _flops.close(SECONDS)
        fragment = cost.result(SECONDS)
        after = everything(model, optimizer)
    finally:
        handle.remove()
    assert {key for key in before if before[key] != after[key]} == set()
    if "raises" in name:
        assert "the model's own error" in fragment["operators"]["missingReason"]
    else:
        assert fragment["operators"]["operators"]


ENTERED, LEAVE = threading.Event(), threading.Event()
CALLS: List[int] = []


class Gated(nn.Module):
    """Stops in its second forward: the one whose backward is run, and repeats it."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.reentrant = reentrant
        self.calls = 0

    def block(self, x: torch.Tensor) -> Any:
        self.calls += 1
        CALLS.append(1)
        if len(CALLS) == 2:
            ENTERED.set()
            LEAVE.wait(SECONDS)
        return self.second(torch.relu(self.second(x)))

    def forward(self, x: torch.Tensor) -> Any:
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)


@pytest.mark.skipif(not SEES_HOOKS, reason="torch before 2.4: counted on the training thread")
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_recomputation_beside_the_training_leaves_its_generator_alone(reentrant: bool) -> None:
    model = Gated(reentrant)
    ENTERED.clear()
    LEAVE.clear()
    CALLS.clear()
    torch.manual_seed(4)
    torch.rand(1)
    wanted = torch.get_rng_state()
    torch.manual_seed(4)
    cost = _flops.batch_cost(model, torch.empty(2, 4))
    assert ENTERED.wait(SECONDS)
    torch.rand(1)
    LEAVE.set()
    assert "RECOMPUTE" in {operator["phase"] for operator in cost.result(SECONDS)["operators"]["operators"]}
    assert len(CALLS) == 3
    assert torch.equal(torch.get_rng_state(), wanted)
    assert model.calls == 0


def _train(model: nn.Module, log: bool) -> bytes:
    """50 steps with random shapes, dropout, augmentation by three generators, and a call for every step."""
    random.seed(5)
    numpy.random.seed(6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.manual_seed(7)
    costs = []
    for step in range(50):
        size = 2 + random.randrange(6)
        x = torch.randn(size, 3, 12, 12) * float(numpy.random.rand())
        loss = model(x).square().mean()
        loss.backward()
        if log:
            costs.append(_flops.batch_cost(model, (x, torch.zeros(size))))
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            model.eval()
            with torch.no_grad():
                model(x)
            if log:
                costs.append(_flops.batch_cost(model, x))
            model.train()
    for cost in costs:
        cost.result(SECONDS)
    weights = [t.detach().numpy().tobytes() for t in model.state_dict().values()]
    return b"".join([*weights, repr(random.getstate()).encode(), torch.get_rng_state().numpy().tobytes()])


@pytest.mark.parametrize("make", [Noisy, Quiet], ids=["noisy", "quiet"])
def test_training_is_bit_equal(make: Callable[[], nn.Module]) -> None:
    results = []
    for log in (False, True, False):
        torch.manual_seed(11)
        results.append(_train(make(), log))
    assert results[0] == results[2], "the training itself is not reproducible"
    assert results[0] == results[1]


def test_no_memory_is_allocated_for_a_large_model(settle: Callable[[], None]) -> None:
    import resource

    model = nn.Sequential(*[nn.Linear(4096, 4096) for _ in range(8)])  # 512 MiB
    settle()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fragment = _flops.batch_cost(model, torch.randn(64, 4096)).result(SECONDS)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fragment["operators"]["operators"]
    assert after - before < 64 << 10, "KiB"


def test_models_are_released() -> None:
    import gc
    import weakref

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    _flops.batch_cost(model, torch.randn(2, 4)).result(SECONDS)
    weight = weakref.ref(model[0].weight)
    module = weakref.ref(model)
    del model
    gc.collect()
    assert module() is None
    assert weight() is None
