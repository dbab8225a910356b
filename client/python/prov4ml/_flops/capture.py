"""Copies a structure of modules and plain objects without copying a single tensor.

A copy is made twice. On the training thread the model and the batch are *captured*: every tensor becomes a Blueprint
(size, stride, dtype, requires_grad), which costs no torch operation and keeps nothing of the training alive. Later,
on the tracing thread, `shadow` copies the captured structure again and puts meta or fake tensors in place of the
blueprints.

Modules become empty shells of the same class with a copied ``__dict__``; no constructor, no ``__deepcopy__``, no hook
of the user's runs. Plain containers, objects with a ``__dict__``, closures, bound methods and partials are rebuilt,
so that what pointed at the model points at its copy. Whatever cannot be rebuilt (locks, handles, loggers, trainers,
large arrays) is shared.
"""

from __future__ import annotations

import collections
import copy
import enum
import functools
import random
import re
import sys
import types
import weakref
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch

_MAX_OBJECTS = 100_000  # objects rebuilt for one model; beyond, what is no module, container or tensor is shared
_MAX_ARRAY_BYTES = 1 << 20  # a larger numpy array is shared
_MAX_LENGTHS = 4096  # elements of an integer vector whose values are kept: sequence lengths, not labels


class UnshadowableError(Exception):
    """This model has no shadow; the message says why."""


class Blueprint:
    """A tensor without its data."""

    __slots__ = ("__weakref__", "dtype", "grad", "keep", "parameter", "size", "stride", "values")

    def __init__(
        self,
        size: Tuple[int, ...],
        stride: Tuple[int, ...],
        dtype: torch.dtype,
        grad: bool,
        parameter: bool = False,
        keep: bool = False,
        values: Optional[torch.Tensor] = None,
    ) -> None:
        self.size = size
        self.stride = stride
        self.dtype = dtype
        self.grad = grad
        self.parameter = parameter
        # The real numbers, where they are few integers that already lie in host memory: sequence lengths.
        self.values = values
        # Whether the shadow has these numbers on every rung: counters of a module, sizes of a packed sequence.
        self.keep = keep and values is not None


_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), type, enum.Enum, re.Pattern,
    types.ModuleType, types.BuiltinFunctionType, types.CodeType, property, torch.dtype, torch.device, torch.Size,
    torch.memory_format, torch.layout,
)  # fmt: skip

# Objects of these packages hold on to the training (loaders, optimizers, trackers) or to the process (locks, files).
_SHARED = (
    "_io", "_thread", "accelerate", "asyncio", "concurrent", "datasets", "io", "lightning", "lightning_fabric",
    "logging",
    "mlflow", "multiprocessing", "pandas", "PIL", "pytorch_lightning", "queue", "socket", "sqlite3", "tensorboard",
    "threading", "tokenizers", "torch._dynamo", "torch._inductor", "torch.cuda", "torch.distributed", "torch.jit",
    "torch.optim", "torch.profiler", "torch.utils.data", "torch.utils.tensorboard", "transformers.trainer", "wandb",
)  # fmt: skip

