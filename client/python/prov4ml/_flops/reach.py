"""What the code that a forward may reach names, without running it.

Some things must be known before a model is run anywhere:

* A trace on another thread must not move the training's generators. torch's are replaced inside the trace; Python's and
  numpy's global ones cannot be, so a model that names them is traced on the training thread, their state saved and
  restored.
* A step of the training must not be watched if it runs compiled code: under a dispatch mode torch runs that code
  uncompiled, with other rounding, and flex_attention refuses to run at all.
* torch before 2.4 does not say whether an operator runs inside activation checkpointing.

The answers err on the side of yes: a name is looked for in every function that can be found by name.
"""

from __future__ import annotations

import inspect
import random
import sys
import types
from typing import Any, Iterator, List, NamedTuple, Set, Tuple

_MAX_FUNCTIONS = 3000
_SEEDS = frozenset(("random", "manual_seed", "set_rng_state", "fork_rng"))
# Packages that are not searched: their functions do none of this by themselves.
_TRUSTED = frozenset(
    ("torch", "numpy", "functools", "contextlib", "typing", "collections", "math", "inspect", "warnings", "logging")
)


class Reach(NamedTuple):
    """What was found."""

    host_generators: bool
    compiled: bool
    flex_attention: bool
    checkpoint: bool


def reach(modules: List[Any]) -> Reach:
    """Searches from the forward of each module, and from the functions that are its attributes."""
    generators = compiled = flex = checkpoint = False
    seen: Set[Tuple[types.CodeType, Any]] = set()
    work: List[Tuple[Any, Any]] = []
    for module in modules:
        cls, entries = type(module), vars(module)
        compiled |= cls.__name__ == "OptimizedModule" or entries.get("_compiled_call_impl") is not None
        attention = getattr(entries.get("config"), "_attn_implementation", None)
        flex |= isinstance(attention, str) and "flex" in attention
        checkpoint |= entries.get("gradient_checkpointing") is True
        work.extend((getattr(cls, name, None), cls) for name in ("forward", "__call__"))
        work.extend((value, cls) for value in entries.values() if callable(value) and not isinstance(value, type))
    while work:
        value, cls = work.pop()
        original = getattr(value, "__dict__", {}).get("_torchdynamo_orig_callable")
        if original is not None:
            compiled = True
            value = original
        fn = _function(value)
        if fn is None or (fn.__code__, cls) in seen:
            continue
        module = fn.__module__ or ""
        flex |= module == "torch.nn.attention.flex_attention" and fn.__name__ == "flex_attention"
        checkpoint |= module == "torch.utils.checkpoint"
        if module.split(".")[0] in _TRUSTED:
            continue
        seen.add((fn.__code__, cls))
        if len(seen) > _MAX_FUNCTIONS:
            return Reach(True, True, flex, True)
        for name in set(_names(fn.__code__)):
            generators |= name in _SEEDS
            named = fn.__globals__.get(name)
            generators |= _is_generator(named)
            work.append((named, None))
            if cls is not None:
                work.append((inspect.getattr_static(cls, name, None), cls))
        for cell in fn.__closure__ or ():
            try:
                work.append((cell.cell_contents, cls))
            except ValueError:  # empty
                continue
    return Reach(generators, compiled, flex, checkpoint)


def _function(value: Any) -> Any:
    if isinstance(value, types.FunctionType):
        return value
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    else:
        value = None if _is_lazy(value) else getattr(value, "func", None)  # a partial
    return value if isinstance(value, types.FunctionType) else None


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_lazy(value: Any) -> bool:
    """Whether reading an attribute runs the object's own code, which may import a module or raise."""
    return hasattr(type(value), "__getattr__")


def _is_generator(value: Any) -> bool:
    owner = None if _is_lazy(value) else getattr(value, "__self__", None)
    if owner is None or not callable(value):
        return False
    if isinstance(owner, random.Random):
        return True
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(owner, (numpy.random.RandomState, numpy.random.Generator))
