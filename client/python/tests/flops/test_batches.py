"""Every form of a batch reaches the model as a training loop would hand it over."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import pytest
import torch
from torch import nn

X = torch.randn(4, 8)
Y = torch.zeros(4, dtype=torch.long)
ONE = 2 * 4 * 8 * 16  # Linear(8, 16) on four samples
TWO = 2 * ONE


class Pair(NamedTuple):
    inputs: torch.Tensor
    target: torch.Tensor


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    other: torch.Tensor
    target: torch.Tensor


class Whole:
    """An object of the user's own, handed over as it is."""

    def __init__(self) -> None:
        self.x = X
        self.name = "graph"


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(x)


class Two(One):
    def forward(self, x: torch.Tensor, other: torch.Tensor) -> Any:  # type: ignore[override]
        return self.linear(x), self.linear(other)


class Optional_(One):
    def forward(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> Any:  # type: ignore[override]
        return self.linear(x) if mask is None else (self.linear(x), self.linear(mask))


class WithTarget(One):
    def forward(self, x: torch.Tensor, targets: Optional[torch.Tensor] = None) -> Any:  # type: ignore[override]
        return self.linear(x[:1] if targets is None else x)


class Keywords(One):
    def forward(self, **batch: torch.Tensor) -> Any:  # type: ignore[override]
        return self.linear(batch["x"])


class Positional(One):
    def forward(self, *parts: torch.Tensor) -> Any:  # type: ignore[override]
        return [self.linear(part) for part in parts]


class TakesDict(One):
    def forward(self, batch: Dict[str, torch.Tensor]) -> Any:  # type: ignore[override]
        return self.linear(batch["image"])


class TakesObject(One):
    def forward(self, batch: Any) -> Any:
        return self.linear(batch.x)


class TakesList(One):
    def forward(self, images: List[torch.Tensor], targets: Optional[Any] = None) -> Any:  # type: ignore[override]
        return [self.linear(image) for image in images]


class TakesNested(One):
    def forward(self, parts: Any) -> Any:
        return self.linear(parts["a"][0]["b"][1])


FORMS = [
    ("tensor", One, X, ONE),
    ("inputs and target", One, (X, Y), ONE),
    ("list of both", One, [X, Y], ONE),
    ("one-tuple", One, (X,), ONE),
    ("named tuple", One, Pair(X, Y), ONE),
    ("two inputs", Two, (X, X), TWO),
    ("two inputs and target", Two, (X, X, Y), TWO),
    ("tuple of inputs, target", Two, ((X, X), Y), TWO),
    ("list of inputs, target", Two, [[X, X], Y], TWO),
    ("dict", Two, {"x": X, "other": X}, TWO),
    ("dict with more", Two, {"x": X, "other": X, "label": Y, "id": 7}, TWO),
    ("dict, target", Two, ({"x": X, "other": X}, Y), TWO),
    ("dict of other names", One, {"image": X, "label": Y}, ONE),
    ("mapping", Two, collections.UserDict({"x": X, "other": X}), TWO),
    ("mapping proxy", Two, types.MappingProxyType({"x": X, "other": X}), TWO),
    ("ordered dict", Two, collections.OrderedDict(x=X, other=X), TWO),
    ("dataclass", Two, Sample(X, X, Y), TWO),
    ("args and kwargs", Optional_, ((X,), {"mask": X}), TWO),
    ("target, not mask", Optional_, (X, Y), ONE),
    ("mask by name", Optional_, {"x": X, "mask": X}, TWO),
    ("forward wants the target", WithTarget, (X, Y), ONE),
    ("keywords only", Keywords, {"x": X, "y": Y}, ONE),
    ("positional only", Positional, (X, Y), ONE),
    ("takes the dict", TakesDict, {"image": X, "label": Y}, ONE),
    ("takes an object", TakesObject, Whole(), ONE),
    ("takes an object, target", TakesObject, (Whole(), Y), ONE),
    ("takes a list", TakesList, ([X, X], [{"boxes": Y}, {"boxes": Y}]), TWO),
    ("nested", TakesNested, {"a": [{"b": (Y, X)}]}, ONE),
    ("nested, target", TakesNested, ({"a": [{"b": (Y, X)}]}, Y), ONE),
]


@pytest.mark.parametrize(("name", "make", "batch", "forward"), FORMS, ids=[row[0] for row in FORMS])
def test_form(name: str, make: Callable[[], nn.Module], batch: Any, forward: int, cost: Callable[..., Any]) -> None:
    counted = cost(make(), batch)
    assert counted.missing is None
    assert counted.forward == forward
    assert counted.complete


def test_hugging_face_batch(cost: Callable[..., Any]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    plain = cost(model, tokens).pair
    mask = torch.ones_like(tokens)
    batches = [
        {"input_ids": tokens},
        {"input_ids": tokens, "attention_mask": mask},
        {"input_ids": tokens, "attention_mask": mask, "labels": tokens},
        transformers.BatchEncoding({"input_ids": tokens, "attention_mask": mask}),
        (tokens, tokens),
    ]
    for batch in batches:
        assert cost(model, batch).pair == plain


def test_a_batch_that_fits_nothing_says_why(cost: Callable[..., Any]) -> None:
    from prov4ml import _flops

    answer = _flops.batch_cost(One(), "no tensors here")
    _flops.close(30)
    missing = answer.result(30)["operators"]["missingReason"]
    assert "str" in missing


def test_numbers_that_decide_the_cost(cost: Callable[..., Any]) -> None:
    class Repeats(One):
        def forward(self, x: torch.Tensor, times: int) -> Any:  # type: ignore[override]
            for _ in range(times):
                y = self.linear(x)
            return y

    model = Repeats()
    assert [cost(model, (X, times)).forward for times in (1, 3, 2, 5, 4, 1)] == [ONE * n for n in (1, 3, 2, 5, 4, 1)]


def test_numbers_that_do_not_are_soon_ignored(settle: Callable[[], None]) -> None:
    from prov4ml import _flops
    from prov4ml._flops import tracer

    model = One()
    for number in range(40):
        _flops.batch_cost(model, {"image": X, "id": number}).result(60)
    assert len(tracer._tracer.state(model).entries) < 10
