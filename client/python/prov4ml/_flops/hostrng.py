"""Whether a model's own code may draw from Python's or numpy's random generators.

A trace on another thread must not move the training's generators. torch's are replaced inside the trace; Python's and
numpy's global ones cannot be, so a model that names them is traced on the training thread, their state saved and
restored. The answer errs on the side of yes: it looks for the name in every function that a forward may reach.
"""

from __future__ import annotations

import inspect
import random
import sys
import types
from typing import Any, Iterator, List, Set, Tuple

_MAX_FUNCTIONS = 3000
# Packages whose functions do not draw from these generators in a forward.
_TRUSTED = frozenset(
    ("torch", "numpy", "functools", "contextlib", "typing", "collections", "math", "inspect", "warnings")
)


def uses_host_generators(modules: List[Any]) -> bool:
    """Whether code that a forward of these modules may reach names random or numpy.random."""
    seen: Set[Tuple[types.CodeType, Any]] = set()
    work: List[Tuple[Any, Any]] = []
    for module in modules:
        cls = type(module)
        work.extend((getattr(cls, name, None), cls) for name in ("forward", "__call__"))
        work.extend((value, cls) for value in vars(module).values() if callable(value) and not isinstance(value, type))
    while work:
        value, cls = work.pop()
        fn = _function(value)
        if fn is None or (fn.__code__, cls) in seen or (fn.__module__ or "").split(".")[0] in _TRUSTED:
            continue
        seen.add((fn.__code__, cls))
        if len(seen) > _MAX_FUNCTIONS:
            return True
        names = set(_names(fn.__code__))
        if "random" in names:
            return True
        for name in names:
            named = fn.__globals__.get(name)
            if _is_generator(named):
                return True
            work.append((named, None))
            if cls is not None:
                work.append((inspect.getattr_static(cls, name, None), cls))
        for cell in fn.__closure__ or ():
            try:
                work.append((cell.cell_contents, cls))
            except ValueError:
                continue
    return False


def _function(value: Any) -> Any:
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "func", value) if not isinstance(value, types.FunctionType) else value
    return value if isinstance(value, types.FunctionType) else None


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_generator(value: Any) -> bool:
    owner = getattr(value, "__self__", None)
    if owner is None or not callable(value):
        return False
    if isinstance(owner, random.Random):
        return True
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(owner, (numpy.random.RandomState, numpy.random.Generator))
