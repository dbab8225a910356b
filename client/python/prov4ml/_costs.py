"""The two FLOPs calls: asks for the cost of a batch or an epoch and logs it.

What a model executes is found by prov4ml._flops, imported at the first such call. Its costs are known at once or later;
later ones wait on a thread of their own, in the order of the calls, so that a bare signature is never sent before the
operators that it names.
"""

from __future__ import annotations

import importlib
from time import monotonic_ns

from . import _wire
from ._client import Client
from ._repeat import Repeat

TYPE_CHECKING = False
if TYPE_CHECKING:
    import queue
    import threading
    from collections.abc import Callable
    from typing import Any

    from ._context import Context

# Calls whose cost is not known yet. A training that makes more of them makes them faster than they can be counted.
_WAITING = 1_024
# Labels and costs whose text is kept; a program has a few.
_TEXTS = 4_096
# What an agent answers that doesn't know a signature.
_UNKNOWN = ("not_found", "failed_precondition")


class Costs:
    """Logs FLOPs through a client."""

    __slots__ = (
        "_client", "_connection", "_flops", "_labels", "_pid", "_places", "_previous", "_queue", "_ring", "_texts",
        "_thread", "_told", "repeats",
    )  # fmt: skip

    def __init__(self, client: Client) -> None:
        self._client = client
        self._begin()

    def _begin(self) -> None:
        self._pid = self._client.pid
        self._flops: Any = None
        self._queue: queue.Queue[Callable[[], None] | None] | None = None
        self._thread: threading.Thread | None = None
        # Signatures whose operators went out on this connection, or are kept to go out first on the next.
        self._connection = -1
        self._told: set[str] = set()
        # The part of a message for costs whose signature is told: what most calls send.
        self._texts: dict[Any, str] = {}
        self._labels: dict[str, str] = {}
        # Where the ring has the beginning of a message, by cost, label and context; 0 = there was no room for it.
        self._places: dict[tuple[object, str, str], int] = {}
        self._ring: Any = None
        # By label: the last call through the ring, and what logs it again; None = such calls have no Repeat.
        self._previous: dict[str, tuple[object, str, str]] = {}
        self.repeats: dict[str, Repeat | None] = {}

    def label(self, label: object) -> str:
        """The label's part of a message. Raises whatever the object's own __str__ raises."""
        if type(label) is not str:
            label = str(label)
        text = self._labels.get(label)
        if text is None:
            if len(self._labels) >= _TEXTS:
                self._labels.clear()
            text = self._labels[label] = f'"label":{_wire.quote(label)},'
        return text

    def log_batch(
        self,
        label: object,
        model: object,
        batch: object,
        fields: str,
        synchronous: bool,
        context: Context | None = None,
        step: int = 0,
    ) -> None:
        """fields is the message's part before the label, or empty: a call of this context and step (int64, 0 or more),
        for which nobody waits."""
        client = self._client
        if client.unimplemented and _wire.FLOPS_PER_BATCH.name in client.unimplemented:
            return
        if self._pid != client.pid:
            self._begin()
        made = monotonic_ns()
        try:
            # The usual case, written out: between two steps of a training every cache is cold.
            cost = (self._flops or self.flops()).batch_cost(model, batch)
        except Exception as error:
            cost, missing = None, _missing(error)
        else:
            missing = {}
        if context is not None:
            if type(label) is str and not missing:
                key = cost, label, context._fields
                place = self._places.get(key)
                if place and self._may_use_ring(made) and self._ring.put(place, step, made):
                    self._remember(key, place, model, batch, context)
                    return
            fields = f'{context._fields}"step":{step},'
        fields += self.label(label)
        if missing:
            self._send(_wire.FLOPS_PER_BATCH, fields, missing, synchronous, made)
            return
        try:
            text = self._texts.get(cost)
            if text is None or self._connection != client.connection or self._is_waiting():
                self._log(_wire.FLOPS_PER_BATCH, fields, cost, synchronous, made)
                return
        except Exception as error:  # what batch_cost gave is no cost, or cannot be written down
            self._send(_wire.FLOPS_PER_BATCH, fields, _missing(error), synchronous, made)
            return
        refusal = client.log(_wire.FLOPS_PER_BATCH, fields + text, synchronous, made, self._connection)
        if refusal:
            self._after_signature(_wire.FLOPS_PER_BATCH, fields, cost.result(), refusal, synchronous, made)
        elif context is not None and type(label) is str:
            self._open_ring(cost, label, context, text)

    def _may_use_ring(self, made: int) -> bool:
        """Whether the ring may take a call now: its signature is known there, and no call before it waits."""
        if self._connection != self._client.connection or self._is_waiting():
            return False
        return made < self._ring.until or self._client.look()

    def _remember(
        self, key: tuple[object, str, str], place: int, model: object, batch: object, context: Context
    ) -> None:
        """Notes a call that went through the ring. After two in a row that are the same a Repeat logs those to come."""
        label = key[1]
        if self._previous.get(label) != key:
            if len(self._previous) >= _TEXTS:
                self._previous.clear()
                self.repeats.clear()
            self._previous[label] = key
            self.repeats.pop(label, None)
        elif self.repeats.get(label, self) is not None:
            # None yet, or one that has seen something change.
            form = self._flops.form(model, batch)
            self.repeats[label] = None if form is None else Repeat(form, context, self._ring, place)

    def _open_ring(self, cost: object, label: str, context: Context, text: str) -> None:
        """The next such call may go through the ring, if the agent reads one and there is room for its text."""
        key = cost, label, context._fields
        if key in self._places:
            return
        opened = self._client.open_ring(f"{_wire.FLOPS_PER_BATCH.message}{context._fields}{self.label(label)}{text}")
        if opened is not None:
            if len(self._places) >= _TEXTS:
                self._places.clear()
            self._ring, self._places[key] = opened

    def log_epoch(self, fields: str, model: object, dataset: object, synchronous: bool) -> None:
        if _wire.FLOPS_PER_EPOCH.name in self._client.unimplemented:
            return
        if self._pid != self._client.pid:
            self._begin()
        made = monotonic_ns()
        try:
            self._log(_wire.FLOPS_PER_EPOCH, fields, self.flops().epoch_cost(model, dataset), synchronous, made)
        except Exception as error:
            self._send(_wire.FLOPS_PER_EPOCH, fields, _missing(error), synchronous, made)

    def flops(self) -> Any:
        """The counting package."""
        if self._flops is None:
            self._flops = importlib.import_module("prov4ml._flops")
        return self._flops

    def _is_waiting(self) -> bool:
        """Whether calls wait for their cost: later ones then go behind them."""
        return self._queue is not None and self._queue.unfinished_tasks > 0

    def _log(self, function: _wire.Function, fields: str, cost: Any, synchronous: bool, made: int) -> None:
        if cost.done() and not self._is_waiting():
            part = cost.result()
            self._send(function, fields, part, synchronous, made)
            signature = part.get("signature")
            if len(part) == 1 and isinstance(signature, str) and signature in self._told:
                if len(self._texts) >= _TEXTS:
                    self._texts.clear()
                self._texts[cost] = _signature_text(signature)
            return

        def later() -> None:
            try:
                part = cost.result()
            except Exception as error:
                part = _missing(error)
            # This thread may wait for the answer.
            self._send(function, fields, part, True, made)

        self._put(later)

    def _send(self, function: _wire.Function, fields: str, part: dict[str, Any], synchronous: bool, made: int) -> None:
        self._follow_connection()
        signature = part.get("signature")
        if len(part) == 1 and isinstance(signature, str):
            if signature in self._told:
                text = fields + _signature_text(signature)
                refusal = self._client.log(function, text, synchronous, made, self._connection)
                self._after_signature(function, fields, part, refusal, synchronous, made)
                return
            part = self._operators(part)
        elif "batches" in part:
            part = self._with_operators(part)
        self._send_whole(function, fields, part, synchronous, made)

    def _send_whole(
        self, function: _wire.Function, fields: str, part: dict[str, Any], synchronous: bool, made: int
    ) -> None:
        self._client.log(function, fields + _text(part), synchronous, made)
        self._follow_connection()
        self._told.update(_signatures(part))

    def _after_signature(
        self, function: _wire.Function, fields: str, part: dict[str, Any], refusal: str, synchronous: bool, made: int
    ) -> None:
        """A bare signature was sent: an agent that does not know it gets the call again, with the operators."""
        if refusal in _UNKNOWN:
            self._send_whole(function, fields, self._operators(part), synchronous, made)
            return
        self._follow_connection()  # which may have been lost meanwhile, and with it what had been told

    def _operators(self, part: dict[str, Any]) -> dict[str, Any]:
        """A signature's operators in its place, while they are kept."""
        operators = self.flops().operators(part["signature"])
        return part if operators is None else {"operators": operators}

    def _follow_connection(self) -> None:
        if self._connection != self._client.connection:
            self._connection = self._client.connection
            self._told.clear()
            self._texts.clear()
            self._places.clear()
            self._previous.clear()
            self.repeats.clear()

    def _with_operators(self, part: dict[str, Any]) -> dict[str, Any]:
        """An epoch's part with the operators of every signature that this connection hasn't carried."""
        lists = list(part.get("operators", ()))
        there = self._told.union(_signatures(part))
        for batch in part["batches"]:
            signature = batch.get("signature")
            if signature not in there:
                there.add(signature)
                operators = self.flops().operators(signature)
                if operators is not None:
                    lists.append(operators)
        return {**part, "operators": lists} if lists else part

    def _put(self, later: Callable[[], None]) -> None:
        # Nothing overtakes a call that waits for its cost.
        self._previous.clear()
        self.repeats.clear()
        if self._queue is None:
            import queue
            import threading

            self._queue = queue.Queue(_WAITING)
            self._thread = threading.Thread(target=self._work, args=(self._queue,), name="prov4ml-flops", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(later)
        except Exception:  # queue.Full; the module is imported only where a thread is needed
            self._client.drop()

    def _work(self, waiting: queue.Queue[Callable[[], None] | None]) -> None:
        while True:
            later = waiting.get()
            try:
                if later is None:
                    return
                later()
            except Exception:  # this thread must go on; the call is counted
                self._client.drop()
            finally:
                waiting.task_done()

    def finish(self, deadline: int) -> None:
        """Waits for the calls whose cost is not known yet, until the deadline (monotonic ns)."""
        thread, waiting = self._thread, self._queue
        if thread is None or waiting is None or self._pid != self._client.pid:
            return
        try:
            waiting.put(None, timeout=_seconds(deadline))
        except Exception:  # queue.Full: no end in sight
            return
        thread.join(_seconds(deadline))
        self._thread = self._queue = None

    def close(self, deadline: int) -> None:
        """The process ends: what is being counted may take until the deadline, then its cost is said to be missing."""
        if self._flops is not None and self._pid == self._client.pid:
            self._flops.close(_seconds(deadline))
        self.finish(deadline + 1_000_000_000)


def _seconds(deadline: int) -> float:
    return max(0.0, (deadline - monotonic_ns()) / 1e9)


def _missing(error: BaseException) -> dict[str, Any]:
    """A cost that could not be counted, with the reason: absent is not zero."""
    return {"count": {"missingReason": f"{type(error).__name__}: {error}"[:500]}}


def _signature_text(signature: str) -> str:
    return f'"signature":{_wire.quote(signature)},'


def _signatures(part: dict[str, Any]) -> list[str]:
    """The signatures whose operators a part carries: one list for a batch, several for an epoch."""
    lists = part.get("operators", ())
    return [operators["signature"] for operators in ([lists] if isinstance(lists, dict) else lists)]


def _text(part: dict[str, Any]) -> str:
    """A part as text of a message's JSON object."""
    try:
        text = _wire.document(part)[1:-1]
    except (TypeError, ValueError) as error:
        text = _wire.document(_missing(error))[1:-1]
    return f"{text}," if text else ""
