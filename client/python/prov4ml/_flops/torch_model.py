"""One torch model: its key for a batch, and the jobs that count a new key."""

from __future__ import annotations

import contextlib
import random
import sys
import weakref
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import torch

from . import closed_form
from .calls import Call, fields
from .capture import Captured, UnshadowableError, capture_batch, capture_model, unwrap
from .observe import Observer
from .reach import reach
from .recorder import CancelledError
from .settings import SEES_HOOKS, any_autocast, autocast_dtype, float32_dtypes
from .shadow import FAKE, META, META_LENGTHS
from .tracing import NeedsTrainingThreadError, NotTracedError, Setting, batch_size, trace
from .watch import CALLS, Watch

_Tensor = torch.Tensor
_MAX_TENSORS = 8
_MAX_VALUES = 4096  # elements of an integer vector, or of a list of numbers, that may be part of a key
_STRIKES = 3  # equal costs under different numbers before numbers are left out of the key
_MAX_LEARNED = 4096


class Form(NamedTuple):
    """One batch of one model as prov4ml._repeat compares it."""

    model: weakref.ref[torch.nn.Module]
    training: bool
    # The batch's type, and the keys of a dict.
    cls: type
    keys: List[Any]
    # Shape, dtype and requires_grad of each.
    tensors: Tuple[Tuple[Any, Any, bool], ...]
    watch: Watch
    digest: int
    any_autocast: Callable[[], bool]
    # The tracer's, which counts the batches.
    entry: Any
    # Of calls between two walks.
    limit: int = CALLS


class TorchModel:
    """What is remembered between calls for one model."""

    def __init__(self, model: torch.nn.Module) -> None:
        inner = unwrap(model)
        self._inner = weakref.ref(inner)
        self._is_bare = inner is model
        self.watch = Watch(inner)
        # The rung and the way of calling that worked last.
        self.first: Tuple[str, int] = (META, 0)
        # Whether meta tensors would go another way than real ones: Keras takes them for its own shape inference, and
        # cuts the gradients.
        self._fake_only = any(cls.__module__.split(".")[0] == "keras" for cls in type(inner).__mro__)
        if self._fake_only:
            self.first = (FAKE, 0)
        # Whether the values of short integer vectors decide the cost (packed sequences).
        self.values = False
        # Whether plain numbers in the batch decide the cost.
        self._numbers = True
        self._strikes = 0
        self._learned: Dict[Any, Tuple[Any, str]] = {}
        self._on_training_thread: Optional[bool] = None
        # Whether activation checkpointing must be assumed, since this torch cannot tell.
        self._suspect = False
        self._captured: Optional[Tuple[int, Captured]] = None
        self._observers: List[Observer] = []
        # Jobs that only the training thread may run.
        self.due: List[Job] = []

    def key(self, model: Any, batch: Any) -> Any:
        """Everything that the cost depends on, as a hashable value."""
        if self.due:
            self._run_due()
        watch = self.watch
        training = model.training
        digest = watch.seen(training if self._is_bare else self._unwrapped(model).training)
        if digest is None:
            digest = watch.walk(self._unwrapped(model))
        autocast = autocast_dtype(watch.device) if any_autocast() else ""
        return digest, training, autocast, shape_key(batch, self.values, self._numbers)

    def form(self, model: Any, batch: Any, entries: Mapping[Any, Any]) -> Optional[Form]:
        """What to compare to know that a call is like this one, None where that takes more than tensors' shapes."""
        autocast = any_autocast()
        if not self._is_bare or self.values or autocast:
            return None
        keys: List[Any] = []
        items = [batch]
        if type(batch) is dict:
            keys, items = list(batch), list(batch.values())
        elif type(batch) is tuple or type(batch) is list:
            items = list(batch)
        if not 0 < len(items) <= _MAX_TENSORS or not all(isinstance(item, _Tensor) for item in items):
            return None
        entry = entries.get(self.key(model, batch))
        if entry is None:
            return None
        tensors = tuple((item.shape, item.dtype, item.requires_grad) for item in items)
        return Form(
            self._inner,
            model.training,
            type(batch),
            keys,
            tensors,
            self.watch,
            self.watch.digest,
            any_autocast,
            entry,
        )

    def _unwrapped(self, model: Any) -> torch.nn.Module:
        inner: Optional[torch.nn.Module] = self._inner()
        if inner is None:
            inner = unwrap(model)
            self._inner = weakref.ref(inner)
        return inner

    def job(self, model: Any, batch: Any, key: Any) -> Job:
        """What counts a new key. Captures the model and the batch as they are now."""
        inner = self._inner()
        if self._on_training_thread is None:
            found = reach(list(inner.modules())) if inner is not None else None
            self._on_training_thread = found is None or found.host_generators
            self._suspect = not SEES_HOOKS and found is not None and found.checkpoint
        digest, training, autocast, _ = key
        setting = Setting(training, autocast, *float32_dtypes(self.watch.device), self._suspect)
        plan = capture_batch(batch)
        captured: Optional[Captured] = None
        reason = ""
        if self._captured is not None and self._captured[0] == digest:
            captured = self._captured[1]
        else:
            try:
                captured = capture_model(model)
            except UnshadowableError as err:
                reason = str(err)
            except Exception as err:  # noqa: BLE001 - the user's objects may do anything when they are read
                reason = f"no shadow could be made: {type(err).__name__}: {err}"
            self._captured = (digest, captured) if captured is not None and not captured.shares else None
        return Job(self, model, plan, setting, captured, reason, key, self._on_training_thread)

    def check_rung(self, rung: str) -> None:
        """Raises NotTracedError for a trace that does not tell what the model does."""
        if self._fake_only and rung != FAKE:
            raise NotTracedError("Keras runs meta tensors another way, and fake tensors did not work", [])

    def learn(self, key: Any, plan: Any, signature: str) -> None:
        """Learns from equal costs under different keys what does not matter."""
        if not signature:
            return
        digest, training, autocast, _ = key
        bare = (training, autocast, shape_key(plan, self.values, False))
        known = self._learned.get(bare)
        if len(self._learned) < _MAX_LEARNED:
            self._learned[bare] = (key, signature)
        if known is None or known[0] == key:
            return
        if known[1] != signature:
            self._strikes = -1_000_000 if known[0][0] == digest else self._strikes
        elif known[0][0] != digest:
            self.watch.forgive(self.watch.changed)
        else:
            self._strikes += 1
            if self._strikes >= _STRIKES:
                self._numbers = False

    def observe(self, observer: Observer) -> None:
        """Keeps an observer until it has seen its step."""
        self._observers = [other for other in self._observers if not other.over]
        self._observers.append(observer)

    def seen(self, model: Any, entries: Mapping[Any, Any]) -> List[Any]:
        """The entries of logged batches that an epoch with the model's present train flag is made of, latest first."""
        fitting = [
            entry
            for key, entry in reversed(list(entries.items()))
            if key[1] is model.training and entry.logged and entry.batch_size and not entry.missing
        ]
        return [entry for entry in fitting if entry.batches] or fitting

    def _run_due(self) -> None:
        due, self.due = self.due, []
        for job in due:
            job.on_training_thread = True
            job.run()

    def close(self) -> None:
        """Ends what waits for a step, and runs what waits for the training thread."""
        self._run_due()
        for observer in self._observers:
            observer.stop("the model was not called again with these shapes before the process ended")
        self._observers = []


