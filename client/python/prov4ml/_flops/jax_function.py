"""Functions under ``jax.jit``, by XLA's cost analysis of the lowered, not yet compiled, function.

Why lowered: after compilation matrix products are library calls, of which the analysis knows nothing. What XLA leaves
out of a lowered function is put right or refused here: a number that lacks something looks like one that does not.

* the body of a loop is counted once, whatever its rounds. Those of ``lax.scan`` (and ``fori_loop`` and ``map``) are
  known: the body is analysed by itself. Those of ``while_loop`` are not.
* custom calls count as nothing.
* a ``shard_map`` over several devices counts as one of them.

The analysis is best effort by contract: None, -1 and 0 mean that it does not know, and are refused.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any, Dict, Iterator, List, Mapping, Tuple

from .counters import Count, decimal, missing

METHOD = "cost_analysis"
# Custom calls that compute nothing that counts: placement, sorting, random numbers, calls back into Python.
_NO_WORK = (
    "Sharding", "SPMD", "xla.sdy.", "annotate_device_placement", "LayoutConstraint", "TopK", "mhlo.topk",
    "cu_threefry2x32", "hip_threefry2x32", "xla_python", "xla_ffi_python",
)  # fmt: skip


class RefusedError(Exception):
    """The analysis would leave something out; the message says what."""


def is_function(model: Any) -> bool:
    """Whether model is a function under jax.jit: it can be lowered for given arguments."""
    return "jax" in sys.modules and callable(getattr(model, "lower", None)) and callable(model)


def is_stage(model: Any) -> bool:
    """Whether model is what jax.jit(f).lower(...) gives, or its compile()."""
    stages = getattr(sys.modules.get("jax"), "stages", None)
    return stages is not None and isinstance(model, (stages.Lowered, stages.Compiled))


def key(batch: Any, numbers: bool) -> Any:
    """What of the arguments decides the cost; plain numbers do where some argument is static."""
    leaves, tree = sys.modules["jax"].tree_util.tree_flatten(batch)
    return tree, numbers, tuple([_leaf(leaf, numbers) for leaf in leaves])


def _leaf(leaf: Any, numbers: bool) -> Any:
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is not None and dtype is not None:
        return tuple(shape), dtype
    cls = type(leaf)
    if not numbers and cls in (int, float, bool, complex):
        return cls
    try:
        hash(leaf)
    except TypeError:
        return cls
    return cls, leaf


def arguments(function: Any, batch: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
    """The arguments that a batch stands for: all of them as a tuple, or by name, or the only one."""
    try:
        bind: Any = inspect.signature(function).bind
    except (TypeError, ValueError):
        bind = _anything
    if isinstance(batch, (tuple, list)):
        if len(batch) == 2 and isinstance(batch[0], tuple) and isinstance(batch[1], dict) and _fits(bind, *batch):
            return batch[0], batch[1]
        if _fits(bind, tuple(batch), {}):
            return tuple(batch), {}
    elif isinstance(batch, Mapping) and all(isinstance(name, str) for name in batch) and _fits(bind, (), dict(batch)):
        return (), dict(batch)
    return (batch,), {}


def _anything(*args: Any, **kwargs: Any) -> None:
    pass


def _fits(bind: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    try:
        bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def count(function: Any, args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tuple[Count, bool]:
    """The FLOPs of one call, and whether the values of plain numbers among the arguments decide them."""
    try:
        traced: Any = function.trace(*args, **kwargs) if callable(getattr(function, "trace", None)) else None
        lowered: Any = traced.lower() if traced is not None else function.lower(*args, **kwargs)
        numbers = _has_static(lowered, (args, dict(kwargs)))
    except Exception as err:  # noqa: BLE001 - JAX raises many kinds
        return missing(METHOD, f"jax could not lower the function: {type(err).__name__}: {err}"), True
    return _counted(lowered, traced.jaxpr if traced is not None else None), numbers


def stage_count(stage: Any) -> Count:
    """The FLOPs of a lowered function; a compiled one is refused."""
    if isinstance(stage, sys.modules["jax"].stages.Compiled):
        reason = "a compiled function's analysis knows no library calls: pass jax.jit's function or .lower(...)"
        return missing(METHOD, reason)
    return _counted(stage, None)


def _counted(lowered: Any, jaxpr: Any) -> Count:
    try:
        _refuse_custom_calls(lowered, jaxpr is None)
        flops = _flops(lowered, False) + (_rounds(jaxpr.jaxpr) if jaxpr is not None else 0.0)
        return {"method": METHOD, "forward": decimal(flops, "flops", zero=False)}
    except (RefusedError, ValueError) as err:
        return missing(METHOD, f"jax's cost_analysis does not know: {err}")
    except Exception as err:  # noqa: BLE001 - JAX raises many kinds
        return missing(METHOD, f"jax's cost_analysis failed: {type(err).__name__}: {err}")


def _flops(lowered: Any, zero: bool) -> float:
    """What the analysis says; a loop's body may have nothing that costs."""
    analysis = lowered.cost_analysis()
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if len(analysis) == 1 else None
    if not isinstance(analysis, Mapping):
        raise RefusedError(f"it answered {analysis!r:.60}")
    flops = analysis.get("flops", 0.0 if zero else None)
    decimal(flops, "flops", zero=zero)
    return float(flops)


