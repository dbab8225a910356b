"""Which operators multiply matrices, and how much, to decide between two witnesses.

These sums never leave the process: the agent counts. They only answer whether the bits of a forward trace account for
the products that its backward showed.
"""

from __future__ import annotations

from typing import Callable, Dict, Mapping, Sequence, Tuple

from .recorder import FORWARD, Execution, Tensor

Dims = Tuple[int, ...]


def _elements(dims: Sequence[int]) -> int:
    product = 1
    for extent in dims:
        product *= extent
    return product


def _matmul(execution: Execution) -> int:
    a, _ = execution.inputs[-2:]
    return _elements(execution.outputs[0].dims) * a.dims[-1]


def _convolution(execution: Execution) -> int:
    named = {tensor.argument: tensor for tensor in execution.inputs}
    weight = named["weight"].dims
    if dict(execution.scalars).get("transposed"):
        return _elements(named["input"].dims) * _elements(weight[1:])
    return _elements(execution.outputs[0].dims) * _elements(weight[1:])


def _convolution_backward(execution: Execution) -> int:
    named = {tensor.argument: tensor for tensor in execution.inputs}
    weight, scalars = named["weight"].dims, dict(execution.scalars)
    grad, source = named["grad_output"].dims, named["input"].dims
    once = _elements(source if scalars.get("transposed") else grad) * _elements(weight[1:])
    mask = scalars.get("output_mask", 3)
    return once * ((mask & 1) + (mask >> 1 & 1))


def _attention(execution: Execution) -> int:
    query, key, value = (tensor.dims for tensor in execution.inputs[:3])
    return _elements(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(execution: Execution) -> int:
    named = {tensor.argument: tensor.dims for tensor in execution.inputs}
    query, key, value = named["query"], named["key"], named["value"]
    return 2 * _elements(query[:-1]) * key[-2] * (query[-1] + value[-1])


_WORK: Dict[str, Callable[[Execution], int]] = {
    "aten.mm": _matmul,
    "aten.addmm": _matmul,
    "aten._addmm_activation": _matmul,
    "aten.bmm": _matmul,
    "aten.baddbmm": _matmul,
    "aten.convolution": _convolution,
    "aten.convolution_backward": _convolution_backward,
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten._scaled_dot_product_flash_attention": _attention,
    "aten._scaled_dot_product_efficient_attention": _attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten._scaled_dot_product_flash_attention_backward": _attention_backward,
    "aten._scaled_dot_product_efficient_attention_backward": _attention_backward,
}


def forward_work(execution: Execution) -> int:
    """Multiply-accumulates of one execution, 0 for what is no product."""
    work = _WORK.get(execution.name)
    try:
        return 0 if work is None else work(execution)
    except (IndexError, KeyError, ValueError):
        return 0


def is_product(name: str) -> bool:
    """Whether an operator multiplies matrices."""
    return name in _WORK


def derived_backward(executions: Mapping[Execution, int]) -> int:
    """Multiply-accumulates of the backward that the forward's bits imply."""
    total = 0
    for execution, count in executions.items():
        if execution.phase == FORWARD:
            total += forward_work(execution) * count * _gradients(execution)
    return total


def _gradients(execution: Execution) -> int:
    operands: Sequence[Tensor] = execution.inputs
    if execution.name in ("aten.addmm", "aten.baddbmm", "aten._addmm_activation"):
        operands = operands[-2:]
    elif execution.name == "aten.convolution":
        operands = operands[:2]
    elif execution.name.startswith("aten._scaled_dot_product"):
        return 2 if any(tensor.grad for tensor in operands) else 0
    return sum(tensor.grad for tensor in operands)
