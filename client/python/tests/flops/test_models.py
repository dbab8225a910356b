"""Models that are hard to count: each gives the right number, or says exactly what is missing."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any, Callable, Dict

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from prov4ml import _flops

SECONDS = 120


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


class Branches(nn.Module):
    """Control flow that depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.a(x)
        return self.b(x) if x.sum() > -1e9 else x


def test_control_flow_is_watched(cost: Callable[..., Any]) -> None:
    model = Branches()
    x = torch.randn(4, 8)
    torch.manual_seed(2)
    weights = [p.detach().clone() for p in model.parameters()]
    counted = cost(model, x, step=lambda: model(x).sum().backward())
    assert counted.method == "observed"
    assert counted.pair == (2 * linear(4, 8, 8), 3 * linear(4, 8, 8))
    assert "one step of the training" in counted.notes[0]
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))
    # Known from now on.
    assert _flops.batch_cost(model, x).done()


def test_a_script_module_is_refused_and_the_next_model_is_counted(cost: Callable[..., Any]) -> None:
    """It takes no hooks, so that it can be neither traced nor watched."""
    scripted = torch.jit.script(nn.Linear(4, 3))
    missing = _flops.batch_cost(scripted, torch.randn(2, 4)).result(SECONDS)["operators"]["missingReason"]
    assert "TorchScript" in missing
    assert "not watched" in missing
    assert cost(nn.Linear(4, 3), torch.randn(2, 4)).pair[0] == linear(2, 4, 3)