def _has_static(lowered: Any, given: Any) -> bool:
    """Whether some argument is part of the program rather than an input."""
    leaves = sys.modules["jax"].tree_util.tree_leaves
    info = getattr(lowered, "args_info", None)
    return info is None or len(leaves(info)) != len(leaves(given))


def _refuse_custom_calls(lowered: Any, loops: bool) -> None:
    """Looks through the program for what the analysis passes over."""
    ir = getattr(lowered, "compiler_ir", None)
    if ir is None:
        return
    for operation in _operations(ir().operation):
        if operation.name == "stablehlo.custom_call":
            target = str(operation.attributes["call_target_name"]).strip('"')
            if not target.startswith(_NO_WORK):
                raise RefusedError(f"it counts the custom call {target} as nothing")
        elif loops and operation.name == "stablehlo.while":
            raise RefusedError("it counts a loop's body once: pass jax.jit's function, whose loops can be seen")


def _operations(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield inner.operation
                yield from _operations(inner.operation)


def _rounds(jaxpr: Any) -> float:
    """What the analysis of a program lacks: the further rounds of its loops."""
    lacking = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "while":
            raise RefusedError("the rounds of a while_loop depend on its data")
        if name == "pallas_call":
            raise RefusedError("it does not look into a Pallas kernel")
        if name == "shard_map" and getattr(parameters.get("mesh"), "size", 1) > 1:
            raise RefusedError("it counts a shard_map as one of its devices")
        inner = [_rounds(part) for part in _parts(parameters)]
        if name == "scan":
            once = _body_flops(parameters["jaxpr"])
            length, unroll = parameters["length"], max(int(parameters.get("unroll", 1)), 1)
            # A loop of `unroll` copies, and the rest beside it.
            copies = unroll + length % unroll
            lacking += length * (once + sum(inner)) - copies * once
        elif name == "cond":
            lacking += max(inner, default=0.0)  # as the analysis takes the dearest branch
        else:
            lacking += sum(inner)
    return lacking


def _parts(parameters: Mapping[str, Any]) -> List[Any]:
    """The programs inside an equation."""
    found = []
    for value in parameters.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                found.append(part)
    return found


def _body_flops(body: Any) -> float:
    jax = sys.modules["jax"]
    run = importlib.import_module("jax.extend.core").jaxpr_as_fun(body)
    shapes = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in body.jaxpr.invars]
    return _flops(jax.jit(run).lower(*shapes), True)
