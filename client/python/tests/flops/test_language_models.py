"""Models of transformers: forward and backward, to the integer, batch 1, full square attention."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from rows import LANGUAGE, Row

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("row", LANGUAGE, ids=[row.name for row in LANGUAGE])
@pytest.mark.parametrize("mask", [False, True], ids=["tokens", "mask"])
def test_rows(row: Row, mask: bool, cost: Callable[..., Any]) -> None:
    batch = row.batch()
    if mask:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    counted = cost(row.make().train(), batch)
    assert counted.pair == (row.forward, row.backward)
    assert counted.complete
    assert counted.missing is None
