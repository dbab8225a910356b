"""Runs a shadow and says what it executed.

Forward only, with the bits from which the agent derives the backward exactly. Two things the bits cannot show: work
that activation checkpointing repeats, and a forward that runs with grad mode off although it is differentiated (a
custom autograd.Function, reentrant checkpointing). When a trace shows signs of either, the shadow's backward is run
as well, as a second witness; gradients land on the shadow.
"""

from __future__ import annotations

import collections.abc
import contextlib
import sys
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Mapping, NamedTuple, Tuple

import torch

from . import products
from .calls import Call, calls, fields
from .capture import Captured
from .checkpoints import leave_generators_alone
from .recorder import BACKWARD, RECOMPUTE, CancelledError, Execution, Recorder, ShadowRecorder
from .recurrent import RecurrentMode
from .shadow import FAKE, META, META_LENGTHS, materialise

RUNGS = (META, META_LENGTHS, FAKE)

# What a forward raises when it asks for the numbers in a tensor.
_DATA_DEPENDENT = (
    "DataDependentOutputException", "DynamicOutputShapeException", "GuardOnDataDependentSymNode",
    "cannot be called on meta tensors", "Cannot copy out of meta tensor", "aten::nonzero", "meta tensor",
    "ForeignTensorError", "non-meta", "on the expected device meta",
)  # fmt: skip


class Setting(NamedTuple):
    """What surrounds a call, besides model and batch."""

    training: bool
    autocast: str  # dtype, "" = off
    float32_matmul: str
    float32_convolution: str
    suspect: bool  # whether activation checkpointing must be assumed


class Traced(NamedTuple):
    """A successful trace."""

    operators: Dict[str, Any]  # the OperatorList without its signature
    rung: str
    call: int


class NotTracedError(Exception):
    """No rung worked. The message says why; calls are the argument lists that a real step may show."""

    def __init__(self, reason: str, candidates: List[Call]) -> None:
        super().__init__(reason)
        self.candidates = candidates


class NeedsTrainingThreadError(Exception):
    """The witness would set the random generator: only the training thread may do that, between its own steps."""


def trace(
    captured: Captured,
    batch: Any,
    setting: Setting,
    first: Tuple[str, int],
    cancelled: Callable[[], bool],
    on_training_thread: bool,
) -> Traced:
    """Traces on the first rung and call that work, beginning with those that worked before.

    Raises NotTracedError, NeedsTrainingThreadError, CancelledError.
    """
    candidates = calls(captured.shell.forward, batch)
    order = sorted(range(len(candidates)), key=lambda i: i != first[1])
    rungs = sorted(RUNGS, key=lambda rung: rung != first[0])
    failures: List[str] = []
    for number in order:
        depends = False
        for rung in rungs:
            if rung == META_LENGTHS and not _has_lengths(candidates[number]):
                continue
            try:
                run = Run(captured, candidates[number], setting, rung, cancelled)
                return Traced(run.operators(on_training_thread), rung, number)
            except (CancelledError, NeedsTrainingThreadError):
                raise
            except Exception as err:  # noqa: BLE001 - the model's own code runs here
                failures.append(f"{rung}: {_sentence(err)}")
                depends = depends or _is_data_dependent(err)
                if _in_flex_attention(err):
                    raise NotTracedError("flex_attention: torch runs it compiled or not at all", []) from err
        if depends:
            break
    # The first call is the likeliest one, so its reasons are the ones to read.
    raise NotTracedError("; ".join(failures[: len(rungs)]) or "no way to call the model", candidates)


