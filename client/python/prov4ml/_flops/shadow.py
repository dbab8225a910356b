"""Captured structures with tensors again: meta tensors, or fake ones.

Meta tensors have shapes only. Fake tensors also have a device, so code that asks ``x.device``, and libraries that treat
tracing specially (transformers tests ``is_tracing``), work on them. Always CPU: a fake CUDA tensor would touch the
driver's context.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, ContextManager, Tuple

import torch

from .capture import Blueprint, Copier, blueprint

META = "meta"
META_LENGTHS = "meta, lengths real"
FAKE = "fake"


def mark(tensor: torch.Tensor) -> torch.Tensor:
    """Says that a real tensor belongs to the trace, so that it may be written."""
    tensor.__dict__["_prov4ml_traced"] = True
    return tensor


def is_marked(tensor: torch.Tensor) -> bool:
    """Whether a real tensor belongs to the trace."""
    return "_prov4ml_traced" in tensor.__dict__


def materialise(shell: Any, batch: Any, rung: str) -> Tuple[Copier, Any, Any, Callable[[], ContextManager[Any]]]:
    """A copy of a captured model and batch with meta or fake tensors, and the mode to run it in."""
    if rung == FAKE:
        from torch._subclasses.fake_tensor import FakeTensorMode

        mode = FakeTensorMode(allow_non_fake_inputs=False)

        def enter() -> ContextManager[Any]:
            return mode

        model_leaf = batch_leaf = _fake
    else:
        enter = contextlib.nullcontext
        model_leaf = _meta
        batch_leaf = _meta_with_values if rung == META_LENGTHS else _meta
    with enter(), torch.no_grad():
        copier = Copier(model_leaf)
        model = copier.module(shell)
        twin = Copier(batch_leaf).value(batch)
    return copier, model, twin, enter


def _meta(tensor: Any, keep: bool = False) -> torch.Tensor:
    plan = blueprint(tensor)
    if plan.keep and plan.values is not None:
        return mark(plan.values.clone())
    return _finish(torch.empty_strided(plan.size, plan.stride, dtype=plan.dtype, device="meta"), plan)


def _meta_with_values(tensor: Any, keep: bool = False) -> torch.Tensor:
    plan = blueprint(tensor, values=True)
    if plan.values is not None:
        return mark(plan.values.clone())
    return _meta(plan)


def _fake(tensor: Any, keep: bool = False) -> torch.Tensor:
    plan = blueprint(tensor)
    return _finish(torch.empty_strided(plan.size, plan.stride, dtype=plan.dtype, device="cpu"), plan)


def _finish(tensor: torch.Tensor, plan: Blueprint) -> torch.Tensor:
    if plan.parameter:
        return torch.nn.Parameter(tensor, requires_grad=plan.grad)
    return tensor.requires_grad_() if plan.grad else tensor
