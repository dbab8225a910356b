"""Models of torchvision and layers of torch: forward and backward, to the integer, at batch 1 unless said."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import nn

torchvision = pytest.importorskip("torchvision")

# name, extent of the square image, forward, backward of a training step (the images need no gradient)
MODELS = [
    ("vgg11", 224, 15_218_180_096, 30_262_951_936),
    ("vgg16", 224, 30_940_528_640, 61_707_649_024),
    ("resnet18", 224, 3_628_146_688, 7_020_265_472),
    ("resnet50", 224, 8_178_368_512, 16_120_709_120),
    ("resnet101", 224, 15_602_810_880, 30_969_593_856),
    ("resnext50_32x4d", 224, 8_460_959_744, 16_685_891_584),
    ("squeezenet1_0", 224, 1_637_849_152, 2_940_368_960),
    ("squeezenet1_1", 224, 698_303_872, 1_354_026_368),
    ("mobilenet_v2", 224, 601_548_544, 1_181_421_056),
    ("mobilenet_v3_large", 224, 433_179_520, 855_521_024),
    ("mobilenet_v3_small", 224, 113_020_800, 215_203_584),
    ("efficientnet_b0", 224, 771_629_504, 1_521_582_976),
    ("efficientnet_b1", 240, 1_373_605_664, 2_722_328_128),
    ("efficientnet_b3", 300, 3_654_282_784, 7_259_965_568),
    ("efficientnet_b4", 380, 8_787_542_048, 17_481_512_896),
    ("vit_b_16", 224, 35_127_656_448, 70_024_101_888),
]


def _model(name: str) -> nn.Module:
    # On the meta device: the shapes are all that counts, and nothing is initialised.
    with torch.device("meta"):
        model: nn.Module = getattr(torchvision.models, name)(weights=None)
    return model


@pytest.mark.parametrize(("name", "extent", "forward", "backward"), MODELS, ids=[row[0] for row in MODELS])
def test_torchvision(name: str, extent: int, forward: int, backward: int, cost: Callable[..., Any]) -> None:
    model = _model(name)
    image = torch.empty(1, 3, extent, extent)
    trained = cost(model, (image, torch.zeros(1, dtype=torch.long)))
    assert trained.pair == (forward, backward)
    assert trained.complete
    assert trained.method == "meta"
    assert sum(int(group["forward"]) for group in trained.counted["modules"].values()) == forward
    assert sum(int(group["forward"]) for group in trained.counted["operators"].values()) == forward
    assert cost(model.eval(), (image, 0)).pair == (forward, 0)


def test_real_weights_count_as_meta_ones(cost: Callable[..., Any]) -> None:
    assert cost(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224)).pair == (3_628_146_688, 7_020_265_472)


def test_resnet50_of_32(cost: Callable[..., Any]) -> None:
    assert cost(_model("resnet50"), torch.empty(32, 3, 224, 224)).pair == (261_707_792_384, 515_862_691_840)


@pytest.mark.parametrize("batch", [1, 3])
def test_swin_v2_is_affine_in_the_batch(batch: int, cost: Callable[..., Any]) -> None:
    model = _model("swin_v2_t")
    assert cost(model, torch.empty(batch, 3, 256, 256)).forward == 37_324_800 + 11_842_056_192 * batch


class Tagger(nn.Module):
    """Embedding, recurrent layers, a head on every step."""

    def __init__(self, cell: Callable[..., Any]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.rnn = cell(64, 128, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(self.embedding(tokens))
        head: torch.Tensor = self.head(states[:, -1])
        return head


class Distilled(nn.Module):
    """Two frozen layers, one that is trained, a teacher without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.teacher = (nn.Linear(32, 32) for _ in range(4))
        self.a.requires_grad_(False)
        self.b.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> Any:
        student = self.c(self.b(self.a(x)))
        with torch.no_grad():
            teacher = self.teacher(x)
        return student, teacher


LAYERS = [
    ("linear", lambda: nn.Linear(100, 10), (32, 100), 64_000, 64_000),
    ("lstm", lambda: Tagger(nn.LSTM), (16, 50), 943_800_320, 1_879_212_032),
    ("gru", lambda: Tagger(nn.GRU), (16, 50), 707_870_720, 1_409_449_984),
    ("rnn", lambda: Tagger(nn.RNN), (16, 50), 236_011_520, 469_925_888),
    (
        "encoder",
        lambda: nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True),
        (2, 64, 512),
        822_083_584,
        1_442_840_576,
    ),
    (
        "grouped convolutions",
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, groups=4), nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=2)),
        (4, 8, 33, 33),
        3_033_344,
        5_400_832,
    ),
    ("frozen and teacher", Distilled, (4, 32), 32_768, 8_192),
]


@pytest.mark.parametrize(("name", "make", "shape", "forward", "backward"), LAYERS, ids=[row[0] for row in LAYERS])
def test_layers(
    name: str, make: Callable[[], nn.Module], shape: Any, forward: int, backward: int, cost: Callable[..., Any]
) -> None:
    model = make()
    x = torch.zeros(shape, dtype=torch.long) if isinstance(model, Tagger) else torch.randn(shape)
    trained = cost(model, x)
    assert trained.pair == (forward, backward)
    assert trained.complete
    assert cost(model.eval(), x).pair == (forward, 0)