# Hooks that are part of the computation: weight norm, spectral norm, pruning; inputs that are made to require grad.
_LIBRARY_HOOKS = ("torch.nn.utils", "transformers.", "peft.")
# Hooks that move data around, or are ours.
_IGNORED_HOOKS = ("torch.", "accelerate.", "prov4ml.")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Bookkeeping of hooks, keyed like the hooks themselves.
_HOOK_FLAGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_DROPPED = (
    "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
# Never carried over: compiled calls, and accelerate's device hook around forward.
_SKIPPED = ("_compiled_call_impl", "_hf_hook", "_old_forward")


def unwrap(model: Any) -> Any:
    """The module that does the work, inside DataParallel, DistributedDataParallel and torch.compile."""
    for _ in range(16):
        inner = None
        if isinstance(model, torch.nn.Module):
            modules = model.__dict__.get("_modules", {})
            if "_orig_mod" in modules and type(model).__name__ == "OptimizedModule":
                inner = modules["_orig_mod"]
            elif type(model).__name__ in ("DistributedDataParallel", "DataParallel", "DistributedModel"):
                inner = modules.get("module")
        if inner is None:
            return model
        model = inner
    return model


class Captured:
    """A model's structure with blueprints for tensors."""

    __slots__ = ("dropped_hooks", "shares", "shell")

    def __init__(self, shell: Any, dropped_hooks: int, shares: bool) -> None:
        self.shell = shell
        # User hooks that the shadow does not run.
        self.dropped_hooks = dropped_hooks
        # Whether something opaque is shared with the training, so that this must not outlive its use.
        self.shares = shares


def capture_model(model: torch.nn.Module) -> Captured:
    """The structure of a model. Raises UnshadowableError."""
    _refuse_tensor_parallel(unwrap(model))
    copier = Copier(blueprint)
    shell = copier.module(model)
    return Captured(shell, copier.dropped_hooks, copier.shares)


def capture_batch(batch: Any) -> Any:
    """The structure of a batch; the values of short integer vectors in host memory are kept."""
    return Copier(functools.partial(blueprint, values=True)).value(batch)


def _refuse_tensor_parallel(model: torch.nn.Module) -> None:
    for module in model.modules():
        whole = any(base.__name__ == "FSDPModule" for base in type(module).__mro__)
        for parameter in () if whole else module._parameters.values():
            if type(parameter).__name__ == "DTensor" or type(getattr(parameter, "data", None)).__name__ == "DTensor":
                mesh = getattr(parameter, "device_mesh", None)
                placements = getattr(parameter, "placements", ())
                sharded = any(getattr(placement, "is_shard", bool)() for placement in placements)
                if mesh is not None and mesh.size() > 1 and sharded and not _under_fsdp(model):
                    raise UnshadowableError("the model is split over ranks by tensor parallelism")


def _under_fsdp(model: torch.nn.Module) -> bool:
    return any(base.__name__ == "FSDPModule" for module in model.modules() for base in type(module).__mro__)


def blueprint(tensor: Any, keep: bool = False, values: bool = False) -> Blueprint:
    """What a tensor is without its data. Raises UnshadowableError."""
    if isinstance(tensor, Blueprint):
        return tensor
    if torch.nn.parameter.is_lazy(tensor):
        raise UnshadowableError("a lazy module has no shapes before its first step")
    if type(tensor).__name__ == "DTensor":
        return _global(tensor)
    if tensor.is_nested:
        raise UnshadowableError("a nested tensor has no single shape")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnshadowableError(f"a tensor of layout {tensor.layout} (quantized: {tensor.is_quantized}) has no shadow")
    real = None
    if tensor.device.type == "cpu" and not tensor.is_floating_point() and not tensor.is_complex():
        small = tensor.dim() == 0 if not values else tensor.dim() <= 1 and tensor.numel() <= _MAX_LENGTHS
        # FakeTensor and other subclasses have no data to read.
        if small and type(tensor) in (torch.Tensor, torch.nn.Parameter):
            real = _copy_of(tensor)
    return Blueprint(
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.dtype,
        tensor.requires_grad,
        isinstance(tensor, torch.nn.Parameter),
        keep,
        real,
    )


def _copy_of(tensor: torch.Tensor) -> torch.Tensor:
    # numpy-free and outside of any mode the training thread may be in: plain values, then a new tensor.
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction(), torch.inference_mode(False):
        return torch.tensor(tensor.tolist(), dtype=tensor.dtype, device="cpu").reshape(tuple(tensor.shape))


def _global(tensor: Any) -> Blueprint:
    """A distributed parameter as the module computes with it: whole under FSDP2."""
    size = tuple(tensor.shape)
    stride: List[int] = []
    step = 1
    for extent in reversed(size):
        stride.insert(0, step)
        step *= max(extent, 1)
    return Blueprint(size, tuple(stride), tensor.dtype, tensor.requires_grad, isinstance(tensor, torch.nn.Parameter))


class Copier:
    """One copy of one structure; leaf maps each tensor (or blueprint)."""

    def __init__(self, leaf: Callable[..., Any]) -> None:
        self._leaf = leaf
        self._memo: Dict[int, Any] = {}
        self._keep: List[Any] = []  # what the memo's ids belong to
        self._objects = 0
        # Each shell with its path, the first name of a shared module winning.
        self.modules: List[Tuple[str, torch.nn.Module]] = []
        self.dropped_hooks = 0
        self.shares = False

    def module(self, module: Any, path: str = "") -> Any:
        """The shell of a module with everything below it."""
        module = unwrap(module)
        known = self._memo.get(id(module))
        if known is not None:
            return known
        if isinstance(module, torch.jit.ScriptModule):
            raise UnshadowableError(f"{path or 'the model'} is a TorchScript module")
        shell: Any = object.__new__(_plain_class(type(module)))
        self._remember(module, shell)
        self.modules.append((path, shell))
        source = module.__dict__
        target = shell.__dict__
        # Children first, so that names are those of named_modules whatever other attributes point at them.
        target["_modules"] = type(source["_modules"])()
        prefix = path + "." if path else ""
        for name, child in source["_modules"].items():
            target["_modules"][name] = None if child is None else self.module(child, prefix + name)
        for name, entry in source.items():
            if name == "_modules" or name in _SKIPPED:
                continue
            if name in _DROPPED:
                target[name] = type(entry)() if isinstance(entry, dict) else entry
            elif name in _HOOKS:
                target[name] = self._hooks(entry)
            elif name in _HOOK_FLAGS:
                target[name] = type(entry)(entry)
            elif name == "_buffers":
                target[name] = type(entry)()
                for key, buffer in entry.items():
                    target[name][key] = None if buffer is None else self._tensor(buffer, keep=True)
            else:
                target[name] = self.value(entry)
        if "_old_forward" in source and "_hf_hook" in source:
            target["forward"] = self.value(source["_old_forward"])
        if isinstance(module, torch.nn.SyncBatchNorm):
            # Its statistics would be exchanged with the other ranks; the arithmetic is that of batch norm.
            shell.__class__ = _LocalBatchNorm
        return shell

    def value(self, x: Any) -> Any:
        """A copy of x in which every tensor is mapped, and every module of the model replaced by its shell."""
        if isinstance(x, _ATOMS):
            return x
        known = self._memo.get(id(x))
        if known is not None:
            return known
        if isinstance(x, (torch.Tensor, Blueprint)):
            return self._tensor(x)
        if isinstance(x, torch.nn.Module):
            return self.module(x)
        if isinstance(x, (dict, list, tuple, set, frozenset, collections.deque)):
            return self._container(x)
        if isinstance(x, types.MethodType):
            return self._remember(x, types.MethodType(self.value(x.__func__), self.value(x.__self__)))
        if isinstance(x, functools.partial):
            return self._partial(x)
        if isinstance(x, types.FunctionType):
            return self._function(x)
        if isinstance(x, weakref.ref):
            target = x()
            return x if target is None else self._remember(x, weakref.ref(self.value(target)))
        return self._object(x)

    def _remember(self, x: Any, y: Any) -> Any:
        self._memo[id(x)] = y
        self._keep.append(x)
        return y

    def _share(self, x: Any) -> Any:
        self.shares = True
        return self._remember(x, x)

    def _tensor(self, x: Union[torch.Tensor, Blueprint], keep: bool = False) -> Any:
        known = self._memo.get(id(x))
        if known is None:
            known = self._remember(x, self._leaf(x, keep=keep))
        return known

    def _container(self, x: Any) -> Any:
        cls: Any = type(x)
        if isinstance(x, dict):
            if cls is collections.defaultdict:
                y: Any = collections.defaultdict(getattr(x, "default_factory", None))
            else:
                y = cls.__new__(cls)
            self._remember(x, y)
            put = collections.OrderedDict.__setitem__ if isinstance(x, collections.OrderedDict) else dict.__setitem__
            for key, item in x.items():
                put(y, key, self.value(item))
            self._attributes(x, y)
            return y
        if isinstance(x, list):
            y = cls.__new__(cls)
            self._remember(x, y)
            list.extend(y, [self.value(item) for item in x])
            self._attributes(x, y)
            return y
        if isinstance(x, collections.deque):
            y = self._remember(x, collections.deque(maxlen=x.maxlen))
            y.extend(self.value(item) for item in x)
            return y
        if isinstance(x, torch.nn.utils.rnn.PackedSequence):
            self._tensor(x.batch_sizes, keep=True)
        items = [self.value(item) for item in x]
        if isinstance(x, tuple):
            if all(a is b for a, b in zip(items, x)):
                return x
            return self._remember(x, tuple.__new__(cls, items))
        return self._remember(x, cls(items))

    def _attributes(self, x: Any, y: Any) -> None:
        for name, item in getattr(x, "__dict__", {}).items():
            y.__dict__[name] = self.value(item)

    def _partial(self, x: Any) -> Any:
        args = [self.value(arg) for arg in x.args]
        y = functools.partial(self.value(x.func), *args, **{k: self.value(v) for k, v in x.keywords.items()})
        return self._remember(x, y)

    def _function(self, x: types.FunctionType) -> Any:
        original = x.__dict__.get("_torchdynamo_orig_callable")
        if original is not None:
            return self._remember(x, self.value(original))
        if not x.__closure__:
            return x
        cells = tuple(types.CellType() for _ in x.__closure__)
        y = types.FunctionType(x.__code__, x.__globals__, x.__name__, x.__defaults__, cells)
        y.__kwdefaults__ = x.__kwdefaults__
        y.__dict__.update(x.__dict__)
        self._remember(x, y)
        for old, new in zip(x.__closure__, cells):
            try:
                contents = old.cell_contents
            except ValueError:  # an empty cell
                continue
            new.cell_contents = self.value(contents)
        return y

    def _object(self, x: Any) -> Any:
        cls = type(x)
        self._objects += 1
        if isinstance(x, torch.Generator):
            y = torch.Generator()
            if x.device.type == "cpu":
                y.set_state(x.get_state())
            return self._remember(x, y)
        numpy: Any = sys.modules.get("numpy")
        if numpy is not None:
            if isinstance(x, numpy.ndarray):
                return self._remember(x, x.copy()) if x.nbytes <= _MAX_ARRAY_BYTES else self._share(x)
            if isinstance(x, numpy.generic):
                return x
            if isinstance(x, (numpy.random.Generator, numpy.random.RandomState)):
                return self._remember(x, copy.deepcopy(x))
        if isinstance(x, random.Random):
            return self._remember(x, copy.deepcopy(x))
        if self._objects > _MAX_OBJECTS or _is_shared(cls) or isinstance(x, BaseException):
            return self._share(x)
        if not hasattr(x, "__dict__") and not hasattr(cls, "__slots__"):
            return self._share(x)
        try:
            y = object.__new__(cls)
        except TypeError:  # the layout is a C type's
            return self._share(x)
        self._remember(x, y)
        try:
            self._attributes(x, y)
            for base in cls.__mro__:
                slots = base.__dict__.get("__slots__", ())
                for name in (slots,) if isinstance(slots, str) else slots:
                    if name not in ("__dict__", "__weakref__") and hasattr(x, name):
                        object.__setattr__(y, name, self.value(getattr(x, name)))
        except (AttributeError, TypeError):
            return self._share(x)
        return y

    def _hooks(self, hooks: Dict[int, Any]) -> Any:
        kept = type(hooks)()
        for key, hook in hooks.items():
            module = str(getattr(hook, "__module__", None) or type(hook).__module__)
            if module.startswith(_LIBRARY_HOOKS):
                kept[key] = self.value(hook)
            elif not module.startswith(_IGNORED_HOOKS):
                self.dropped_hooks += 1
        return kept


def _is_shared(cls: type) -> bool:
    name = cls.__module__ or ""
    return any(name == package or name.startswith(package + ".") for package in _SHARED)


def _plain_class(cls: type) -> type:
    """The class before fully_shard put FSDPModule in front of it."""
    if any(base.__name__ == "FSDPModule" for base in cls.__mro__):
        for base in cls.__mro__[1:]:
            if issubclass(base, torch.nn.Module) and not any(b.__name__ == "FSDPModule" for b in base.__mro__):
                return base
    return cls


class _LocalBatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002 - torch's own name
        pass
