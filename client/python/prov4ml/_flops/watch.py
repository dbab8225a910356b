"""Notices when a model is no longer the one that was traced, for microseconds a call.

A full walk over the modules gives a digest of everything that a trace depends on: classes, train flags, shapes and
``requires_grad`` bits of the parameters, plain settings. Between walks each call reads the bits of the first parameter
tensor, of the last, and of two between them, half a model apart, the next ones each time. A walk follows when a bit
differs or a tensor is gone, when the model's train flag has changed, and every 128 calls.
"""

from __future__ import annotations

import weakref
from typing import Any, Dict, FrozenSet, List, Optional, Tuple

import torch

SLICE = 2
CALLS = 128


# References to parameters that want a gradient, and to such that do not.
_Slice = Tuple[List[Any], List[Any]]


def _slice(parameters: List[torch.nn.Parameter]) -> _Slice:
    trained: List[Any] = []
    frozen: List[Any] = []
    for parameter in parameters:
        (trained if parameter.requires_grad else frozen).append(weakref.ref(parameter))
    return trained, frozen


class Watch:
    """Evidence about one model. Threads that use it together may walk twice, no more."""

    __slots__ = ("_settings", "_training", "calls", "changed", "device", "digest", "slices", "volatile")

    def __init__(self, model: torch.nn.Module) -> None:
        self.digest = 0
        # Settings (path, name) that change while the cost does not: step counters.
        self.volatile: FrozenSet[Tuple[int, str]] = frozenset()
        self.changed: FrozenSet[Tuple[int, str]] = frozenset()
        self.device = "cpu"
        self._settings: Dict[Tuple[int, str], Any] = {}
        self.slices: List[_Slice] = [([], [])]
        # Since the last walk; also says which slice is looked at.
        self.calls = 0
        self._training = model.training
        self.walk(model)

    def seen(self, training: bool) -> Optional[int]:
        """The digest as of this call, within the bounds above; None = it takes a walk. training: the model's flag."""
        self.calls = calls = self.calls + 1
        if calls >= CALLS or training is not self._training:
            return None
        slices = self.slices
        try:
            trained, frozen = slices[calls % len(slices)]
            for reference in trained:
                if not reference().requires_grad:
                    return None
            for reference in frozen:
                if reference().requires_grad:
                    return None
        except AttributeError:  # a parameter that is gone
            return None
        return self.digest

    def walk(self, model: torch.nn.Module) -> int:
        """The digest by a full walk."""
        self.calls = 0
        self._training = model.training
        parts: List[Any] = []
        parameters: List[torch.nn.Parameter] = []
        settings: Dict[Tuple[int, str], Any] = {}
        for number, module in enumerate(model.modules()):
            entries = module.__dict__
            parts.append((type(module), module.training))
            for name, parameter in entries["_parameters"].items():
                if parameter is not None:
                    parameters.append(parameter)
                    parts.append((name, tuple(parameter.shape), parameter.dtype, parameter.requires_grad))
            for name, value in entries.items():
                if type(value) in (int, bool, str) and name[0] != "_" and name != "training":
                    settings[number, name] = value
        previous = self._settings
        self.changed = frozenset(
            key for key in settings.keys() | previous.keys() if previous and settings.get(key) != previous.get(key)
        )
        self._settings = settings
        parts.append(frozenset(item for item in settings.items() if item[0] not in self.volatile))
        digest = hash(tuple(parts))
        if digest != self.digest:  # else it stays the same object
            self.digest = digest
        self.device = parameters[0].device.type if parameters else "cpu"
        middle = parameters[1:-1]
        count = max(-(-len(middle) // SLICE), 1)
        self.slices = [_slice(middle[start::count] + parameters[:1] + parameters[1:][-1:]) for start in range(count)]
        return self.digest

    def expire(self) -> None:
        """Makes the next call walk."""
        self.calls = CALLS

    def forgive(self, keys: FrozenSet[Tuple[int, str]]) -> None:
        """Leaves settings out of later digests: they changed, the cost did not."""
        self.volatile |= keys