class Run:
    """One execution of a fresh shadow."""

    def __init__(
        self, captured: Captured, call: Call, setting: Setting, rung: str, cancelled: Callable[[], bool]
    ) -> None:
        self._captured = captured
        self._call = call
        self._setting = setting
        self._rung = rung
        self._cancelled = cancelled
        self.notes: List[str] = []

    def operators(self, on_training_thread: bool) -> Dict[str, Any]:
        """The OperatorList, without its signature."""
        recorder = self.forward(recurrent=True)
        training = self._setting.training
        executions = dict(recorder.executions)
        recorded = False
        hidden = any(products.is_product(name) for name in recorder.without_grad)
        if training and (hidden or recorder.checkpoints or self._setting.suspect):
            executions, recorded = self._witness(executions, on_training_thread)
        if self._captured.dropped_hooks:
            self.notes.append(f"forward hooks of the user's were not run: {self._captured.dropped_hooks}")
        for name, count in sorted(recorder.unreadable.items()):
            self.notes.append(f"shapes of {name} could not be read: {count} executions not counted")
        return operator_list(
            executions,
            self._setting,
            method=FAKE if self._rung == FAKE else META,
            autocast=self._setting.autocast or recorder.autocast,
            batch_size=batch_size((self._call.args, self._call.kwargs)),
            notes=self.notes,
            backward_recorded=recorded,
        )

    def _witness(self, executions: Dict[Execution, int], on_training_thread: bool) -> Tuple[Dict[Execution, int], bool]:
        """The same trace with its backward run. Bits win unless the backward shows more than they say."""
        try:
            recorder = self.forward(recurrent=False, backward=True, on_training_thread=on_training_thread)
        except (CancelledError, NeedsTrainingThreadError):
            raise
        except Exception as err:  # noqa: BLE001 - the model's own code runs here
            self.notes.append(
                "the backward could not be run on the shadow, so work inside custom autograd functions and "
                f"recomputation are not seen: {_sentence(err)}"
            )
            return executions, False
        seen = dict(recorder.executions)
        derived = products.derived_backward(seen)
        executed = sum(products.forward_work(e) * n for e, n in seen.items() if e.phase == BACKWARD)
        recompute = {e: n for e, n in seen.items() if e.phase == RECOMPUTE}
        if executed > derived:
            self.notes.append("backward taken from the shadow's own: part of the forward runs with grad mode off")
            return seen, True
        return {**executions, **recompute}, False

    def forward(self, recurrent: bool, backward: bool = False, on_training_thread: bool = False) -> ShadowRecorder:
        """One forward, and its backward if asked for; recurrent: fused recurrent layers count as one operator."""
        copier, model, (args, kwargs), enter = materialise(
            self._captured.shell, (self._call.args, self._call.kwargs), self._rung
        )
        recorder = ShadowRecorder("cpu" if self._rung == FAKE else "meta", self._cancelled)
        _follow(copier.modules, recorder)
        autocast: Any = contextlib.nullcontext()
        if self._rung == FAKE and self._setting.autocast:
            autocast = torch.autocast("cpu", dtype=getattr(torch, self._setting.autocast), cache_enabled=False)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(self._setting.training))
            stack.enter_context(enter())
            stack.enter_context(autocast)
            stack.enter_context(_eager_inside())
            if recurrent:
                stack.enter_context(RecurrentMode(recorder))
            with recorder:
                result = model(*args, **kwargs)
            if backward:
                self._backward(result, recorder, on_training_thread)
        return recorder

    def _backward(self, result: Any, recorder: ShadowRecorder, on_training_thread: bool) -> None:
        leaves = [t for t in _floats(result) if t.requires_grad]
        if not leaves:
            return
        recorder.sets_generator |= self._setting.suspect or not leave_generators_alone(leaves)
        if recorder.sets_generator and not on_training_thread:
            raise NeedsTrainingThreadError
        loss = sum(leaf.abs().sum() if leaf.is_complex() else leaf.sum() for leaf in leaves)
        recorder.backward = True
        with recorder:
            loss.backward()  # type: ignore[union-attr]


def _eager_inside() -> ContextManager[Any]:
    """Functions that torch.compile has wrapped, fullgraph included, run as they were written, on this thread."""
    frames: Any = sys.modules.get("torch._dynamo.eval_frame")
    eager = getattr(frames, "_use_eager_on_nested_compile", None)
    return eager() if eager is not None else contextlib.nullcontext()


def _follow(modules: List[Tuple[str, torch.nn.Module]], recorder: Recorder) -> None:
    """Makes each shell tell the recorder when it is entered and left.

    nn.Module.__call__ looks for _compiled_call_impl first: hooks that are global to the process are not run, and the
    modules keep their own classes. Hooks that the shell kept, and those that the forward adds to it, are.
    """
    for path, module in modules:
        module.__dict__["_compiled_call_impl"] = _call_of(module, path, recorder)