class Job:
    """One count of one key."""

    def __init__(
        self,
        owner: TorchModel,
        model: Any,
        plan: Any,
        setting: Setting,
        captured: Optional[Captured],
        reason: str,
        key: Any,
        on_training_thread: bool,
    ) -> None:
        self._owner = owner
        self._model = weakref.ref(model)
        self._plan = plan
        self._setting = setting
        self._captured = captured
        self._reason = reason
        self._key = key
        self.on_training_thread = on_training_thread
        self.settle: Any = None
        self.cancelled: Any = bool
        self.watching: Any = None

    @property
    def plan(self) -> Any:
        """The batch as blueprints."""
        return self._plan

    @property
    def batch_size(self) -> int:
        """Samples in the batch; 0 = unknown."""
        return batch_size(self._plan)

    def run(self) -> None:
        """Counts, on whatever rung works, and settles. It raises nothing: the traces after it need the thread."""
        try:
            self._run()
        except Exception as err:  # noqa: BLE001 - whoever waits must get an answer
            self.settle({"missingReason": f"prov4ml failed: {type(err).__name__}: {err}"[:1000]})

    def _run(self) -> None:
        candidates: List[Call] = []
        try:
            if self._captured is not None:
                with host_generators() if self.on_training_thread else contextlib.nullcontext():
                    traced = trace(
                        self._captured,
                        self._plan,
                        self._setting,
                        self._owner.first,
                        self.cancelled,
                        self.on_training_thread,
                    )
                self._owner.check_rung(traced.rung)
                self._owner.first = (traced.rung, traced.call)
                self._owner.values |= traced.rung == META_LENGTHS
                self._captured = None
                self._owner.learn(self._key, self._plan, self.settle(traced.operators))
                return
        except NeedsTrainingThreadError:
            self._owner.due.append(self)
            return
        except CancelledError:
            self.settle({"missingReason": "the process ended before this could be traced"})
            return
        except NotTracedError as err:
            self._reason = str(err)
            candidates = err.candidates
        except Exception as err:  # noqa: BLE001 - nothing may reach the training
            self._reason = f"{type(err).__name__}: {err}"
        self._captured = None
        model = self._model()
        if model is None:
            self.settle({"missingReason": self._reason})
            return
        refusal = _refusal(model)
        if refusal:
            self._reason += f"; not watched: {refusal}"
            self._without_trace()
            return
        observer = Observer(candidates, self._plan, self._setting, self._observed)
        self._owner.observe(observer)
        try:
            observer.start(model)
        except Exception as err:  # noqa: BLE001 - a ScriptModule takes no hooks
            observer.stop(f"not watched: {type(err).__name__}: {err}")
            return
        self.watching()

    def _observed(self, operators: Optional[Dict[str, Any]], reason: str) -> None:
        if operators is None:
            self._reason += "; " + reason
            self._without_trace()
            return
        operators.setdefault("notes", []).insert(
            0, f"counted from one step of the training; other steps of these shapes may differ ({self._reason})"[:1000]
        )
        self.settle(operators)

    def _without_trace(self) -> None:
        model = self._model()
        if model is not None:
            operators = closed_form.operators(unwrap(model), self._plan, self._setting)
            if operators is not None:
                operators.setdefault("notes", []).insert(0, f"closed form: {self._reason}"[:1000])
                self.settle(operators)
                return
        self.settle({"missingReason": f"not counted: {self._reason}"[:1000]})


