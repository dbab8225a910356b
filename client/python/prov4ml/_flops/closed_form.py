"""Decoder-only language models whose configuration says what they execute.

For models that neither trace nor may be watched (flex_attention, compiled code): every projection of a decoder runs
once for each token, and attention has two products over the full square. Answers only where nothing is left to guess:
each weight matrix is an embedding or a projection of a known name, and all parameters are trained or none is.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch

from .capture import Blueprint
from .recorder import FORWARD, Execution, Tensor, dtype_name
from .tracing import Setting, operator_list, walk

_PROJECTIONS = frozenset(
    (
        "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "dense", "query_key_value",
        "gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "lm_head",
    )
)  # fmt: skip


def operators(model: Any, plan: Any, setting: Setting) -> Optional[Dict[str, Any]]:
    """The operators of one batch; None where the closed form does not hold."""
    config: Any = getattr(model, "config", None)
    layers: Any = getattr(config, "num_hidden_layers", None)
    heads: Any = getattr(config, "num_attention_heads", None)
    hidden: Any = getattr(config, "hidden_size", None)
    if not all(type(value) is int and value > 0 for value in (layers, heads, hidden)):
        return None
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, "lm_head"):
        return None
    tokens = _tokens(plan)
    bits = {parameter.requires_grad for parameter in model.parameters()}
    if tokens is None or len(bits) != 1:
        return None
    grad = setting.training and bits.pop()
    batch, length = tokens
    projections = _projections(model)
    if (
        projections is None
        or sum(path.endswith((".q_proj", ".qkv_proj", ".query_key_value")) for path, _ in projections) != layers
    ):
        return None
    executions: Dict[Execution, int] = {}
    for path, linear in projections:
        outputs, inputs = linear.weight.shape
        dtype = dtype_name(linear.weight.dtype)
        executions[
            _product(
                "aten.mm",
                path,
                Tensor("self", (batch * length, inputs), dtype, grad),
                Tensor("mat2", (inputs, outputs), dtype, grad),
            )
        ] = 1
    size = getattr(config, "head_dim", None) or hidden // heads
    dtype = dtype_name(model.lm_head.weight.dtype)
    square = (batch * heads, length, length)
    wide, tall = (batch * heads, length, size), (batch * heads, size, length)
    for a, b in ((wide, tall), (square, wide)):
        attention = _product("aten.bmm", "", Tensor("self", a, dtype, grad), Tensor("mat2", b, dtype, grad))
        executions[attention] = layers
    return operator_list(executions, setting, "closed_form", setting.autocast, batch, [])


def _product(name: str, module: str, a: Tensor, b: Tensor) -> Execution:
    out = Tensor("", (*a.dims[:-1], b.dims[-1]), a.dtype, a.grad)
    return Execution(name, module, FORWARD, (a, b), (out,), (), (), ())


def _tokens(plan: Any) -> Optional[Tuple[int, int]]:
    """Batch and length of the token ids."""
    for leaf in walk(plan):
        if isinstance(leaf, Blueprint) and len(leaf.size) == 2 and not leaf.dtype.is_floating_point:
            return leaf.size[0], leaf.size[1]
    return None


def _projections(model: torch.nn.Module) -> Optional[List[Tuple[str, Any]]]:
    """Every linear layer; None if any matrix is neither a known projection nor an embedding."""
    found: List[Tuple[str, Any]] = []
    for path, module in model.named_modules():
        if type(module) is torch.nn.Linear and path.split(".")[-1] in _PROJECTIONS:
            found.append((path, module))
        elif not isinstance(module, torch.nn.Embedding) and any(
            parameter is not None and parameter.dim() > 1 for parameter in module._parameters.values()
        ):
            return None
    return found
