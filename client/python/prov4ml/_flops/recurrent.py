"""Recurrent layers as one operator.

On meta tensors a fused LSTM, GRU or RNN is run as thousands of small steps; the layer's shapes say as much. The
function call is caught before it is taken apart, recorded under the operator's own schema, and answered with tensors
of the right shapes. A packed sequence's lengths are the values of its batch_sizes.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch.overrides import TorchFunctionMode

from .recorder import Recorder

_CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_PADDED = (
    "input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first",
)  # fmt: skip
_PACKED = (
    "data", "batch_sizes", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional",
)  # fmt: skip


class RecurrentMode(TorchFunctionMode):
    """Answers torch's fused recurrent functions from their shapes."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._functions = {getattr(torch._C._VariableFunctions, cell): cell for cell in _CELLS}

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        cell = self._functions.get(func) if callable(func) and getattr(func, "__name__", "") in _CELLS else None
        if cell is None or kwargs or len(args) != len(_PADDED):
            return func(*args, **(kwargs or {}))
        # Padded: hx (a tuple or a tensor), then the list of weights. Packed: batch_sizes (a tensor), hx, weights.
        packed = isinstance(args[3], (list, tuple))
        named = dict(zip(_PACKED if packed else _PADDED, args))
        if packed and named["batch_sizes"].device.type == "meta":
            return func(*args)
        return self._layer(cell, named, packed)

    def _layer(self, cell: str, named: Dict[str, Any], packed: bool) -> Any:
        source: torch.Tensor = named["data" if packed else "input"]
        hx: List[torch.Tensor] = list(named["hx"]) if cell == "lstm" else [named["hx"]]
        directions = 2 if named["bidirectional"] else 1
        results = [source.new_empty((*source.shape[:-1], hx[0].shape[-1] * directions))]
        results.extend(state.new_empty(state.shape) for state in hx)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (source, *hx, *named["params"])):
            for result in results:
                result.requires_grad_()
        lengths: Tuple[int, ...] = ()
        if packed:
            lengths = tuple(int(rows) for rows in named["batch_sizes"].tolist())
        self._recorder.add("aten." + cell, list(named.items()), results, lengths)
        return tuple(results)
