"""Numbers counted elsewhere: a counter that the user registered, an object's own method.

Every number here is a FlopsCount: decimal integers, 1 multiply-accumulate = 2 FLOP, with the method that gave them. A
number that is no positive finite integer is refused with a reason; it never becomes 0.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Callable, Dict, Mapping, Optional, Sequence

Counter = Callable[[Any, Any], Any]
Count = Dict[str, str]

# What was registered.
by_type: Dict[type, Counter] = {}
_lock = threading.Lock()
_MAX_DIGITS = 80  # of a decimal integer in the socket's contract


def register_counter(type: type, fn: Optional[Counter]) -> None:  # noqa: A002 - the documented name
    """Counts models of a type with fn(model, batch); None removes the counter.

    fn returns the FLOP of the call (1 multiply-accumulate = 2) as an int, a pair (forward, backward), or a mapping with
    the keys forward, backward and dtype. It is called in the log call, on its thread.
    """
    if not isinstance(type, _TYPE):
        raise TypeError(f"register_counter: the first argument must be a class, not {type!r}")
    if fn is not None and not callable(fn):
        raise TypeError(f"register_counter: the second argument must be a function or None, not {fn!r}")
    with _lock:
        if fn is None:
            by_type.pop(type, None)
        else:
            by_type[type] = fn


_TYPE = type


def registered(model: Any) -> Optional[Counter]:
    """The counter registered for the nearest class of model."""
    if not by_type:
        return None
    for cls in _TYPE(model).__mro__:
        fn = by_type.get(cls)
        if fn is not None:
            return fn
    return None


def own_method(model: Any) -> Optional[Callable[[Any], Any]]:
    """The model's own flops(batch), if it has such a method."""
    fn = getattr(_TYPE(model), "flops", None)
    return getattr(model, "flops", None) if callable(fn) else None


def missing(method: str, reason: str) -> Count:
    """A count that says why it is none."""
    return {"method": method, "missingReason": reason[:1000]}


def user_count(fn: Callable[..., Any], *args: Any) -> Count:
    """What a user's function says, checked."""
    try:
        answer = fn(*args)
    except Exception as err:  # noqa: BLE001 - it is the user's function
        return missing("user", f"the counter raised {_TYPE(err).__name__}: {err}")
    dtype = ""
    backward: Any = None
    if isinstance(answer, Mapping):
        forward = answer.get("forward")
        backward = answer.get("backward")
        dtype = str(answer.get("dtype") or "")
    elif isinstance(answer, tuple) and len(answer) == 2:
        forward, backward = answer
    else:
        forward = answer
    count: Count = {"method": "user"}
    try:
        count["forward"] = decimal(forward, "forward", zero=False)
        if backward is not None:
            count["backward"] = decimal(backward, "backward", zero=True)
    except ValueError as err:
        return missing("user", f"the counter's answer is no count: {err}")
    if dtype:
        count["dtype"] = dtype[:64]
    return count


def total(counts: Sequence[Count]) -> Dict[str, Any]:
    """The fragment of an epoch whose batches were all counted elsewhere."""
    for count in counts:
        if "missingReason" in count:
            return {"incompleteReason": count["missingReason"]}
    if not counts:
        return {"incompleteReason": "the epoch has no batches"}
    whole: Count = {
        "method": counts[0].get("method", ""),
        "forward": str(sum(int(count["forward"]) for count in counts)),
    }
    if all("backward" in count for count in counts):
        whole["backward"] = str(sum(int(count["backward"]) for count in counts))
    return {"count": whole}


def decimal(value: Any, name: str, zero: bool) -> str:
    """A count as a decimal integer; ValueError for what is none. zero: whether 0 is one."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"{name} is {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
        if isinstance(value, int):
            number = math.inf if value > 0 else -math.inf
            if len(str(abs(value))) <= _MAX_DIGITS:
                number = 1.0 if value > 0 else -1.0
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r:.60}, not a finite number")
    integer = int(value) if isinstance(value, int) else round(number)
    if integer < 0 or (integer == 0 and not zero):
        raise ValueError(f"{name} is {integer}")
    text = str(integer)
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"{name} has more than {_MAX_DIGITS} digits")
    return text
