"""Logs what each step of a training did to memory, disk, CPU and GPU, through the node agent.

    import prov4ml

    prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=epoch)
    prov4ml.log_flops_per_batch("train_flops", model, batch, prov4ml.Context.TRAINING, step=i)
    prov4ml.log_flops_per_epoch("epoch_flops", model, loader, prov4ml.Context.TRAINING, step=epoch)

Importing this package says hello to the agent, which starts counting; it imports neither torch nor CUDA. No function
raises into the training, waits longer than a second or returns anything but None. Without an agent: one warning.

Variables: PROV4ML_AGENT_SOCKET (default /run/prov4ml/agent.sock), PROV4ML_RUN_ID, PROV4ML_RUN_NAME,
PROV4ML_EXIT_SECONDS (how long the process's end waits for calls that are not sent yet; default 30).
"""

from __future__ import annotations

import atexit
import os
import sys
from time import monotonic_ns

from . import _wire
from ._client import Client as _Client
from ._context import Context, context_fields
from ._notice import Notices as _Notices
from ._version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._costs import Costs as _Costs

__all__ = [
    "Context",
    "end_run",
    "install_alias",
    "log_flops_per_batch",
    "log_flops_per_epoch",
    "log_metric",
    "log_param",
    "log_system_metrics",
    "register_counter",
    "start_run",
    "start_run_ctx",
]

__version__ = VERSION

_EXIT_SECONDS = 30.0
_2_63 = 1 << 63

_notices = _Notices()
_agent = _Client(_notices)
# Made by the first FLOPs call.
_flops_calls: _Costs | None = None


def log_system_metrics(
    context: object = None, step: object = None, synchronous: object = True, timestamp: object = None
) -> None:
    """Logs what this process and its descendants did since its last call of this function.

    context: a Context, any string, or None. step: an integer or None; the same step may be logged often.
    synchronous: True returns when the agent has measured and recorded the call, after a second at most; False writes
    one message and returns. timestamp: ms since the Unix epoch that label the sample; None or 0 is now.
    """
    try:
        # The usual forms are joined here; whatever else a script passes is looked at in _fields.
        if type(context) is Context and type(step) is int and timestamp is None and -_2_63 <= step < _2_63:
            if synchronous is False and _agent.tell(context._usual, step):
                return
            fields = f'{context._fields}"step":{step},'
        else:
            fields = _fields(context, step, timestamp)
        _agent.log(_wire.SYSTEM_METRICS, fields, synchronous is True or _truth(synchronous))
    except Exception as error:
        _swallow("log_system_metrics", error)


def log_flops_per_batch(
    label: object,
    model: object,
    batch: object,
    context: object = None,
    step: object = None,
    synchronous: object = False,
    timestamp: object = None,
) -> None:
    """Logs the FLOPs that the model spends on the batch: forward, and backward if model.training.

    The model is neither run nor changed. batch is what the training step gets: a tensor, (inputs, target), a dict.
    Made for every step, so it does not wait for the agent unless synchronous is true.
    """
    try:
        counting = _flops_calls or _counting()
        usual = synchronous is False and timestamp is None and type(step) is int
        if usual and type(label) is str:
            repeat = counting.repeats.get(label)
            if repeat is not None and repeat.log(model, batch, context, step):  # type: ignore[arg-type]  # an int
                return
        if usual and type(context) is Context and 0 <= step < _2_63:  # type: ignore[operator]
            counting.log_batch(label, model, batch, "", False, context, step)  # type: ignore[arg-type]
        else:
            waits = synchronous is True or _truth(synchronous)
            counting.log_batch(label, model, batch, _fields(context, step, timestamp), waits)
    except Exception as error:
        _swallow("log_flops_per_batch", error)


def log_flops_per_epoch(
    label: object,
    model: object,
    dataset: object,
    context: object = None,
    step: object = None,
    synchronous: object = True,
    timestamp: object = None,
) -> None:
    """Logs the FLOPs that the model spends on an epoch of the dataset: a DataLoader, a Dataset, a Subset."""
    try:
        counting = _counting()
        fields = _fields(context, step, timestamp) + counting.label(label)
        counting.log_epoch(fields, model, dataset, _truth(synchronous))
    except Exception as error:
        _swallow("log_flops_per_epoch", error)


def register_counter(type: type[Any], fn: Callable[[Any, Any], Any] | None) -> None:
    """Counts models of a class, subclasses too, with fn(model, batch), before anything else; None removes it.

    fn returns the FLOPs of the batch (1 multiply-accumulate = 2): an int for the forward, a pair (forward, backward),
    or a mapping with the keys forward, backward and dtype. It runs in the log call; what it raises, or an answer that
    is no positive number, is the reason on the record. Torch is not imported.
    """
    try:
        from . import _flops

        _flops.register_counter(type, fn)
    except Exception as error:
        _swallow("register_counter", error)


