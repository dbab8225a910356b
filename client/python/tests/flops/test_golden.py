"""Models of torchvision and layers of torch: forward and backward, to the integer."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from rows import LAYERS, TORCHVISION, Row

torchvision = pytest.importorskip("torchvision")


@pytest.mark.parametrize("row", TORCHVISION, ids=[row.name for row in TORCHVISION])
def test_torchvision(row: Row, cost: Callable[..., Any]) -> None:
    model = row.make()
    image, target = row.batch()
    trained = cost(model, (image, target))
    assert trained.pair == (row.forward, row.backward)
    assert trained.complete
    assert trained.method == "meta"
    assert sum(int(group["forward"]) for group in trained.counted["modules"].values()) == row.forward
    assert sum(int(group["forward"]) for group in trained.counted["operators"].values()) == row.forward
    assert cost(model.eval(), (image, 0)).pair == (row.forward, 0)


def test_real_weights_count_as_meta_ones(cost: Callable[..., Any]) -> None:
    assert cost(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224)).pair == (3_628_146_688, 7_020_265_472)


@pytest.mark.parametrize("batch", [1, 3])
def test_swin_v2_is_affine_in_the_batch(batch: int, cost: Callable[..., Any]) -> None:
    with torch.device("meta"):
        model = torchvision.models.swin_v2_t(weights=None)
    assert cost(model, torch.empty(batch, 3, 256, 256)).forward == 37_324_800 + 11_842_056_192 * batch


@pytest.mark.parametrize("row", LAYERS, ids=[row.name for row in LAYERS])
def test_layers(row: Row, cost: Callable[..., Any]) -> None:
    model, x = row.make(), row.batch()
    trained = cost(model, x)
    assert trained.pair == (row.forward, row.backward)
    assert trained.complete
    assert cost(model.eval(), x).pair == (row.forward, 0)
