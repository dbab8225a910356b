"""Models whose FLOPs are known to the integer: the one table of the client's tests and of the test through the agent.

Forward and backward of one training step; 1 multiply-add = 2 FLOP, attention counts the full square, inputs need no
gradient. The integers hold for torchvision 0.29, transformers 5.23 and torch 2.1 to 2.15: newer versions of a library
may build another model under the same name.
"""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple

import torch
from torch import nn


class Row(NamedTuple):
    """A model, a batch for it, and what a step costs."""

    name: str
    make: Callable[[], Any]
    batch: Callable[[], Any]
    forward: int
    backward: int


def _image(extent: int, samples: int = 1) -> Callable[[], Any]:
    return lambda: (torch.empty(samples, 3, extent, extent), torch.zeros(samples, dtype=torch.long))


def _torchvision(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import torchvision

        # On the meta device: the shapes are all that counts, and nothing is initialised.
        with torch.device("meta"):
            return getattr(torchvision.models, name)(weights=None)

    return make


def _vision(name: str, extent: int, forward: int, backward: int, samples: int = 1) -> Row:
    title = name if samples == 1 else f"{name} of {samples}"
    return Row(title, _torchvision(name), _image(extent, samples), forward, backward)


TORCHVISION: List[Row] = [
    _vision("vgg11", 224, 15_218_180_096, 30_262_951_936),
    _vision("vgg16", 224, 30_940_528_640, 61_707_649_024),
    _vision("resnet18", 224, 3_628_146_688, 7_020_265_472),
    _vision("resnet50", 224, 8_178_368_512, 16_120_709_120),
    _vision("resnet101", 224, 15_602_810_880, 30_969_593_856),
    _vision("resnext50_32x4d", 224, 8_460_959_744, 16_685_891_584),
    _vision("squeezenet1_0", 224, 1_637_849_152, 2_940_368_960),
    _vision("squeezenet1_1", 224, 698_303_872, 1_354_026_368),
    _vision("mobilenet_v2", 224, 601_548_544, 1_181_421_056),
    _vision("mobilenet_v3_large", 224, 433_179_520, 855_521_024),
    _vision("mobilenet_v3_small", 224, 113_020_800, 215_203_584),
    _vision("efficientnet_b0", 224, 771_629_504, 1_521_582_976),
    _vision("efficientnet_b1", 240, 1_373_605_664, 2_722_328_128),
    _vision("efficientnet_b3", 300, 3_654_282_784, 7_259_965_568),
    _vision("efficientnet_b4", 380, 8_787_542_048, 17_481_512_896),
    _vision("vit_b_16", 224, 35_127_656_448, 70_024_101_888),
    _vision("resnet50", 224, 261_707_792_384, 515_862_691_840, samples=32),
]


class Tagger(nn.Module):
    """Embedding, recurrent layers, a head on the last step."""

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


def _tokens(samples: int, length: int) -> Callable[[], Any]:
    return lambda: torch.zeros(samples, length, dtype=torch.long)


def _numbers(*shape: int) -> Callable[[], Any]:
    return lambda: torch.randn(shape)


LAYERS: List[Row] = [
    Row("linear", lambda: nn.Linear(100, 10), _numbers(32, 100), 64_000, 64_000),
    Row("lstm", lambda: Tagger(nn.LSTM), _tokens(16, 50), 943_800_320, 1_879_212_032),
    Row("gru", lambda: Tagger(nn.GRU), _tokens(16, 50), 707_870_720, 1_409_449_984),
    Row("rnn", lambda: Tagger(nn.RNN), _tokens(16, 50), 236_011_520, 469_925_888),
    Row(
        "encoder",
        lambda: nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True),
        _numbers(2, 64, 512),
        822_083_584,
        1_442_840_576,
    ),
    Row(
        "grouped convolutions",
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, groups=4), nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=2)),
        _numbers(4, 8, 33, 33),
        3_033_344,
        5_400_832,
    ),
    Row("frozen and teacher", Distilled, _numbers(4, 32), 32_768, 8_192),
]


def _llama(vocabulary: int) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        config = transformers.LlamaConfig(vocab_size=vocabulary, hidden_size=4096, intermediate_size=11008)
        with torch.device("meta"):
            return transformers.LlamaForCausalLM(config)

    return make


def _gpt2() -> Any:
    import transformers

    with torch.device("meta"):
        return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def _bert() -> Any:
    import transformers

    with torch.device("meta"):
        return transformers.BertModel(transformers.BertConfig(vocab_size=21128))


def _language(name: str, make: Callable[[], Any], length: int, forward: int) -> Row:
    # Every product has two operands that need a gradient: tokens are looked up, not multiplied.
    return Row(name, make, lambda: {"input_ids": _tokens(1, length)()}, forward, 2 * forward)


LANGUAGE: List[Row] = [
    _language("LLaMA-7B", _llama(32_000), 128, 1_700_001_742_848),
    _language("GPT-2 small", _gpt2, 1024, 291_648_307_200),
    _language("BERT-base, pooler", _bert, 128, 22_348_431_360),
    _language("Baichuan-7B", _llama(64_000), 128, 1_733_556_174_848),
    _language("Qwen-7B", _llama(151_936), 128, 1_825_763_753_984),
    _language("Chinese-LLaMA-7B", _llama(49_953), 128, 1_718_826_827_776),
]
