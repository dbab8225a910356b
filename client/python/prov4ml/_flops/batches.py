"""Batches of other sizes, from blueprints."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import torch

from .capture import Blueprint, Copier


def same(a: Any, b: Any) -> bool:
    """Whether two captured batches have equal tensors."""
    return [_form(plan) for plan in _tensors(a)] == [_form(plan) for plan in _tensors(b)]


def same_but_size(a: Any, a_size: int, b: Any, b_size: int) -> bool:
    """Whether two captured batches differ in the number of their samples only."""
    if a is None or b is None:
        return False
    return [_form(_sized(plan, a_size, 1)) for plan in _tensors(a)] == [
        _form(_sized(plan, b_size, 1)) for plan in _tensors(b)
    ]


def resize(batch: Any, size: int, wanted: int) -> Optional[Any]:
    """A captured batch with another number of samples; None where samples are list items or packed."""
    if batch is None or not size or _holds_lists(batch, size):
        return None
    return Copier(lambda plan, keep=False: _sized(plan, size, wanted)).value(batch)


def extrapolate(one: Any, two: Any, size: int) -> Optional[Any]:
    """The batch of size samples that batches of one and two samples imply: each extent is linear in the size."""
    first, second = _tensors(one), _tensors(two)
    if len(first) != len(second) or not first:
        return None
    grown = {}
    for a, b in zip(first, second):
        if a.dtype is not b.dtype or len(a.size) != len(b.size):
            return None
        grown[id(a)] = _with_size(a, tuple(x + (size - 1) * (y - x) for x, y in zip(a.size, b.size)))
    return Copier(lambda plan, keep=False: grown[id(plan)]).value(one)


def _form(plan: Blueprint) -> Tuple[Any, ...]:
    return plan.size, plan.dtype, plan.grad


def _sized(plan: Blueprint, size: int, wanted: int) -> Blueprint:
    if not plan.size or plan.size[0] != size:
        return plan
    return _with_size(plan, (wanted, *plan.size[1:]))


def _with_size(plan: Blueprint, size: Tuple[int, ...]) -> Blueprint:
    stride: List[int] = []
    step = 1
    for extent in reversed(size):
        stride.insert(0, step)
        step *= max(extent, 1)
    return Blueprint(size, tuple(stride), plan.dtype, plan.grad)


def _tensors(batch: Any) -> List[Blueprint]:
    found: List[Blueprint] = []

    def leaf(plan: Blueprint, keep: bool = False) -> Blueprint:
        found.append(plan)
        return plan

    Copier(leaf).value(batch)
    return found


def _holds_lists(batch: Any, size: int) -> bool:
    """Whether samples are items of a list rather than rows of tensors."""
    if isinstance(batch, torch.nn.utils.rnn.PackedSequence):
        return True
    if isinstance(batch, list) and len(batch) == size and size > 2 and any(isinstance(x, Blueprint) for x in batch):
        return True
    if isinstance(batch, (list, tuple)):
        return any(_holds_lists(item, size) for item in batch)
    if isinstance(batch, dict):
        return any(_holds_lists(item, size) for item in batch.values())
    return False
