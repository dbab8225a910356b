"""Activation checkpointing on a shadow, without its grip on the random generator.

To repeat a forward exactly, torch's checkpoint saves the generator's state and sets it again during the backward. A
shadow has no numbers to repeat, and its backward may run beside the training, whose generator must not move: the
checkpoints of the shadow's own graph are told not to preserve the state.
"""

from __future__ import annotations

from typing import Any, List, Optional

import torch

_FLAG = "preserve_rng_state"


def leave_generator_alone(hooks: Any) -> bool:
    """For non-reentrant checkpointing, by the hooks (pack, unpack) that it has pushed. False: it could not be told."""
    pack = hooks[0] if isinstance(hooks, (tuple, list)) and hooks else None
    frame = _cell(pack, "frame")
    if frame is None:
        # Other saved-tensor hooks (offloading) do not touch the generator.
        module = str(getattr(pack, "__module__", ""))
        return not module.startswith("torch.utils.checkpoint")
    return _clear(getattr(frame.contents, "recompute_fn", None))


def leave_generators_alone(tensors: List[torch.Tensor]) -> bool:
    """For reentrant checkpointing, by the graph behind some tensors. False: it could not be told."""
    told = True
    stack: List[Any] = [tensor.grad_fn for tensor in tensors]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "CheckpointFunction" in node.name():
            try:
                setattr(node, _FLAG, False)
            except (AttributeError, RuntimeError):
                told = False
        stack.extend(parent for parent, _ in node.next_functions)
    return told


class _Cell:
    def __init__(self, cell: Any) -> None:
        self.cell = cell
        self.contents = cell.cell_contents


def _cell(fn: Any, name: str) -> Optional[_Cell]:
    code = getattr(fn, "__code__", None)
    if code is None or name not in code.co_freevars:
        return None
    try:
        return _Cell(fn.__closure__[code.co_freevars.index(name)])
    except ValueError:  # empty
        return None


def _clear(recompute: Any) -> bool:
    flag = _cell(recompute, _FLAG)
    if flag is None:
        return False
    flag.cell.cell_contents = False
    return True
