"""Numbers counted elsewhere: a counter that the user registered, an object's own method, JAX, Keras.

Every number here is a FlopsCount: decimal integers, 1 multiply-accumulate = 2 FLOP, with the method that gave them. A
number that is no positive finite integer is refused with a reason; it never becomes 0.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

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
        count["forward"] = _decimal(forward, "forward", zero=False)
        if backward is not None:
            count["backward"] = _decimal(backward, "backward", zero=True)
    except ValueError as err:
        return missing("user", f"the counter's answer is no count: {err}")
    if dtype:
        count["dtype"] = dtype[:64]
    return count


def total(counts: Sequence[Count]) -> Dict[str, Any]:
    """The fragment of an epoch whose batches were all counted by the user's function."""
    for count in counts:
        if "missingReason" in count:
            return {"incompleteReason": count["missingReason"]}
    if not counts:
        return {"incompleteReason": "the epoch has no batches"}
    whole: Count = {"method": "user", "forward": str(sum(int(count["forward"]) for count in counts))}
    if all("backward" in count for count in counts):
        whole["backward"] = str(sum(int(count["backward"]) for count in counts))
    return {"count": whole}


def _decimal(value: Any, name: str, zero: bool) -> str:
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


# --- JAX --------------------------------------------------------------------------------------------------------------


def is_jax(model: Any) -> bool:
    """Whether model is a function under jax.jit: it can be lowered for given arguments."""
    return "jax" in sys.modules and callable(getattr(model, "lower", None)) and callable(model)


def jax_arguments(batch: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
    """The arguments for lowering, as shapes and dtypes, so that no array is kept alive."""
    jax = sys.modules["jax"]

    def shape_of(leaf: Any) -> Any:
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        if shape is None or dtype is None:
            return leaf
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = jax.tree_util.tree_map(shape_of, batch)
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    return (batch,), {}


def jax_count(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Count:
    """XLA's own analysis of the lowered (not yet compiled) function: the only one that custom calls do not spoil.

    XLA counts elementwise work too, and whatever was lowered: a jitted training step includes its backward. It is best
    effort by contract and may answer None, -1 or 0 when it does not know: those are refused.
    """
    try:
        analysis = model.lower(*args, **kwargs).cost_analysis()
    except Exception as err:  # noqa: BLE001 - JAX raises many kinds
        return missing("cost_analysis", f"jax could not lower the function: {_TYPE(err).__name__}: {err}")
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if len(analysis) == 1 else None
    if not isinstance(analysis, Mapping):
        return missing("cost_analysis", f"jax's cost_analysis answered {analysis!r:.60}")
    flops = analysis.get("flops")
    try:
        return {"method": "cost_analysis", "forward": _decimal(flops, "flops", zero=False)}
    except ValueError as err:
        return missing("cost_analysis", f"jax's cost_analysis does not know: {err}")


# --- Keras and TensorFlow ---------------------------------------------------------------------------------------------


def is_keras(model: Any) -> bool:
    """Whether model is a Keras model of the TensorFlow backend."""
    if "tensorflow" not in sys.modules:
        return False
    return any(cls.__module__.split(".")[0] in ("keras", "tf_keras", "tensorflow") for cls in _TYPE(model).__mro__)


def keras_specs(batch: Any) -> Any:
    """The model's inputs as shapes and dtypes: the first of a pair (inputs, target), as keras.Model.fit has it."""
    tf = sys.modules["tensorflow"]
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        batch = batch[0]

    def spec(leaf: Any) -> Any:
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        if shape is None or dtype is None:
            raise TypeError(f"an input of type {_TYPE(leaf).__name__} has no shape")
        return tf.TensorSpec(tuple(int(size) for size in shape), dtype)

    return tf.nest.map_structure(spec, batch)


def keras_count(model: Any, specs: Any) -> Count:
    """TensorFlow's float_operation over the inference graph, with the batch's own shapes.

    The variables stay placeholders' inputs: nothing is frozen, so no weight is copied.
    """
    tf = sys.modules["tensorflow"]
    try:
        graph = tf.function(lambda inputs: model(inputs, training=False)).get_concrete_function(specs).graph
        builder = tf.compat.v1.profiler.ProfileOptionBuilder
        options = builder(builder.float_operation()).with_empty_output().build()
        flops = tf.compat.v1.profiler.profile(graph, options=options).total_float_ops
    except Exception as err:  # noqa: BLE001 - TensorFlow raises many kinds
        return missing("keras", f"tensorflow could not profile the graph: {_TYPE(err).__name__}: {err}")
    try:
        return {"method": "keras", "forward": _decimal(flops, "float_operation", zero=False)}
    except ValueError as err:
        return missing("keras", f"tensorflow's profiler does not know: {err}")
