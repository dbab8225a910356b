"""The usual call of log_flops_per_batch, written out: the same label, model, context and shapes as the time before.

Between two steps of a training every cache is cold, and a call costs what it touches: each function, each dictionary.
So all that decides whether the call is the same is looked at here, in one function, and its record goes into the ring.
What is looked at, and what the answer means, is that of `prov4ml._flops` and `_costs`.
"""

from __future__ import annotations

from time import monotonic_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._client import Client
    from ._context import Context
    from ._flops import Form
    from ._ring import Ring


class Repeat:
    """A call that has been logged through the ring, and can be again."""

    __slots__ = ("_client", "_connection", "_context", "_form", "_place", "_ring")

    def __init__(self, form: Form, client: Client, context: Context, ring: Ring, place: int) -> None:
        self._form = form
        self._client = client
        self._connection = client.connection
        self._context = context
        self._ring = ring
        self._place = place

    def log(self, model: Any, batch: Any, context: object, step: int) -> bool:
        """Logs the call if it is the same, but for the step (int64, 0 or more). False: nothing is done."""
        form = self._form
        if context is not self._context or form.model() is not model:
            return False
        if model.training is not form.training:  # type: ignore[union-attr]  # it is a module
            return False
        cls = type(batch)
        if cls is not form.cls:
            return False
        if cls is tuple or cls is list:
            items = batch
        elif cls is dict:
            if list(batch) != form.keys:
                return False
            items = batch.values()
        else:
            items = (batch,)
        tensors = form.tensors
        if len(items) != len(tensors):
            return False
        try:
            for item, (shape, dtype, grad) in zip(items, tensors):
                if item.shape != shape or item.dtype is not dtype or item.requires_grad is not grad:
                    return False
            watch = form.watch
            for reference, bit in watch.slices[watch.turn]:
                if reference().requires_grad is not bit:
                    return False
        except (AttributeError, IndexError):  # no tensor, a parameter that is gone, another thread walks
            return False
        if form.any_autocast() or watch.digest != form.digest or watch.calls >= watch.limit or form.counters:
            return False
        client = self._client
        made = monotonic_ns()
        if made > client.ring_until or client.connection != self._connection:
            return False
        if not self._ring.put(self._place, step, made):
            return False
        watch.calls += 1
        watch.turn = (watch.turn + 1) % len(watch.slices)
        form.entry.batches += 1
        return True
