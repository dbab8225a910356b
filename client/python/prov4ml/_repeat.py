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

    from ._context import Context
    from ._flops import Form
    from ._ring import Ring


class Repeat:
    """A call that has been logged through the ring, and can be again."""

    __slots__ = (
        "any_autocast", "cls", "connection", "context", "digest", "entry", "is_sequence", "keys", "limit", "model",
        "place", "ring", "tensors", "training", "watch", "words",
    )  # fmt: skip

    def __init__(self, form: Form, context: Context, ring: Ring, place: int) -> None:
        self.model = form.model
        self.training = form.training
        self.cls = form.cls
        self.is_sequence = form.cls in (tuple, list)
        self.keys = form.keys
        self.tensors = form.tensors
        self.watch = form.watch
        self.digest = form.digest
        self.limit = form.limit
        self.any_autocast = form.any_autocast
        self.entry = form.entry
        self.context = context
        self.connection = ring.connection
        self.ring = ring
        self.words = ring.words
        self.place = place

    def log(self, model: Any, batch: Any, context: object, step: int) -> bool:
        """Logs the call if it is the same, but for the step. False: nothing is done."""
        if (
            context is not self.context
            or self.model() is not model
            or model.training is not self.training  # type: ignore[union-attr]  # it is a module
            or type(batch) is not self.cls
            or step >> 63
        ):
            return False
        items: Any = batch
        if not self.is_sequence:
            if self.cls is dict:
                if list(items) != self.keys:
                    return False
                items = items.values()
            else:
                items = (items,)
        tensors = self.tensors
        if len(items) != len(tensors):
            return False
        watch = self.watch
        calls = watch.calls
        try:
            for item, (shape, dtype, grad) in zip(items, tensors):
                if item.shape != shape or item.dtype is not dtype or item.requires_grad is not grad:
                    return False
            slices = watch.slices
            trained, frozen = slices[calls % len(slices)]
            for reference in trained:
                if not reference().requires_grad:
                    return False
            for reference in frozen:
                if reference().requires_grad:
                    return False
        except Exception:  # no tensor, a parameter that is gone, a tensor without a shape
            return False
        ring = self.ring
        made = monotonic_ns()
        if (
            self.any_autocast()
            or watch.digest is not self.digest
            or calls >= self.limit
            or made > ring.until
            or ring.connection != self.connection
            or ring.last >= ring.room
        ):
            return False
        # Ring.put, without the call.
        number = ring.last = next(ring.numbers)
        words, place = self.words, self.place
        at = 512 + number % 4096 * 4  # _SLOTS_AT and _SLOTS there
        words[at] = place
        words[at + 1] = step
        words[at + 2] = made
        words[at + 3] = place ^ step ^ made ^ number
        watch.calls = calls + 1
        self.entry.batches += 1
        return True
