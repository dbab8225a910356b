"""The order of the rungs, the cache of signatures, and the thread that traces.

For a torch model, until one works:

1. the user's registered counter; 2. a trace of the shadow on meta tensors (with the values of short integer vectors
   where the forward wants them), then on fake tensors;
3. the user's own next step with these shapes, watched;
4. a closed form from the model's configuration;
5. the model's own ``flops(batch)``;
6. nothing, with the reasons of all of these.

For other models: the registered counter, JAX's or TensorFlow's own analysis, the model's own ``flops(batch)``.

The shadow is built in the call, from the model as it is at that moment. The trace runs on one thread of our own, so
that the first one, which makes torch import its compiler (a second), does not stall the training; a model whose code
draws from Python's or numpy's generators is traced in the call instead, their state saved and restored.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import queue
import sys
import threading
import time
import weakref
import zlib
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from . import counters, jax_function, keras_model
from .cost import Cost, Fragment

_MAX_ENTRIES = 2048  # signatures kept per model; beyond, the oldest is forgotten and would be traced again
_MAX_LISTS = 2048  # operator lists kept for sending again
_MAX_WAITING = 256  # traces waiting for the thread; beyond, a batch is not counted and says so
_MAX_MESSAGE_BYTES = 900 << 10  # of one operator list as JSON; the socket takes 1 MiB
_MAX_OPERATORS = 20_000
_STEP_SECONDS = 30.0  # how long a call waits for a step that shows its cost: later calls are held back by it
_FORK_SECONDS = 10.0  # how long a fork waits for the tracing thread at most
_OVERDUE = "no step with these shapes has been seen yet"


class Entry:
    """One key of one model: a combination of shapes, settings and bits."""

    __slots__ = (
        "autocast", "batch", "batch_size", "batches", "known", "logged", "missing", "overdue", "signature", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        # The ready answer from the second time on.
        self.known: Optional[Cost] = None
        self.signature = ""
        self.waiting: List[Cost] = []
        self.batch: Any = None  # as blueprints
        self.batch_size = 0
        self.autocast = ""
        # Batches logged since the model's last epoch, and whether there ever was one.
        self.batches = 0
        self.logged = False
        # Whether it could not be counted.
        self.missing = False
        # Whether no step has shown it for so long that nobody waits any more.
        self.overdue = False


class State:
    """What is known about one model."""

    def __init__(self, model: Any, forget: Callable[[Any], None]) -> None:
        try:
            self.model: Callable[[], Any] = weakref.ref(model, forget)
        except TypeError:  # no weak references to this object
            self.model = lambda: model
        self.entries: OrderedDict[Any, Entry] = OrderedDict()
        # Everything for torch models: torch_model.TorchModel.
        self.torch: Any = None
        # For JAX's functions: whether plain numbers among the arguments decide the cost.
        self.numbers = True


class Tracer:
    """One process's cache of costs. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # By id: a state is forgotten when its model is freed, before another can have the id.
        self._states: Dict[int, State] = {}
        self._lists: OrderedDict[str, bytes] = OrderedDict()
        self._handed: Set[str] = set()
        self._jobs: queue.SimpleQueue[Optional[Callable[[], None]]] = queue.SimpleQueue()
        self._waiting = 0
        self._thread: Optional[threading.Thread] = None
        # Entries that wait for a step, with the time (monotonic, s) from which on they do not.
        self._steps: List[Tuple[float, Entry]] = []
        self._closed = False
        self.cancelled = False
        # Held by the tracing thread while a fork would leave the child with locks that nobody opens: torch's, and those
        # of modules that are being imported.
        self._busy = threading.Lock()
        self._forking = 0
        self._held: Set[int] = set()

    # --- batches ------------------------------------------------------------------------------------------------------

    def batch(self, model: Any, batch: Any) -> Cost:
        """The cost of one batch."""
        state = self._states.get(id(model))
        if state is None:
            state = self._new_state(model)
        if state.torch is None or (counters.by_type and counters.registered(model) is not None):
            return self.other(state, model, batch)
        key = state.torch.key(model, batch)
        entry = state.entries.get(key)
        if entry is not None:
            entry.batches += 1
            entry.logged = True
            known = entry.known
            if known is not None:
                return known
        return self._slow(state, model, batch, key, True)

    def form(self, model: Any, batch: Any) -> Any:
        """What to compare to know that a call is like one that was known; None where only `batch` can tell."""
        state = self._states.get(id(model))
        if state is None or state.torch is None or counters.by_type:
            return None
        return state.torch.form(model, batch, state.entries)

    def expire(self) -> None:
        """Lets no call be taken for one like the last before the model has been walked over."""
        for state in list(self._states.values()):
            if state.torch is not None:
                state.torch.watch.expire()

    def state(self, model: Any) -> State:
        """What is known about a model."""
        return self._states.get(id(model)) or self._new_state(model)

    def shape(self, state: State, model: Any, shape: Any) -> Cost:
        """The cost of one batch of an epoch: an entry that is known, or a captured batch. It counts no batch."""
        key = state.torch.key(model, shape.batch if isinstance(shape, Entry) else shape)
        if isinstance(shape, Entry):
            # As it was logged: the epoch's call is made outside of the step's autocast.
            key = (key[0], key[1], shape.autocast, key[3])
            shape = shape.batch
        entry = state.entries.get(key)
        if entry is not None and entry.known is not None:
            return entry.known
        return self._slow(state, model, shape, key, False)

    def _new_state(self, model: Any) -> State:
        number = id(model)

        def forget(_: Any) -> None:
            self._states.pop(number, None)

        state = State(model, forget)
        torch: Any = sys.modules.get("torch")
        if torch is not None and isinstance(model, torch.nn.Module):
            from .torch_model import TorchModel

            state.torch = TorchModel(model)
        self._states[number] = state
        return state

    def _slow(self, state: State, model: Any, batch: Any, key: Any, logged: bool) -> Cost:
        cost = Cost()
        with self._lock:
            entry = state.entries.get(key)
            if entry is not None:
                entry.logged |= logged
                if entry.known is not None:
                    return entry.known
                if entry.signature:
                    cost.complete(self._answer(entry))
                elif entry.overdue:
                    cost.complete({"count": counters.missing("observed", _OVERDUE)})
                else:
                    entry.waiting.append(cost)
                return cost
            entry = self._entry(state, key)
            entry.logged = logged
            entry.batches = int(logged)
            entry.waiting.append(cost)
        self._start(state, model, batch, key, entry)
        return cost

    def _entry(self, state: State, key: Any) -> Entry:
        entry = state.entries[key] = Entry()
        if len(state.entries) > _MAX_ENTRIES:
            _, oldest = state.entries.popitem(last=False)
            self.settle(oldest, {"missingReason": "more batch shapes than are kept"})
        return entry

    def _start(self, state: State, model: Any, batch: Any, key: Any, entry: Entry) -> None:
        try:
            job = state.torch.job(model, batch, key)
        except Exception as err:  # noqa: BLE001 - the user's objects may do anything when they are read
            self.settle(entry, {"missingReason": f"the batch could not be read: {type(err).__name__}: {err}"[:1000]})
            return
        entry.batch = job.plan
        entry.batch_size = job.batch_size
        entry.autocast = key[2]

        settle: Callable[[Dict[str, Any]], str] = functools.partial(self.settle, entry)
        own = counters.own_method(model)
        if own is not None:
            # The batch is kept until the trace has worked, for a model that can count it otherwise.
            settle = self._own_count(entry, own, batch)
        job.settle = settle
        job.cancelled = self.pause
        job.watching = lambda: self.wait_for_step(entry)
        if job.on_training_thread:
            job.run()
            return
        refusal = self._submit(job.run)
        if refusal:
            with self._lock:
                state.entries.pop(key, None)  # to be tried again
                waiting, entry.waiting = entry.waiting, []
            for cost in waiting:
                cost.complete({"count": counters.missing("", refusal)})

    def _own_count(self, entry: Entry, own: Callable[[Any], Any], batch: Any) -> Callable[[Dict[str, Any]], str]:
        def settle(operators: Dict[str, Any]) -> str:
            if "missingReason" in operators:
                count = counters.user_count(own, batch)
                if "forward" in count:
                    operators = {"counted": count}
            return self.settle(entry, operators)

        return settle

    def _submit(self, run: Callable[[], None]) -> str:
        """Runs on the tracing thread, in the order of the calls; answers why not, if not."""
        with self._lock:
            if self._closed:
                return "the process was ending"
            if self._waiting >= _MAX_WAITING:
                return f"{_MAX_WAITING} other batch shapes were waiting to be traced"
            self._waiting += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="prov4ml-flops", daemon=True)
                self._thread.start()
        self._jobs.put(run)
        return ""

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=1.0 if self._steps else None)
            except queue.Empty:
                self._release()
                continue
            if job is None:
                return
            try:
                with self._busy:
                    job()
            finally:
                if job is not _nothing:
                    with self._lock:
                        self._waiting -= 1

    def wait_for_step(self, entry: Entry) -> None:
        """Lets the calls of an entry wait for a step of the user's, for a while."""
        self._steps.append((time.monotonic() + _STEP_SECONDS, entry))
        self._jobs.put(_nothing)  # so that the thread, if it sleeps, looks at the clock

    def _release(self) -> None:
        now = time.monotonic()
        for until, entry in [step for step in self._steps if step[0] <= now or step[1].signature]:
            self._steps.remove((until, entry))
            if entry.signature:
                continue
            with self._lock:
                entry.overdue = True
                waiting, entry.waiting = entry.waiting, []
            for cost in waiting:
                cost.complete({"count": counters.missing("observed", _OVERDUE)})

    def settle(self, entry: Entry, operators: Dict[str, Any]) -> str:
        """Takes the operator list of an entry, answers everyone who waits for it, and says its signature."""
        if "counted" in operators:
            return self._settle_count(entry, operators["counted"])
        operators.setdefault("operators", [])
        text = _fit(operators)
        signature = hashlib.blake2b(text, digest_size=16).hexdigest()
        operators["signature"] = signature
        with self._lock:
            self._keep(signature, text)
            entry.signature = signature
            entry.batch_size = int(operators.get("batchSize", 0)) or entry.batch_size
            entry.missing = "missingReason" in operators
            waiting, entry.waiting = entry.waiting, []
            answers = [(cost, self._answer(entry, operators)) for cost in waiting]
        for cost, fragment in answers:
            cost.complete(fragment)
        return signature

    def _settle_count(self, entry: Entry, count: counters.Count) -> str:
        with self._lock:
            entry.known = Cost({"count": count})
            waiting, entry.waiting = entry.waiting, []
        for cost in waiting:
            cost.complete({"count": count})
        return ""

    def _answer(self, entry: Entry, operators: Optional[Dict[str, Any]] = None) -> Fragment:
        signature = entry.signature
        if entry.known is None:
            entry.known = Cost({"signature": signature})
        if signature in self._handed:
            return entry.known.result()
        self._handed.add(signature)
        return {"operators": operators if operators is not None else self.operators(signature)}

    def _keep(self, signature: str, text: bytes) -> None:
        if signature not in self._lists:
            self._lists[signature] = zlib.compress(text, 1)
            if len(self._lists) > _MAX_LISTS:
                self._lists.popitem(last=False)

    def operators(self, signature: str) -> Optional[Dict[str, Any]]:
        """The list behind a signature, while it is kept."""
        packed = self._lists.get(signature)
        if packed is None:
            return None
        operators: Dict[str, Any] = json.loads(zlib.decompress(packed))
        operators["signature"] = signature
        return operators

    # --- models that are not torch's ----------------------------------------------------------------------------------

    def other(self, state: State, model: Any, batch: Any) -> Cost:
        """The cost of a batch of a model that is not torch's, or that a counter is registered for."""
        fn = counters.registered(model)
        if fn is not None:
            return Cost({"count": counters.user_count(fn, model, batch)})
        if jax_function.is_function(model):
            return self._jax(state, model, batch)
        if jax_function.is_stage(model):
            return Cost({"count": jax_function.stage_count(model)})
        if keras_model.is_keras(model):
            return self._analysis(state, batch, keras_model.specs, lambda a: keras_model.count(model, a))
        own = counters.own_method(model)
        if own is not None:
            return Cost({"count": counters.user_count(own, batch)})
        kind = type(model).__name__
        reason = f"a {kind} is no model that can be counted: register_counter({kind}, fn) or a flops(batch) method can"
        if callable(model) and "jax" in sys.modules:
            reason += "; of JAX, functions under jax.jit can"
        return Cost({"count": counters.missing("", reason)})

    def _jax(self, state: State, model: Any, batch: Any) -> Cost:
        """XLA's analysis, once for each shape of the arguments."""
        try:
            entry = state.entries.get(jax_function.key(batch, state.numbers))
            if entry is None:
                count, state.numbers = jax_function.count(model, *jax_function.arguments(model, batch))
                with self._lock:
                    entry = self._entry(state, jax_function.key(batch, state.numbers))
                entry.known = Cost({"count": count})
        except Exception as err:  # noqa: BLE001 - JAX's own code runs here
            return Cost({"count": counters.missing("", f"the batch has no shapes: {type(err).__name__}: {err}")})
        assert entry.known is not None
        return entry.known

    def _analysis(
        self, state: State, batch: Any, shapes: Callable[[Any], Any], count: Callable[[Any], counters.Count]
    ) -> Cost:
        """A framework's own analysis, once for each input signature."""
        try:
            arguments = shapes(batch)
            key = repr(arguments)[:4096]
        except Exception as err:  # noqa: BLE001 - the framework's own code runs here
            return Cost({"count": counters.missing("", f"the batch has no shapes: {type(err).__name__}: {err}")})
        entry = state.entries.get(key)
        if entry is None:
            with self._lock:
                entry = self._entry(state, key)
            entry.known = Cost({"count": count(arguments)})
        entry.batches += 1
        assert entry.known is not None
        return entry.known

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self, seconds: float) -> None:
        """Waits for traces, ends the late ones, completes every open cost."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._jobs.put(None)
            thread.join(max(seconds, 0.0))
            if thread.is_alive():
                self.cancelled = True
                thread.join(5.0)
        for state in list(self._states.values()):
            if state.torch is not None:
                state.torch.close()
            for entry in list(state.entries.values()):
                if not entry.signature and entry.waiting:
                    self.settle(entry, {"missingReason": "the process ended before this could be counted"})

    def pause(self) -> bool:
        """Called between two operators of a trace: lets a fork pass; answers whether to end."""
        if self._forking and self._thread is not None and threading.get_ident() == self._thread.ident:
            self._busy.release()
            while self._forking:
                time.sleep(0.001)
            self._busy.acquire()
        return self.cancelled

    def before_fork(self) -> None:
        """Waits until the tracing thread is between two operators, or has imported what it imports."""
        thread = self._thread
        if thread is None or threading.get_ident() == thread.ident:
            return
        self._forking += 1
        if self._busy.acquire(timeout=_FORK_SECONDS):
            self._held.add(threading.get_ident())
        else:
            self._forking -= 1

    def after_fork(self) -> None:
        """In the parent."""
        number = threading.get_ident()
        if number in self._held:
            self._held.discard(number)
            self._forking -= 1
            self._busy.release()

    def forked(self) -> None:
        """In a forked child: threads, locks, open costs and what was handed out are the parent's."""
        self._lock = threading.RLock()
        self._busy = threading.Lock()
        self._forking = 0
        self._held = set()
        self._jobs = queue.SimpleQueue()
        self._waiting = 0
        self._thread = None
        self._steps = []
        self._handed = set()
        for state in self._states.values():
            for key in [key for key, entry in state.entries.items() if not entry.signature and entry.known is None]:
                del state.entries[key]
            for entry in state.entries.values():
                entry.batches = 0
                if entry.signature:
                    entry.known = None