def start_run(
    prov_user_namespace: object = None, experiment_name: object = None, *args: object, **kwargs: object
) -> None:
    """Names the run after experiment_name. What else the original takes here has no meaning for the agent."""
    try:
        from . import _upstream

        _upstream.start(_agent, experiment_name)
    except Exception as error:
        _swallow("start_run", error)


class start_run_ctx:  # the original's name, called like a function
    """start_run at the beginning of a with block, end_run at its end."""

    def __init__(
        self, prov_user_namespace: object = None, experiment_name: object = None, *args: object, **kwargs: object
    ) -> None:
        self._experiment_name = experiment_name

    def __enter__(self) -> None:
        start_run(None, self._experiment_name)

    def __exit__(self, *exception: object) -> None:
        end_run()


def end_run(*args: object, **kwargs: object) -> None:
    """Ends the run: the agent records what has happened since the last call, and the totals."""
    try:
        from . import _upstream

        if _flops_calls is not None:
            _flops_calls.finish(monotonic_ns() + _exit_nanos())
        _upstream.end(_agent)
    except Exception as error:
        _swallow("end_run", error)


def log_param(key: object, value: object, *args: object, **kwargs: object) -> None:
    """Adds an attribute to the run; a value of more than 1,024 bytes is cut."""
    try:
        from . import _upstream

        _upstream.param(_agent, key, value)
    except Exception as error:
        _swallow("log_param", error)


def log_metric(
    key: object,
    value: object,
    context: object = None,
    step: object = None,
    source: object = None,
    timestamp: object = None,
    *args: object,
    **kwargs: object,
) -> None:
    """Logs a number of the script's own: an event on this process's next span, and a metric."""
    try:
        from . import _upstream

        _upstream.metric(_agent, key, value, context, step, timestamp)
    except Exception as error:
        _swallow("log_metric", error)


def install_alias(name: str = "yprov4ml") -> None:
    """Makes `import yprov4ml` mean prov4ml.yprov4ml, the original's newest form, unless one is loaded already."""
    from . import yprov4ml

    sys.modules.setdefault(name, yprov4ml)


if not TYPE_CHECKING:  # type checkers shall still find a misspelt name

    def __getattr__(name: str) -> Any:
        if name.startswith("_"):  # asked of every module by importlib, copy, pickle ..., and for our own below
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import _upstream

        return _upstream.inert(__name__, name, _notices)


def _fields(context: object, step: object, timestamp: object) -> str:
    """The common part of a log call's message. What cannot be understood is left out, with a notice."""
    try:
        fields = context_fields(context)
    except Exception as error:
        fields = ""
        _notices.say("context", f"a context whose text cannot be had ({error!r}) is left out")
    if step is not None:
        try:
            fields += f'"step":{_wire.integer(step)},'
        except Exception as error:
            _notices.say(
                "step", f"step must be an integer of 64 bits or None; a {type(step).__name__} is left out ({error})"
            )
    if timestamp is not None:
        try:
            fields += f'"timestamp":{_wire.integer(timestamp)},'
        except Exception as error:
            _notices.say(
                "timestamp",
                f"timestamp must be ms since 1970 or None; a {type(timestamp).__name__} is left out ({error})",
            )
    return fields


def _counting() -> _Costs:
    global _flops_calls
    if _flops_calls is None:
        from ._costs import Costs

        _flops_calls = Costs(_agent)
    return _flops_calls


def _truth(synchronous: object) -> bool:
    try:
        return bool(synchronous)
    except Exception:  # an array, for instance
        return True


def _swallow(function: str, error: Exception) -> None:
    _notices.say(f"error {function}", f"{function} failed and the training goes on: {type(error).__name__}: {error}")


def _exit_nanos() -> int:
    try:
        seconds = float(os.environ.get("PROV4ML_EXIT_SECONDS") or _EXIT_SECONDS)
        return int(max(0.0, min(seconds, 1e6)) * 1e9)
    except ValueError:
        return int(_EXIT_SECONDS * 1e9)


def _at_exit() -> None:
    try:
        deadline = monotonic_ns() + _exit_nanos()
        if _flops_calls is not None:
            _flops_calls.close(deadline)
        _agent.close(deadline)
    except Exception as error:
        _swallow("the end", error)


def _begin() -> None:
    """Says hello and sees to fork and exit."""
    try:
        _agent.at_worker_exit = _at_exit
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_agent.forked)
        atexit.register(_at_exit)
        _agent.hello()
    except Exception as error:
        _swallow("the hello", error)


_begin()
