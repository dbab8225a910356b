"""Functions of JAX and models of Keras, on the real packages."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
jnp = jax.numpy

from prov4ml import _flops  # noqa: E402

W = jnp.ones((64, 64))
X = jnp.ones((8, 64))
PRODUCT = 2 * 8 * 64 * 64


def _count(model: Any, batch: Any) -> Any:
    return _flops.batch_cost(model, batch).result(10)["count"]


def _flop(model: Any, batch: Any = (W, X)) -> float:
    count = _count(model, batch)
    assert count["method"] == "cost_analysis", count
    return int(count["forward"]) / PRODUCT


def _why(model: Any, batch: Any = (W, X)) -> str:
    count = _count(model, batch)
    assert "forward" not in count
    reason: str = count["missingReason"]
    return reason


def _product(w: Any, x: Any) -> Any:
    return x @ w


def test_a_product() -> None:
    assert _count(jax.jit(_product), (W, X)) == {"method": "cost_analysis", "forward": str(PRODUCT)}


def test_a_gradient_is_what_was_lowered() -> None:
    """A step's backward is in its forward: two products for the gradient of the weight alone."""

    def loss(w: Any, x: Any) -> Any:
        return ((x @ w) ** 2).sum()

    assert _flop(jax.jit(jax.grad(loss))) == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize(
    ("function", "batch"),
    [
        (_product, (W, X)),
        (_product, [W, X]),
        (_product, {"w": W, "x": X}),
        (_product, ((W,), {"x": X})),
        (lambda d: d["x"] @ d["w"], {"w": W, "x": X}),
        (lambda pair: pair[1] @ pair[0], ((W, X),)),
        (lambda pair: pair[1] @ pair[0], (W, X)),
        (lambda x: x @ W, X),
        (_product, (W, jax.ShapeDtypeStruct((8, 64), jnp.float32))),
    ],
    ids=["tuple", "list", "names", "args and kwargs", "one dict", "one pair", "a pair itself", "array", "shapes only"],
)
def test_what_a_batch_may_be(function: Any, batch: Any) -> None:
    assert _flop(jax.jit(function), batch) == 1


def test_once_for_each_shape() -> None:
    traced = []

    @jax.jit
    def function(w: Any, x: Any, step: int) -> Any:
        traced.append(x.shape)
        return x @ w

    for step in range(4):
        assert _flop(function, (W, X, step)) == 1
    assert _flop(function, (W, X[:4], 9)) == 0.5
    assert traced == [(8, 64), (4, 64)]


def test_a_key_of_many_parameters_sees_the_last_shape() -> None:
    parameters = {f"a parameter with a long name {i}": jnp.ones((64, 64)) for i in range(100)}
    function = jax.jit(lambda p, x: x @ p["a parameter with a long name 0"])
    assert [_flop(function, (parameters, x)) for x in (X, X[:4], X)] == [1, 0.5, 1]


def test_static_arguments_decide() -> None:
    function = jax.jit(lambda x, n: x @ W if n == 1 else x @ W @ W, static_argnums=1)
    assert [_flop(function, (X, n)) for n in (1, 2, 1)] == [1, 2, 1]


@pytest.mark.parametrize(("length", "unroll"), [(1, 1), (10, 1), (10, 5), (10, 3), (10, 10), (7, 4)])
def test_rounds_of_a_loop_count(length: int, unroll: int) -> None:
    """The analysis itself counts a loop's body once."""

    @jax.jit
    def function(w: Any, x: Any) -> Any:
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=length, unroll=unroll)[0]

    assert _flop(function) == pytest.approx(length, rel=1e-3)


def test_loops_in_loops_and_their_gradient() -> None:
    @jax.jit
    def nested(w: Any, x: Any) -> Any:
        def round_(c: Any, _: Any) -> Any:
            return jax.lax.fori_loop(0, 5, lambda i, z: z @ w, c), None

        return jax.lax.scan(jax.checkpoint(round_), x, None, length=3)[0]

    assert _flop(nested) == pytest.approx(15, rel=1e-3)
    # The forward, once more for the checkpoint, and two products for the gradients of each.
    assert _flop(jax.jit(jax.grad(lambda w, x: nested(w, x).sum()))) == pytest.approx(15 * 4, rel=0.03)


def test_a_branch_counts_as_the_dearest() -> None:
    function = jax.jit(lambda p, w, x: jax.lax.cond(p, lambda: x @ w @ w, lambda: x))
    assert _flop(function, (True, W, X)) == pytest.approx(2, rel=1e-3)