def _nothing() -> None:
    pass


def _fit(operators: Dict[str, Any]) -> bytes:
    """The list as canonical JSON, made coarser until the socket takes it."""
    text = _json(operators)
    if len(text) <= _MAX_MESSAGE_BYTES and len(operators["operators"]) <= _MAX_OPERATORS:
        return text
    operators.setdefault("notes", []).append("operators are not told apart by module: the list was too long")
    merged: Dict[bytes, Dict[str, Any]] = {}
    for operator in operators["operators"]:
        operator = {key: value for key, value in operator.items() if key != "module"}
        count = operator.pop("count", 1)
        known = merged.setdefault(_json(operator), operator)
        known["count"] = known.get("count", 0) + count
    operators["operators"] = list(merged.values())
    text = _json(operators)
    if len(text) > _MAX_MESSAGE_BYTES or len(operators["operators"]) > _MAX_OPERATORS:
        reason = f"the operator list is too long to send: {len(operators['operators'])} different ones"
        operators["missingReason"], operators["operators"] = reason, []
        text = _json(operators)
    return text


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _exit_seconds() -> float:
    try:
        return float(os.environ.get("PROV4ML_EXIT_SECONDS", "30"))
    except ValueError:
        return 30.0


_tracer = Tracer()


def batch_cost(model: Any, batch: Any) -> Cost:
    """The cost of one batch; see the package for what a Cost is. Never raises."""
    try:
        return _tracer.batch(model, batch)
    except Exception as err:  # noqa: BLE001 - nothing may reach the training
        return Cost({"count": counters.missing("", f"prov4ml failed: {type(err).__name__}: {err}")})


