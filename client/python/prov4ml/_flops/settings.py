"""What torch is set to around a call: autocast, TF32, saved-tensor hooks. Reading only."""

from __future__ import annotations

from typing import Any, Callable, Tuple

import torch


def _find(*names: str) -> Any:
    """The first of torch._C's functions that this torch has."""
    for name in names:
        fn = getattr(torch._C, name, None) or getattr(torch, name, None)
        if fn is not None:
            return fn
    return None


def _any_autocast() -> Callable[[], bool]:
    fn = _find("_is_any_autocast_enabled")
    if fn is not None:
        return fn  # type: ignore[no-any-return]
    # torch < 2.4.
    return lambda: torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


any_autocast: Callable[[], bool] = _any_autocast()
_BY_DEVICE = hasattr(torch, "get_autocast_dtype")


def autocast_dtype(device: str) -> str:
    """The dtype of autocast on a kind of device, "" when it is off there."""
    if _BY_DEVICE:
        return str(torch.get_autocast_dtype(device))[6:] if torch.is_autocast_enabled(device) else ""
    if device == "cpu":
        return str(torch.get_autocast_cpu_dtype())[6:] if torch.is_autocast_cpu_enabled() else ""
    return str(torch.get_autocast_gpu_dtype())[6:] if torch.is_autocast_enabled() else ""


def any_autocast_dtype() -> str:
    """The dtype of whatever autocast is on."""
    return autocast_dtype("cuda") or autocast_dtype("cpu")


_top_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
# Whether saved_tensor_hooks can tell; torch 2.1 to 2.3 cannot.
SEES_HOOKS: bool = _top_hooks is not None


def saved_tensor_hooks() -> Any:
    """The active pair (pack, unpack) of saved-tensor hooks: activation checkpointing, save_on_cpu; None = none."""
    return _top_hooks(False) if SEES_HOOKS else None


def float32_dtypes(device: str) -> Tuple[str, str]:
    """How float32 products and convolutions run on a kind of device: "tfloat32" or "".

    The getters behind torch.backends warn or raise when old and new settings are mixed; these do not.
    """
    if device != "cuda":
        return "", ""

    def allowed(name: str) -> str:
        fn = getattr(torch._C, name, None)
        try:
            return "tfloat32" if fn is not None and fn() else ""
        except RuntimeError:
            return ""

    return allowed("_get_cublas_allow_tf32"), allowed("_get_cudnn_allow_tf32")
