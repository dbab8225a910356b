"""Models of transformers: forward and backward, to the integer, batch 1, full square attention."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import pytest
import torch

transformers = pytest.importorskip("transformers")


def _llama(vocabulary: int) -> Any:
    config = transformers.LlamaConfig(vocab_size=vocabulary, hidden_size=4096, intermediate_size=11008)
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config)


def _gpt2() -> Any:
    with torch.device("meta"):
        return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def _bert() -> Any:
    with torch.device("meta"):
        return transformers.BertModel(transformers.BertConfig(vocab_size=21128))


ROWS = [
    ("LLaMA-7B", lambda: _llama(32_000), 128, 1_700_001_742_848, 3_400_003_485_696),
    ("GPT-2 small", _gpt2, 1024, 291_648_307_200, 583_296_614_400),
    ("BERT-base, pooler", _bert, 128, 22_348_431_360, None),
    ("Baichuan-7B", lambda: _llama(64_000), 128, 1_733_556_174_848, None),
    ("Qwen-7B", lambda: _llama(151_936), 128, 1_825_763_753_984, None),
    ("Chinese-LLaMA-7B", lambda: _llama(49_953), 128, 1_718_826_827_776, None),
]


@pytest.mark.parametrize(("name", "make", "length", "forward", "backward"), ROWS, ids=[row[0] for row in ROWS])
@pytest.mark.parametrize("mask", [False, True], ids=["tokens", "mask"])
def test_rows(
    name: str,
    make: Callable[[], Any],
    length: int,
    forward: int,
    backward: Optional[int],
    mask: bool,
    cost: Callable[..., Any],
) -> None:
    batch: Dict[str, torch.Tensor] = {"input_ids": torch.zeros(1, length, dtype=torch.long)}
    if mask:
        batch["attention_mask"] = torch.ones(1, length, dtype=torch.long)
    counted = cost(make().train(), batch)
    assert counted.forward == forward
    # Every product has two operands that need a gradient.
    assert counted.backward == (2 * forward if backward is None else backward)
    assert counted.complete
    assert counted.missing is None