def register_counter(type: type, fn: Any) -> None:  # noqa: A002 - the documented name
    """counters.register_counter, noticed by whoever repeats a call."""
    counters.register_counter(type, fn)
    _tracer.expire()


def form(model: Any, batch: Any) -> Any:
    """A torch_model.Form for calls like one whose cost is known; None where there is none. Never raises."""
    try:
        return _tracer.form(model, batch)
    except Exception:  # noqa: BLE001 - nothing may reach the training
        return None


def epoch_cost(model: Any, dataset: Any) -> Cost:
    """The a-priori cost of one epoch over a dataset or loader; see the package. Never raises."""
    from . import epochs

    try:
        return epochs.epoch(_tracer, model, dataset)
    except Exception as err:  # noqa: BLE001 - nothing may reach the training
        return Cost({"incompleteReason": f"prov4ml failed: {type(err).__name__}: {err}"[:1000]})


def operators(signature: str) -> Optional[Dict[str, Any]]:
    """The operator list of a signature that was handed out; None when it is no longer kept."""
    return _tracer.operators(signature)


def close(seconds: float) -> None:
    """Ends tracing; see the package."""
    _tracer.close(seconds)


atexit.register(lambda: _tracer.close(_exit_seconds()))
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_tracer.before_fork, after_in_parent=_tracer.after_fork, after_in_child=_tracer.forked)