def test_random_numbers_and_prints_are_no_reason_to_refuse() -> None:
    def function(key: Any, x: Any) -> Any:
        jax.debug.print("{}", x[0, 0])
        return (x * jax.random.bernoulli(key, 0.5, x.shape)) @ W

    assert _flop(jax.jit(function), (jax.random.key(0), X)) == pytest.approx(1, rel=0.5)


@pytest.mark.parametrize(
    ("function", "batch", "reason"),
    [
        (lambda w, x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x), (W, X), "while_loop"),
        (jnp.linalg.solve, (W, W), "custom call lapack_sgetrf"),
        (lambda x: x, X, "flops is None"),
        (_product, (W, jnp.ones((8, 3))), "could not lower"),
        (_product, (W,), "could not lower"),
        (_product, (W, "text"), "could not lower"),
    ],
)
def test_what_the_analysis_does_not_know(function: Any, batch: Any, reason: str) -> None:
    assert reason in _why(jax.jit(function), batch)


def test_stages_and_plain_functions() -> None:
    lowered = jax.jit(_product).lower(W, X)
    assert _flop(lowered, None) == 1
    assert "compiled" in _why(lowered.compile(), None)
    looping = jax.jit(lambda w, x: jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=3)[0])
    assert "loop's body once" in _why(looping.lower(W, X), None)
    assert "functions under jax.jit can" in _why(_product)


class Answers:
    """A lowered function whose analysis says something."""

    def __init__(self, analysis: Any) -> None:
        self._analysis = analysis

    def __call__(self, *args: Any) -> Any:
        raise AssertionError("the function must not be run")

    def lower(self, *args: Any, **kwargs: Any) -> Answers:
        return self

    def cost_analysis(self) -> Any:
        if isinstance(self._analysis, Exception):
            raise self._analysis
        return self._analysis


@pytest.mark.parametrize(
    "analysis", [None, [], {}, {"flops": -1.0}, {"flops": 0.0}, {"flops": math.nan}, OSError("gpu")]
)
def test_an_analysis_that_says_nothing_is_refused(analysis: Any) -> None:
    assert "jax's cost_analysis" in _why(Answers(analysis))


def test_an_analysis_in_a_list() -> None:
    """As of older versions."""
    assert _count(Answers([{"flops": 5.0}]), {"x": X})["forward"] == "5"


def test_an_epoch_of_listed_batches() -> None:
    whole = {"count": {"method": "cost_analysis", "forward": str(PRODUCT + PRODUCT // 2)}}
    assert _flops.epoch_cost(jax.jit(_product), [(W, X), (W, X[:4])]).result(1) == whole
    loader = iter([(W, X)])
    assert "only a list" in _flops.epoch_cost(jax.jit(_product), loader).result(1)["incompleteReason"]


KERAS = """
    import json, sys
    import keras, numpy
    from keras import layers
    {imports}
    from prov4ml import _flops

    first, last = layers.Dense(32, activation="relu"), layers.Dense(4)
    model = keras.Sequential([keras.Input((16,)), first, layers.Dropout(0.5), last])
    print("tensorflow" in sys.modules)
    print(json.dumps(_flops.batch_cost(model, {batch}).result(60)))
"""


def _keras(backend: str, imports: str, batch: str) -> Any:
    if importlib.util.find_spec("keras") is None:
        pytest.skip("keras is not installed")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KERAS.format(imports=imports, batch=batch))],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(Path(_flops.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tensorflow, answer = done.stdout.splitlines()
    assert tensorflow == "False"
    return json.loads(answer)


KERAS_FORWARD = 2 * 8 * (16 * 32 + 32 * 4)


@pytest.mark.parametrize("batch", ["numpy.ones((8, 16), 'float32')", "(numpy.ones((8, 16), 'float32'), numpy.ones(8))"])
def test_keras_on_jax(batch: str) -> None:
    count = _keras("jax", "import jax", batch)["count"]
    assert count["method"] == "keras"
    # XLA counts the bias and the activation too.
    assert KERAS_FORWARD < int(count["forward"]) < KERAS_FORWARD * 1.1


def test_keras_on_torch_is_traced(counter: Any) -> None:
    operators = _keras("torch", "import torch", "torch.ones(8, 16)")["operators"]
    counted = counter(operators)
    assert (int(counted["forward"]), int(counted["backward"])) == (KERAS_FORWARD, 2 * KERAS_FORWARD - 2 * 8 * 16 * 32)
    assert operators["method"] == "fake"
    assert counted["complete"]
