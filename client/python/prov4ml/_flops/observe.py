"""Watches one step of the user's own, when no shadow can be traced.

Two hooks wait for the next call of the model with the shapes in question; the forward of that call runs under a
recorder on the thread that makes it, and the hooks are gone. Nothing is computed twice. That step is slower by 20 to
80 µs an operator.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from . import products
from .calls import Call
from .recorder import Recorder
from .tracing import Setting, batch_size, operator_list, walk

_MAX_CALLS = 1000  # of the model with other shapes, then it is given up

Answer = Callable[[Optional[Dict[str, Any]], str], None]


class Observer:
    """One wait for one combination of shapes."""

    def __init__(self, candidates: List[Call], plan: Any, setting: Setting, answer: Answer) -> None:
        self._shapes = [sizes((call.args, call.kwargs)) for call in candidates]
        self._whole = sizes(plan)
        self._setting = setting
        self._answer: Optional[Answer] = answer
        self._handles: List[Any] = []
        self._recorder: Optional[Recorder] = None
        self._thread = 0
        self._calls = 0
        self._batch_size = 0
        self.over = False

    def start(self, model: Any) -> None:
        """Begins to wait. The model keeps the observer, not the other way: a user may give it up unseen."""
        hook = model.register_forward_pre_hook
        self._handles.append(model.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        self._handles.append(hook(self._enter, with_kwargs=True))

    def stop(self, reason: str) -> None:
        """Ends waiting without a count."""
        self._finish(None, reason)

    def _enter(self, module: Any, args: Any, kwargs: Optional[Dict[str, Any]] = None) -> None:
        try:
            self._begin(module, args, kwargs)
        except Exception as err:  # noqa: BLE001 - the caller is the user's forward
            self.stop(f"the step could not be watched: {type(err).__name__}: {err}")

    def _leave(self, module: Any, args: Any, kwargs: Any = None, result: Any = None) -> None:
        try:
            self._end(result)
        except Exception as err:  # noqa: BLE001 - the caller is the user's forward
            self.stop(f"the step could not be watched: {type(err).__name__}: {err}")

    def _begin(self, module: Any, args: Any, kwargs: Optional[Dict[str, Any]]) -> None:
        if self._recorder is not None or self.over:
            return
        self._calls += 1
        seen = sizes((args, kwargs or {}))
        if module.training is not self._setting.training or not self._matches(seen):
            if self._calls >= _MAX_CALLS:
                self.stop(f"{_MAX_CALLS} calls of the model had other shapes")
            return
        self._thread = threading.get_ident()
        self._batch_size = batch_size((args, kwargs or {}))
        self._recorder = Recorder()
        self._recorder.__enter__()  # type: ignore[no-untyped-call]

    def _end(self, result: Any) -> None:
        recorder = self._recorder
        if recorder is None or threading.get_ident() != self._thread:
            return
        recorder.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if result is None:
            self._finish(None, "the forward raised while it was watched")
            return
        notes = ["recomputation and work inside custom autograd functions' backward are not seen in a watched step"]
        if self._setting.training and any(products.is_product(name) for name in recorder.without_grad):
            notes.append("part of the forward ran with grad mode off: its backward is not counted")
        for name, count in sorted(recorder.unreadable.items()):
            notes.append(f"shapes of {name} could not be read: {count} executions not counted")
        operators = operator_list(
            recorder.executions,
            self._setting,
            method="observed",
            autocast=self._setting.autocast or recorder.autocast,
            batch_size=self._batch_size,
            notes=notes,
        )
        self._finish(operators, "")

    def _matches(self, seen: Tuple[Any, ...]) -> bool:
        if seen in self._shapes:
            return True
        # Another way of calling: part of the batch, or all of it in another order.
        rest = list(self._whole)
        for size in seen:
            if size not in rest:
                return False
            rest.remove(size)
        return bool(seen)

    def _finish(self, operators: Optional[Dict[str, Any]], reason: str) -> None:
        if self.over:
            return
        self.over = True
        self._recorder = None
        for handle in self._handles:
            handle.remove()
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(operators, reason)


def sizes(value: Any) -> Tuple[Any, ...]:
    """The sizes of all tensors (or blueprints) in arguments."""
    found = []
    for leaf in walk(value):
        if isinstance(leaf, torch.Tensor):
            found.append(tuple(leaf.shape))
        elif isinstance(getattr(leaf, "size", None), tuple):
            found.append(leaf.size)
    return tuple(found)