def test_a_failure_of_ours_is_an_answer_and_the_next_model_is_counted(
    cost: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prov4ml._flops import torch_model

    def fail(model: Any) -> str:
        raise ValueError("made by the test")

    monkeypatch.setattr(torch_model, "_refusal", fail)
    model = Branches()
    counted = _flops.batch_cost(model, torch.randn(4, 8)).result(SECONDS)
    assert "made by the test" in counted["operators"]["missingReason"]
    assert cost(nn.Linear(4, 3), torch.randn(2, 4)).pair[0] == linear(2, 4, 3)


@pytest.mark.parametrize("part", ["batch_size", "operator_list"])
def test_a_failure_in_a_watched_step_does_not_reach_it(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    from prov4ml._flops import observe

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("made by the test")

    model = Branches()
    x = torch.randn(4, 8)
    answer = _flops.batch_cost(model, x)
    while not model._forward_hooks:
        time.sleep(0.01)
    monkeypatch.setattr(observe, part, fail)
    assert model(x).shape == (4, 8)
    assert "made by the test" in answer.result(SECONDS)["operators"]["missingReason"]
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_model_that_waits_for_a_step_can_be_given_up() -> None:
    model = Branches()
    _flops.batch_cost(model, torch.randn(4, 8))
    while not model._forward_pre_hooks:
        time.sleep(0.01)
    weight = weakref.ref(model.a.weight)
    del model
    deadline = time.monotonic() + SECONDS  # the tracing thread may be at its last line
    while weight() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert weight() is None


def test_control_flow_never_seen_again(cost: Callable[..., Any]) -> None:
    model = Branches()
    answer = _flops.batch_cost(model, torch.randn(4, 8))
    _flops.close(SECONDS)
    missing = answer.result(SECONDS)["operators"]["missingReason"]
    assert "_local_scalar_dense" in missing
    assert "not called again" in missing
    assert not model._forward_hooks


@pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="torch.library.custom_op came with torch 2.4")
@pytest.mark.parametrize("fake", [True, False], ids=["with a fake kernel", "without"])
def test_custom_operator_is_named(fake: bool, cost: Callable[..., Any]) -> None:
    name = f"prov4mltest::double_{'fake' if fake else 'plain'}"

    @torch.library.custom_op(name, mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    if fake:
        double.register_fake(torch.empty_like)
    double.register_autograd(lambda ctx, grad: grad * 2)

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            return double(self.linear(x))

    model = Custom()
    x = torch.randn(4, 8)
    counted = cost(model, x, step=lambda: model(x))
    assert counted.forward == linear(4, 8, 8)
    assert not counted.complete
    assert counted.unknown == [name.replace("::", ".")]
    assert counted.method == ("meta" if fake else "observed")


@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()", "child", "function", "fullgraph function"])
def test_compiled(how: str, cost: Callable[..., Any]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 16)
            self.second = nn.Linear(16, 4)
            if how == "child":
                self.second = torch.compile(self.second)  # type: ignore[assignment]
            if how.endswith("function"):
                self.act = torch.compile(self._act, fullgraph="full" in how)

        def _act(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.second(x))

        def forward(self, x: torch.Tensor) -> Any:
            x = self.first(x)
            return self.act(x) if how.endswith("function") else self.second(x)

    model: Any = Net()
    if how == "torch.compile(model)":
        model = torch.compile(model)
    if how == "model.compile()":
        model.compile()
    counted = cost(model, torch.randn(4, 8))
    forward = linear(4, 8, 16) + linear(4, 16, 4)
    assert counted.pair == (forward, forward + linear(4, 16, 4))
    assert counted.complete
    assert not any("_orig_mod" in path for path in counted.counted["modules"])


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_checkpointing(reentrant: bool, cost: Callable[..., Any]) -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.1), nn.Linear(32, 8)) for _ in range(3)
            )

        def forward(self, x: torch.Tensor) -> Any:
            x = self.stem(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    torch.manual_seed(3)
    state = torch.get_rng_state()
    counted = cost(Blocks(), torch.randn(4, 8))
    one = linear(4, 8, 32)
    assert counted.pair == (linear(4, 8, 8) + 6 * one, linear(4, 8, 8) + 12 * one)
    # Non-reentrant checkpointing stops early: a block's last product is not repeated.
    assert counted.recompute == (6 * one if reentrant else 3 * one)
    torch.set_rng_state(state)


def test_lora(cost: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    rank, hidden, tokens = 4, 32, 2 * 16
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=hidden, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    base = transformers.LlamaForCausalLM(config)
    batch = {"input_ids": torch.zeros(2, 16, dtype=torch.long), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    plain = cost(base, batch)
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=rank, task_type="CAUSAL_LM")
    counted = cost(peft.get_peft_model(base, lora), batch)
    adapters = 2 * (linear(tokens, hidden, rank) + linear(tokens, rank, hidden))
    assert counted.forward == plain.forward + adapters
    attention = 2 * 2 * 4 * 16 * 16 * (hidden // 4)  # one of the two products
    # The frozen products cost nothing before the first adapter, and once after it (for their input).
    frozen_after = linear(tokens, hidden, hidden) + 3 * linear(tokens, hidden, 64) + linear(tokens, hidden, 100)
    # A: weight only, since the hidden state needs no gradient; B: both operands.
    trained = 2 * (linear(tokens, hidden, rank) + 2 * linear(tokens, rank, hidden))
    # q and v need gradients, k does not: dQ; dV and dP.
    assert counted.backward == frozen_after + trained + 3 * attention
    assert counted.complete


def test_two_networks_of_a_gan_in_turn(cost: Callable[..., Any]) -> None:
    generator = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    critic = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    noise, real = torch.randn(4, 8), torch.randn(4, 8)
    first, last = linear(4, 8, 16), linear(4, 16, 1)
    for _ in range(3):
        made = generator(noise)
        assert cost(critic, real).pair == (first + last, first + 2 * last)
        # Through the critic to the generator: the input needs a gradient.
        assert cost(critic, made).pair == (first + last, 2 * first + 2 * last)
        assert cost(critic, made.detach()).pair == (first + last, first + 2 * last)
        critic.requires_grad_(False)
        assert cost(critic, made).pair == (first + last, first + last)
        critic.requires_grad_(True)
        assert cost(generator, noise).pair == (2 * first, 3 * first)


def test_teacher_under_no_grad(cost: Callable[..., Any]) -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
            self.student = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            with torch.no_grad():
                wanted = self.teacher(x)
            return (self.student(x) - wanted).square().mean()

    teacher = 2 * linear(4, 8, 64)
    assert cost(Student(), torch.randn(4, 8)).pair == (teacher + linear(4, 8, 8), linear(4, 8, 8))


def test_custom_autograd_function(cost: Callable[..., Any]) -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            x, weight = ctx.saved_tensors
            return grad @ weight.T, x.T @ grad

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: torch.Tensor) -> Any:
            return Product.apply(self.first(x), self.weight)

    counted = cost(Net(), torch.randn(4, 8))
    assert counted.pair == (2 * linear(4, 8, 8), 3 * linear(4, 8, 8))


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_mixture_of_experts(implementation: str, cost: Callable[..., Any]) -> None:
    transformers = pytest.importorskip("transformers")
    hidden, expert, heads, size, tokens, top = 32, 16, 4, 8, 2 * 16, 2
    config = transformers.Qwen3MoeConfig(
        vocab_size=100,
        hidden_size=hidden,
        intermediate_size=64,
        moe_intermediate_size=expert,
        num_experts=4,
        num_experts_per_tok=top,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=size,
        experts_implementation=implementation,
    )
    model = transformers.Qwen3MoeForCausalLM(config)
    model.set_experts_implementation(implementation)
    batch = {"input_ids": torch.zeros(2, 16, dtype=torch.long), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    counted = cost(model.train(), batch, step=lambda: model(**batch))
    layer = 4 * linear(tokens, hidden, heads * size) + 2 * 2 * 2 * heads * 16 * 16 * size
    layer += linear(tokens, hidden, 4) + top * 3 * linear(tokens, hidden, expert)
    forward = 2 * layer + linear(tokens, hidden, 100)
    assert counted.pair == (forward, 2 * forward)
    assert counted.complete
    assert counted.method == ("observed" if implementation == "eager" else "fake")


@pytest.mark.skipif(torch.__version__ < "2.5", reason="flex_attention came with torch 2.5")
def test_flex_attention_is_named_and_not_watched(cost: Callable[..., Any]) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(16, 48)

        def forward(self, x: torch.Tensor) -> Any:
            q, k, v = self.qkv(x).view(2, 8, 3, 1, 16).permute(2, 0, 3, 1, 4)
            return flex_attention(q, k, v)

    model = Attends()
    counted = cost(model, torch.randn(2, 8, 16))
    assert "flex_attention" in counted.missing
    assert not model._forward_hooks


class Packs(nn.Module):
    def __init__(self, sort: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.sort = sort

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=not self.sort)
        states, _ = self.lstm(packed)
        return pad_packed_sequence(states, batch_first=True)[0]


def lstm(lengths: Any) -> "tuple[int, int]":
    steps, rows = sum(lengths), len(lengths)
    inputs, recurrent = 2 * 4 * 16 * 8 * steps, 2 * 4 * 16 * 16 * steps
    # The initial state needs no gradient: the first step's recurrent product has one for its weight only.
    return inputs + recurrent, inputs + 2 * recurrent - 2 * 4 * 16 * 16 * rows


@pytest.mark.parametrize("sort", [False, True], ids=["sorted", "unsorted"])
def test_packed_sequences(sort: bool, cost: Callable[..., Any]) -> None:
    model = Packs(sort)
    x = torch.randn(4, 10, 8)
    for lengths in ([10, 7, 7, 2], [10, 9, 3, 1], [5, 10, 2, 10] if sort else [10, 10, 5, 2]):
        counted = cost(
            model, (x, torch.tensor(lengths), torch.zeros(4)), step=lambda n=lengths: model(x, torch.tensor(n))
        )
        assert counted.pair == lstm(lengths)
        assert counted.complete
        assert counted.method == "meta"


def test_packed_sequence_as_the_batch(cost: Callable[..., Any]) -> None:
    model = nn.LSTM(8, 16, batch_first=True)
    for lengths in ([10, 7, 7, 2], [10, 9, 3, 1]):
        packed: PackedSequence = pack_padded_sequence(torch.randn(4, 10, 8), torch.tensor(lengths), batch_first=True)
        assert cost(model, packed).pair == lstm(lengths)


REGISTRY: Dict[str, Any] = {}


def test_a_model_that_points_at_its_original_is_not_run(cost: Callable[..., Any]) -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            return REGISTRY["linear"](REGISTRY["norm"](x))

    model = Outside()
    REGISTRY.update(norm=model.norm, linear=model.linear)
    x = torch.randn(4, 8)
    counted = cost(model, x, step=lambda: model(x))
    assert counted.method == "observed"
    assert counted.pair == (linear(4, 8, 8), linear(4, 8, 8) * 2)
    assert model.norm.num_batches_tracked == 1


def test_patched_forward_and_closures(cost: Callable[..., Any]) -> None:
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    first, second = model[0], model[1]
    model.forward = lambda x: second(first(first(x)))
    assert cost(model, torch.randn(4, 8)).forward == 2 * linear(4, 8, 8) + linear(4, 8, 4)


def test_shared_weights_and_modules(cost: Callable[..., Any]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(100, 8)
            self.block = nn.Linear(8, 8)
            self.same = self.block
            self.head = nn.Linear(8, 100, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: torch.Tensor) -> Any:
            return self.head(self.same(self.block(self.embedding(tokens))))

    counted = cost(Tied(), torch.zeros(4, dtype=torch.long))
    assert counted.forward == 2 * linear(4, 8, 8) + linear(4, 8, 100)
    assert set(counted.counted["modules"]) >= {"block", "head"}


@pytest.mark.parametrize("wrap", ["DataParallel", "DistributedDataParallel", "fully_shard"])
def test_wrapped(wrap: str, cost: Callable[..., Any], tmp_path: Any) -> None:
    model: Any = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    if wrap == "DataParallel":
        model = nn.DataParallel(model)
    else:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        if wrap == "DistributedDataParallel":
            model = nn.parallel.DistributedDataParallel(model)
        if wrap == "fully_shard":
            fsdp = pytest.importorskip("torch.distributed.fsdp")
            if not hasattr(fsdp, "fully_shard"):
                pytest.skip("fully_shard came with torch 2.6")
            from torch.distributed.device_mesh import init_device_mesh

            fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        counted = cost(model, torch.randn(4, 8))
    finally:
        if wrap != "DataParallel":
            torch.distributed.destroy_process_group()
    forward = linear(4, 8, 16) + linear(4, 16, 4)
    assert counted.pair == (forward, forward + linear(4, 16, 4))


def test_autocast_dtype_is_said(cost: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    x = torch.randn(4, 8)
    assert "autocastDtype" not in cost(model, x).operators
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cost(model, x)
    assert inside.operators["autocastDtype"] == "bfloat16"
    assert inside.counted["dtypes"].keys() == {"bfloat16"}
    assert inside.pair == (2 * linear(4, 8, 8), 3 * linear(4, 8, 8))


def test_detection_model_is_watched(cost: Callable[..., Any]) -> None:
    class Detects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Linear(8, 1)
            self.refine = nn.Linear(8, 8)

        def forward(self, boxes: torch.Tensor) -> Any:
            kept = boxes[self.scores(boxes).squeeze(1) > -1e9]
            return self.refine(kept)

    model = Detects()
    boxes = torch.randn(6, 8)
    counted = cost(model, (boxes, torch.zeros(6)), step=lambda: model(boxes))
    assert counted.forward == linear(6, 8, 1) + linear(6, 8, 8)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_closed_form_of_a_decoder_equals_its_trace(training: bool, cost: Callable[..., Any]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: Dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    batch = {"input_ids": torch.zeros(2, 16, dtype=torch.long), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    traced = cost(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).train(training), batch)
    config = transformers.LlamaConfig(**sizes, attn_implementation="flex_attention")
    model = transformers.LlamaForCausalLM(config).train(training)
    counted = cost(model, batch)
    assert counted.method == "closed_form"
    assert counted.pair == traced.pair
    assert "flex_attention" in counted.notes[0]
    # With part of the model frozen the bits would have to be guessed.
    model.lm_head.weight.requires_grad_(False)
    assert "flex_attention" in cost(model, batch).missing


def test_distributed_tensors_of_a_watched_step_keep_their_bits(cost: Callable[..., Any], tmp_path: Any) -> None:
    parallel = pytest.importorskip("torch.distributed.tensor.parallel")
    init_device_mesh = pytest.importorskip("torch.distributed.device_mesh").init_device_mesh

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(8, 16)
            self.down = nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> Any:
            x = self.down(self.up(x))
            return x if x.sum() > -1e9 else -x

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plan = {"up": parallel.ColwiseParallel(), "down": parallel.RowwiseParallel()}
        model = parallel.parallelize_module(Watched(), init_device_mesh("cpu", (1,)), plan)
        x = torch.randn(4, 8)
        counted = cost(model, x, step=lambda: model(x).sum().backward())
    finally:
        torch.distributed.destroy_process_group()
    assert counted.method == "observed"
    assert counted.pair == (2 * linear(4, 8, 16), 3 * linear(4, 8, 16))
