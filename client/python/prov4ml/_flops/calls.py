"""How a batch is handed to a model: the ways a training loop would write it, most likely first.

    tensor                    model(batch)
    (inputs, target)          model(inputs), by the rules of this list for the inputs; both, when forward wants a target
    (a, b, target), [a, b]    model(a, b), as many as forward requires
    mapping, dataclass        model(**batch), the names that forward has; the whole, when forward has none of them
    (args, kwargs)            model(*args, **kwargs)
    any other object          model(batch)

The first that the shadow accepts is used, and remembered for the model.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

_TARGETS = frozenset(("gt", "label", "labels", "target", "targets", "y", "y_true"))
_INPUTS = (
    "x", "input", "inputs", "image", "images", "pixel_values", "input_ids", "img", "data", "features", "input_features",
    "input_values", "src", "text", "tokens",
)  # fmt: skip
_MAX_CALLS = 8


class Call(NamedTuple):
    """Arguments for the model."""

    args: Tuple[Any, ...]
    kwargs: Dict[str, Any]


class _Wants(NamedTuple):
    """What a forward takes."""

    required: List[str]
    optional: List[str]
    any_positional: bool
    any_keyword: bool

    @property
    def names(self) -> List[str]:
        return self.required + self.optional


def _wants(forward: Callable[..., Any]) -> _Wants:
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return _Wants([], [], True, False)
    required, optional = [], []
    any_positional = any_keyword = False
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            any_positional = True
        elif parameter.kind is parameter.VAR_KEYWORD:
            any_keyword = True
        elif parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            optional.append(parameter.name)
    return _Wants(required, optional, any_positional, any_keyword)


def calls(forward: Callable[..., Any], batch: Any) -> List[Call]:
    """Every way worth trying."""
    found: List[Call] = []
    for call in _calls(_wants(forward), batch, 0):
        if not any(_same(call, other) for other in found):
            found.append(call)
        if len(found) == _MAX_CALLS:
            break
    return found


def _same(a: Call, b: Call) -> bool:
    return (
        len(a.args) == len(b.args)
        and all(x is y for x, y in zip(a.args, b.args))
        and a.kwargs.keys() == b.kwargs.keys()
        and all(a.kwargs[key] is b.kwargs[key] for key in a.kwargs)
    )


def fields(batch: Any) -> Optional[Dict[str, Any]]:
    """The named parts of a mapping or a dataclass; None for anything else."""
    if isinstance(batch, collections.abc.Mapping):
        return {key: batch[key] for key in batch} if all(isinstance(key, str) for key in batch) else None
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {
            field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if hasattr(batch, field.name)
        }
    return None


def _calls(wants: _Wants, batch: Any, depth: int) -> Iterator[Call]:
    named = fields(batch)
    if named is not None:
        yield from _named(wants, named, batch)
        return
    if isinstance(batch, (tuple, list)) and not _is_packed(batch) and batch and depth < 4:
        yield from _sequence(wants, batch, depth)
    yield Call((batch,), {})


def _is_packed(batch: Any) -> bool:
    return type(batch).__name__ == "PackedSequence"


def _sequence(wants: _Wants, batch: Sequence[Any], depth: int) -> Iterator[Call]:
    items = list(batch)
    names = getattr(batch, "_fields", None)
    if names is not None and wants.required and all(name in names for name in wants.required):
        yield from _named(wants, dict(zip(names, items)), batch)
    count = len(wants.required)
    pair = len(items) == 2 and isinstance(items[0], (tuple, list)) and isinstance(items[1], dict) and items[1]
    if pair and all(key in wants.names for key in items[1]):
        yield Call(tuple(items[0]), dict(items[1]))
    if count >= 2:
        if len(items) >= count:
            yield Call(tuple(items[:count]), {})
        if isinstance(items[0], (tuple, list)) and len(items[0]) >= count:
            yield Call(tuple(items[0][:count]), {})
        yield from _calls(wants, items[0], depth + 1)
        return
    positional = wants.names
    if len(items) == 2 and len(positional) >= 2 and positional[1] in _TARGETS:
        yield Call(tuple(items), {})
    if isinstance(items[0], (tuple, list)) and not _is_packed(items[0]):
        # One argument that is itself a collection (a list of images) before its parts.
        yield Call((items[0],), {})
    yield from _calls(wants, items[0], depth + 1)
    if len(items) > 1 and (wants.any_positional or len(items) <= len(positional)):
        yield Call(tuple(items), {})


def _named(wants: _Wants, named: Dict[str, Any], batch: Any) -> Iterator[Call]:
    known = {key: value for key, value in named.items() if key in wants.names}
    complete = all(name in named for name in wants.required)
    if complete and (known or wants.any_keyword):
        if wants.any_keyword and len(known) < len(named):
            yield Call((), dict(named))
        if known:
            yield Call((), known)
            return
    yield Call((batch,), {})
    for name in _INPUTS:
        if name in named:
            yield Call((named[name],), {})
            break
    first = next(iter(named.values()), None)
    if first is not None:
        yield Call((first,), {})
