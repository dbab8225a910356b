"""The backward that the bits imply is the one that autograd runs, and meta and fake tensors tell the same."""

from __future__ import annotations

from typing import Any, Callable, Dict

import pytest
import torch
from torch import nn

from prov4ml._flops import products
from prov4ml._flops.calls import calls
from prov4ml._flops.capture import capture_batch, capture_model
from prov4ml._flops.recorder import BACKWARD, FORWARD
from prov4ml._flops.shadow import FAKE, META
from prov4ml._flops.tracing import Run, Setting

SETTING = Setting(True, "", "", "", False)


def _vision(name: str) -> Callable[[], Any]:
    def make() -> Any:
        torchvision = pytest.importorskip("torchvision")
        with torch.device("meta"):
            return getattr(torchvision.models, name)(weights=None), torch.empty(2, 3, 64, 64)

    return make


def _language(name: str, **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        transformers = pytest.importorskip("transformers")
        sizes: Dict[str, Any] = {
            "vocab_size": 100,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pad_token_id": 0,
            **more,
        }
        model = getattr(transformers, name)(getattr(transformers, name.split("For")[0] + "Config")(**sizes))
        tokens = torch.zeros(2, 16, dtype=torch.long)
        return model.train(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}

    return make


def _frozen() -> Any:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1), nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 8, 3, groups=2)
    )
    model[1].weight.requires_grad_(False)
    return model, torch.empty(2, 3, 9, 9)


MODELS = {
    "mobilenet_v2": _vision("mobilenet_v2"),
    "efficientnet_b0": _vision("efficientnet_b0"),
    "shufflenet_v2_x0_5": _vision("shufflenet_v2_x0_5"),
    "convnext_tiny": _vision("convnext_tiny"),
    "swin_t": _vision("swin_t"),
    "frozen, grouped, transposed": _frozen,
    "encoder and decoder": lambda: (
        nn.Transformer(16, 4, 1, 1, 32, batch_first=True),
        (torch.empty(2, 5, 16), torch.empty(2, 7, 16)),
    ),
    "Llama, grouped queries": _language("LlamaForCausalLM", num_key_value_heads=2),
    "Bert": _language("BertForMaskedLM"),
    "Falcon": _language("FalconForCausalLM"),
}


@pytest.mark.parametrize("name", MODELS)
def test_bits_are_what_autograd_does(name: str) -> None:
    model, batch = MODELS[name]()
    captured, plan = capture_model(model), capture_batch(batch)
    call = calls(captured.shell.forward, plan)[0]
    found = {}
    for rung in (META, FAKE):
        try:
            run = Run(captured, call, SETTING, rung, lambda: False)
            executions = run.forward(recurrent=False, backward=True, on_training_thread=True).executions
        except (RuntimeError, NotImplementedError) as err:
            if rung == FAKE or "item()" not in str(err):
                raise
            continue  # a Hugging Face mask on meta tensors
        forward = sum(products.forward_work(e) * n for e, n in executions.items() if e.phase == FORWARD)
        backward = sum(products.forward_work(e) * n for e, n in executions.items() if e.phase == BACKWARD)
        assert forward
        assert backward == products.derived_backward(executions)
        found[rung] = forward, backward
    assert FAKE in found
    assert len(set(found.values())) == 1