def _refusal(model: Any) -> str:
    """Why a step of this model must not be watched; "" = it may be."""
    found = reach(list(model.modules()))
    if found.flex_attention:
        return "flex_attention refuses to run under a watch"
    if found.compiled:
        return "compiled code runs uncompiled under a watch, with other rounding"
    if type(model).__name__ == "DataParallel" and len(getattr(model, "device_ids", [])) > 1:
        return "DataParallel runs its replicas in threads of their own"
    return ""


@contextlib.contextmanager
def host_generators() -> Iterator[None]:
    """Puts the random generators of Python, numpy and torch's CPU back to where they were."""
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    arrays = numpy.random.get_state() if numpy is not None else None
    cpu = torch.get_rng_state()
    try:
        yield
    finally:
        if random.getstate() != python:
            random.setstate(python)
        if numpy is not None and arrays is not None:
            numpy.random.set_state(arrays)
        if not torch.equal(torch.get_rng_state(), cpu):
            torch.set_rng_state(cpu)


def shape_key(x: Any, values: bool, numbers: bool, depth: int = 0) -> Any:
    """What of a batch decides its cost: shapes, dtypes, requires_grad, and numbers where those matter.

    Takes tensors and blueprints alike, with equal results.
    """
    cls = type(x)
    if (cls is _Tensor or isinstance(x, _Tensor)) and not (values and _is_vector(x)):
        return x.shape, x.dtype, x.requires_grad
    if cls is tuple or cls is list:
        if len(x) > 16 and isinstance(x[0], (int, float, str)):
            return cls, len(x), tuple(x) if numbers and len(x) <= _MAX_VALUES and isinstance(x[0], int) else None
        return (cls, *[shape_key(item, values, numbers, depth) for item in x])
    if cls is dict:
        return (dict, *[(key, shape_key(item, values, numbers, depth)) for key, item in x.items()])
    if x is None:
        return None
    if cls is int or cls is bool:
        return x if numbers else cls
    if cls is float or cls is str or cls is bytes:
        return cls
    return _other_key(x, values, numbers, depth)


def _is_vector(x: torch.Tensor) -> bool:
    return not x.is_floating_point() and x.dim() <= 1 and x.device.type == "cpu" and x.numel() <= _MAX_VALUES


def _other_key(x: Any, values: bool, numbers: bool, depth: int) -> Any:
    cls = type(x)
    if isinstance(x, _Tensor):  # whose numbers decide
        return x.shape, x.dtype, x.requires_grad, tuple(x.tolist()) if x.dim() else x.item()
    if cls.__name__ == "Blueprint":
        if values and x.values is not None:
            return x.size, x.dtype, x.grad, tuple(x.values.tolist()) if x.size else x.values.item()
        return x.size, x.dtype, x.grad
    if depth > 6:
        return cls
    if isinstance(x, torch.nn.utils.rnn.PackedSequence):
        sizes = x.batch_sizes if isinstance(x.batch_sizes, torch.Tensor) else x.batch_sizes.values
        return cls, tuple(sizes.tolist()), shape_key(x.data, values, numbers, depth + 1)
    if isinstance(x, (tuple, list)):
        return (cls, *[shape_key(item, values, numbers, depth + 1) for item in x])
    named = fields(x)
    if named is None:
        shape = getattr(x, "shape", None)
        if isinstance(shape, tuple):  # a numpy array
            return cls, shape, str(getattr(x, "dtype", ""))
        named = getattr(x, "__dict__", None)
        if not named:
            return cls
    return (cls, *[(key, shape_key(item, values, numbers, depth + 1)) for key, item in named.items()])
