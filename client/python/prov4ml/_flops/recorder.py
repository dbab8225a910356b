"""Records every operator that torch dispatches, as the socket's contract wants it.

`Recorder` only looks: it may sit on a user's own step. `ShadowRecorder` also keeps a trace harmless: it sends factories
of other devices to the trace's own, gives random operators on real tensors a generator of their own, and refuses to
touch a tensor that is not the trace's (a closure that still calls the original model) or to talk to other ranks.
"""

from __future__ import annotations

import collections
import functools
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .checkpoints import leave_generator_alone
from .settings import any_autocast, any_autocast_dtype, saved_tensor_hooks
from .shadow import is_marked, mark

FORWARD, BACKWARD, RECOMPUTE = "FORWARD", "BACKWARD", "RECOMPUTE"

# Schema arguments that change a count and are no tensor; the agent ignores others.
_SCALARS = frozenset(
    (
        "batch_first", "bidirectional", "custom_mask_type", "dim", "dims_other", "dims_self", "expand1", "expand2",
        "expand3", "has_biases", "is_causal", "kernel_size", "num_layers", "onesided", "output_mask", "path", "reverse",
        "train", "training", "transposed", "use_input_stats", "window_size", "window_size_left", "window_size_right",
    )
)  # fmt: skip
_STRINGS = frozenset(("approximate", "equation", "mode", "padding"))

# Operators that need the numbers of an integer vector in host memory.
_REAL_LENGTHS = frozenset(("aten._pack_padded_sequence", "aten._pad_packed_sequence"))
_MAX_REAL_ELEMENTS = 1 << 16  # a larger tensor made without a device becomes a meta tensor


class ForeignTensorError(Exception):
    """The forward uses a tensor of the running model, not of its shadow."""


class CollectiveError(Exception):
    """The forward talks to other ranks."""


class CancelledError(BaseException):
    """The trace was told to end. No Exception, so that the model cannot catch it."""


class Tensor(NamedTuple):
    """One operand or result, hashable."""

    argument: str
    dims: Tuple[int, ...]
    dtype: str
    grad: bool


class Execution(NamedTuple):
    """What makes two executions the same."""

    name: str
    module: str
    phase: str
    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]
    scalars: Tuple[Tuple[str, int], ...]
    strings: Tuple[Tuple[str, str], ...]
    lengths: Tuple[int, ...]


class _Form(NamedTuple):
    """What is fixed for one operator."""

    name: str
    arguments: Tuple[str, ...]
    written: Tuple[str, ...]
    random: bool
    generator: Optional[Callable[..., Any]]
    device: bool


@functools.lru_cache(maxsize=4096)
def _form(func: Any) -> _Form:
    schema = func._schema
    name = func._schema.name.replace("::", ".")
    arguments = tuple(argument.name for argument in schema.arguments)
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    random = torch.Tag.nondeterministic_seeded in func.tags
    generator = None
    if random:
        if "generator" in arguments:
            generator = func
        else:
            for overload in func.overloadpacket.overloads():
                other = getattr(func.overloadpacket, overload)
                names = [a.name for a in other._schema.arguments]
                if "generator" in names and [n for n in names if n != "generator"] == list(arguments):
                    generator = other
    return _Form(name, arguments, written, random, generator, "device" in arguments)