def _call_of(module: Any, path: str, recorder: Recorder) -> Callable[..., Any]:
    stack = recorder.path

    def call(*args: Any, **kwargs: Any) -> Any:
        stack.append(path)
        try:
            for key, hook in list(module._forward_pre_hooks.items()):
                if key in module._forward_pre_hooks_with_kwargs:
                    answer = hook(module, args, kwargs)
                    if answer is not None:
                        args, kwargs = answer
                else:
                    answer = hook(module, args)
                    if answer is not None:
                        args = answer if isinstance(answer, tuple) else (answer,)
            result = module.forward(*args, **kwargs)
            for key, hook in list(module._forward_hooks.items()):
                with_kwargs = key in module._forward_hooks_with_kwargs
                answer = hook(module, args, kwargs, result) if with_kwargs else hook(module, args, result)
                if answer is not None:
                    result = answer
            return result
        finally:
            stack.pop()

    return call


def operator_list(
    executions: Mapping[Execution, int],
    setting: Setting,
    method: str,
    autocast: str,
    batch_size: int,
    notes: List[str],
    backward_recorded: bool = False,
) -> Dict[str, Any]:
    """The OperatorList, without its signature, in protobuf's JSON mapping."""
    message: Dict[str, Any] = {
        "operators": [_operator(execution, count) for execution, count in executions.items()],
        "training": setting.training,
        "method": method,
    }
    if autocast:
        message["autocastDtype"] = autocast
    if notes:
        message["notes"] = [note[:1000] for note in notes[:64]]
    if batch_size:
        message["batchSize"] = batch_size
    if backward_recorded:
        message["backwardRecorded"] = True
    if setting.float32_matmul:
        message["float32MatmulDtype"] = setting.float32_matmul
    if setting.float32_convolution:
        message["float32ConvolutionDtype"] = setting.float32_convolution
    return message


def _operator(execution: Execution, count: int) -> Dict[str, Any]:
    message: Dict[str, Any] = {"name": execution.name[:256], "phase": execution.phase}
    if count > 1:
        message["count"] = count
    if execution.inputs:
        message["inputs"] = [_tensor(tensor) for tensor in execution.inputs]
    if execution.outputs:
        message["outputs"] = [_tensor(tensor) for tensor in execution.outputs]
    if execution.scalars:
        message["scalars"] = dict(execution.scalars[:64])
    if execution.strings:
        message["strings"] = {key: value[:256] for key, value in execution.strings[:16]}
    if execution.module:
        message["module"] = execution.module
    if execution.lengths:
        message["lengths"] = list(execution.lengths)
    return message


def _tensor(tensor: Any) -> Dict[str, Any]:
    message: Dict[str, Any] = {"dtype": tensor.dtype}
    if tensor.dims:
        message["dims"] = list(tensor.dims)
    if tensor.grad:
        message["grad"] = True
    if tensor.argument:
        message["argument"] = tensor.argument
    return message


def batch_size(batch: Any) -> int:
    """The first extent of the first tensor (or blueprint) that has one; 0 = unknown."""
    for value in walk(batch):
        size = getattr(value, "size", None) if not isinstance(value, torch.Tensor) else value.shape
        if isinstance(size, tuple) and size:
            return int(size[0])
    return 0


def walk(value: Any, depth: int = 0) -> Iterator[Any]:
    """The leaves of tuples, lists, mappings and dataclasses."""
    if depth > 8:
        return
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for item in value:
            yield from walk(item, depth + 1)
        return
    named = fields(value)
    if named is not None:
        for item in named.values():
            yield from walk(item, depth + 1)
        return
    yield value


def _has_lengths(call: Call) -> bool:
    for leaf in walk((call.args, call.kwargs)):
        if getattr(leaf, "values", None) is not None and not isinstance(leaf, collections.abc.Mapping):
            return True
    return False


def _floats(value: Any) -> Iterator[torch.Tensor]:
    for leaf in walk(value):
        if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            yield leaf


def _sentence(err: BaseException) -> str:
    text = str(err).strip().splitlines()
    return f"{type(err).__name__}: {text[0][:200] if text else ''}"


def _is_data_dependent(err: BaseException) -> bool:
    text = f"{type(err).__name__}: {err}"
    return isinstance(err, NotImplementedError) or any(mark in text for mark in _DATA_DEPENDENT)


def _in_flex_attention(err: BaseException) -> bool:
    """Whether flex_attention raised: it needs torch.compile, which refuses to run under a dispatch mode."""
    frame = err.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.endswith("flex_attention.py"):
            return True
        frame = frame.tb_next
    return False