@functools.lru_cache(maxsize=64)
def dtype_name(dtype: torch.dtype) -> str:
    """torch's name without the prefix."""
    return str(dtype)[6:]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the executions of each operator."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.executions: Dict[Execution, int] = collections.Counter()
        self.path: List[str] = [""]
        self.backward = False
        # dtype of an autocast region that was entered inside the model.
        self.autocast = ""
        # Whether an operator ran inside activation checkpointing (or other saved-tensor hooks).
        self.checkpoints = False
        # Operators of the forward that ran with grad mode off.
        self.without_grad: Set[str] = set()
        # What autograd saw of a distributed operator whose local one is to come: its name and its operands' bits.
        self._distributed: Tuple[str, List[bool]] = ("", [])
        # Symbolic or unreadable shapes, by operator.
        self.unreadable: Dict[str, int] = collections.Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        names = {cls.__name__ for cls in types}
        if "DTensor" in names:
            return self._distribute(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        # Fake tensors in a real step are torch's own questions about shapes, as distributed tensors ask them.
        if "FakeTensor" not in names:
            self.record(func, args, kwargs or {}, result)
        return result

    def _distribute(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Leaves an operator on distributed tensors to them: the local operators that they run come back here.

        Autograd is above, so the local tensors need no gradient; the bits are those of the distributed ones.
        """
        grad_mode = torch.is_grad_enabled()
        bits = [grad_mode and tensor.requires_grad for tensor in _tensors((args, kwargs))]
        self._distributed = (_form(func).name, bits)
        return NotImplemented

    def phase(self) -> str:
        """Autograd runs gradients with grad mode off; checkpointing turns it on to run the forward again."""
        if not self.backward:
            return FORWARD
        return RECOMPUTE if torch.is_grad_enabled() else BACKWARD

    def record(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], result: Any) -> None:
        """Adds one execution."""
        try:
            if hasattr(func, "_schema"):
                form = _form(func)
                execution = self._execution(form.name, _named(form.arguments, args, kwargs), result)
            else:
                named = [("", value) for value in _flat((args, kwargs))]
                execution = self._execution("higher_order." + str(getattr(func, "__name__", func)), named, result)
        except (AttributeError, RuntimeError, TypeError, NotImplementedError):
            self.unreadable[str(func)] += 1
            return
        self.executions[execution] += 1
        if not self.autocast and any_autocast():
            self.autocast = any_autocast_dtype()
        if execution.phase == FORWARD and not torch.is_grad_enabled():
            self.without_grad.add(execution.name)
        hooks = saved_tensor_hooks()
        if hooks is not None:
            self.checkpoints = True
            self.inside_hooks(hooks)

    def inside_hooks(self, hooks: Any) -> None:
        """Called for each operator that runs under saved-tensor hooks, with the pair (pack, unpack)."""

    def add(self, name: str, named: List[Tuple[str, Any]], result: Any, lengths: Tuple[int, ...]) -> None:
        """Adds one execution of an operator that was not dispatched."""
        self.executions[self._execution(name, named, result, lengths)] += 1

    def _execution(self, name: str, named: Any, result: Any, lengths: Tuple[int, ...] = ()) -> Execution:
        grad_mode = torch.is_grad_enabled()
        inputs: List[Tensor] = []
        scalars: List[Tuple[str, int]] = []
        strings: List[Tuple[str, str]] = []
        for argument, value in named:
            if isinstance(value, torch.Tensor):
                inputs.append(_tensor(argument, value, grad_mode))
            elif isinstance(value, (list, tuple)):
                if argument == "output_mask":
                    scalars.append((argument, sum(1 << i for i, bit in enumerate(value) if bit)))
                    continue
                for i, item in enumerate(value):
                    if isinstance(item, torch.Tensor):
                        inputs.append(_tensor(argument, item, grad_mode))
                    elif isinstance(item, int) and argument in _SCALARS:
                        scalars.append((f"{argument}.{i}", int(item)))
            elif isinstance(value, int):
                if argument in _SCALARS:
                    scalars.append((argument, int(value)))
            elif isinstance(value, str) and argument in _STRINGS:
                strings.append((argument, value))
        if self._distributed[0] == name:
            bits = self._distributed[1]
            self._distributed = ("", [])
            if len(bits) == len(inputs):
                inputs = [tensor._replace(grad=bit) for tensor, bit in zip(inputs, bits)]
        outputs = tuple(_tensor("", value, grad_mode) for value in _tensors(result))
        return Execution(
            name, self.path[-1], self.phase(), tuple(inputs), outputs, tuple(scalars), tuple(strings), lengths
        )


class ShadowRecorder(Recorder):  # type: ignore[no-untyped-call]
    """Records a trace on meta or fake tensors and keeps it harmless."""

    def __init__(self, device: str, cancelled: Callable[[], bool]) -> None:
        super().__init__()
        self._device = device  # "meta", or "cpu" for fake tensors
        self._cancelled = cancelled
        # The trace may run beside the training, whose generator must not move.
        self._generator = torch.Generator()
        self._generator.manual_seed(0)
        # Whether checkpointing would save and set the training's random generator when the backward is run.
        self.sets_generator = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        if self._cancelled():
            raise CancelledError
        kwargs = dict(kwargs or {})
        run = func
        if hasattr(func, "_schema"):
            form = _form(func)
            if form.name.startswith(("c10d.", "_c10d_functional.")):
                raise CollectiveError(f"{form.name} inside the forward: a shadow must not talk to other ranks")
            args, kwargs = self._keep_apart(form, args, kwargs)
            if form.device:
                self._redirect(args, kwargs)
            if form.random and self._device == "meta" and not _has_meta((args, kwargs)):
                device = kwargs.get("device")
                if device is None or torch.device(device).type != "meta":
                    run = self._own_generator(form, kwargs)
        result = run(*args, **kwargs)
        if self._device == "meta":
            for tensor in _tensors(result):
                if tensor.device.type != "meta":
                    mark(tensor)
        self.record(func, args, kwargs, result)
        return result

    def inside_hooks(self, hooks: Any) -> None:
        self.sets_generator |= not leave_generator_alone(hooks)

    def _redirect(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        kwargs.pop("pin_memory", None)
        device = kwargs.get("device")
        wanted = torch.device(device).type if device is not None else "cpu"
        if self._device == "cpu":
            if wanted not in ("cpu", "meta"):
                kwargs["device"] = torch.device("cpu")
            return
        if device is None:
            size = args[0] if args and isinstance(args[0], (list, tuple)) else ()
            elements = 1
            for extent in size:
                elements *= extent if isinstance(extent, int) else 1
            if elements > _MAX_REAL_ELEMENTS:
                kwargs["device"] = torch.device("meta")
        elif wanted != "cpu" or _has_meta((args, kwargs)):
            kwargs["device"] = torch.device("meta")

    def _own_generator(self, form: _Form, kwargs: Dict[str, Any]) -> Any:
        if form.generator is None:
            raise ForeignTensorError(f"{form.name} on a real tensor would move the training's random generator")
        if kwargs.get("generator") is None:
            kwargs["generator"] = self._generator
        return form.generator

    def _keep_apart(
        self, form: _Form, args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """Meta tensors in place of real ones where both meet; refuses tensors of the running model."""
        real = shadow = False
        for tensor in _tensors((args, kwargs)):
            if _is_shadow(tensor):
                shadow = True
            else:
                real = True
        if not real:
            return args, kwargs
        for argument, value in _named(form.arguments, args, kwargs):
            for tensor in _tensors(value):
                if _is_shadow(tensor) or is_marked(tensor):
                    continue
                held = isinstance(tensor, torch.nn.Parameter) or tensor.requires_grad
                if held or argument in form.written or "batch_norm" in form.name:
                    raise ForeignTensorError(
                        f"{form.name} uses the running model's own tensor: something in the model still points at the "
                        "original (a patched forward or a function that refers to the model from outside)"
                    )
        # Fake tensors' own mode decides about other tensors.
        if not shadow or self._device != "meta" or form.name in _REAL_LENGTHS:
            return args, kwargs

        def twin(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                if value.device.type == "meta" or value.dim() == 0:
                    return value
                return torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype, device="meta")
            if isinstance(value, list):
                return [twin(item) for item in value]
            if isinstance(value, tuple):
                return tuple(twin(item) for item in value)
            return value

        return tuple(twin(value) for value in args), {key: twin(value) for key, value in kwargs.items()}


def _named(names: Tuple[str, ...], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Iterator[Tuple[str, Any]]:
    yield from zip(names, args)
    if kwargs:
        for name in names[len(args) :]:
            if name in kwargs:
                yield name, kwargs[name]


def _tensor(argument: str, tensor: torch.Tensor, grad_mode: bool) -> Tensor:
    dims = tuple(tensor.shape)
    for extent in dims:
        if type(extent) is not int:
            raise TypeError("symbolic size")
    return Tensor(argument, dims, dtype_name(tensor.dtype), grad_mode and tensor.requires_grad)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _flat(item)
    else:
        yield value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in _flat(value):
            if isinstance(item, torch.Tensor):
                yield item


def _is_shadow(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "meta" or type(tensor).__name__ == "FakeTensor" or hasattr(tensor, "fake_mode")


def _has_meta(value: Any) -> bool:
    return any(tensor.device.type == "meta" for tensor in _tensors(value))
