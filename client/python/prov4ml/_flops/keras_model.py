"""Keras models, by the analysis of their backend: TensorFlow's profiler or XLA's; the forward of inference.

A model of the torch backend is a torch module and is traced as one.
"""

from __future__ import annotations

import sys
from typing import Any

from . import jax_function
from .counters import Count, decimal, missing

METHOD = "keras"


def is_keras(model: Any) -> bool:
    """Whether model is a Keras model."""
    names = {cls.__module__.split(".")[0] for cls in type(model).__mro__}
    return not names.isdisjoint(("keras", "tf_keras", "tensorflow")) and callable(model)


def _backend() -> str:
    keras = sys.modules.get("keras")
    backend = getattr(getattr(keras, "backend", None), "backend", None)
    return str(backend()) if callable(backend) else "tensorflow"


def specs(batch: Any) -> Any:
    """The model's inputs as shapes and dtypes: the first of a pair (inputs, target), as keras.Model.fit has it."""
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        batch = batch[0]
    if _backend() == "jax":
        make, tree_map = sys.modules["jax"].ShapeDtypeStruct, sys.modules["jax"].tree_util.tree_map
    else:
        make, tree_map = sys.modules["tensorflow"].TensorSpec, sys.modules["tensorflow"].nest.map_structure

    def spec(leaf: Any) -> Any:
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        if shape is None or dtype is None:
            raise TypeError(f"an input of type {type(leaf).__name__} has no shape")
        return make(tuple(int(size) for size in shape), dtype)

    return tree_map(spec, batch)


def count(model: Any, inputs: Any) -> Count:
    """The FLOPs of the inference with inputs of these shapes."""
    return _jax_count(model, inputs) if _backend() == "jax" else _tensorflow_count(model, inputs)


def _jax_count(model: Any, inputs: Any) -> Count:
    jax = sys.modules["jax"]

    def forward(trainable: Any, others: Any, x: Any) -> Any:
        return model.stateless_call(trainable, others, x, training=False)[0]

    try:
        trainable, others = (
            [jax.ShapeDtypeStruct(variable.shape, variable.dtype) for variable in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        )
        counted, _ = jax_function.count(jax.jit(forward), (trainable, others, inputs), {})
    except Exception as err:  # noqa: BLE001 - Keras raises many kinds
        return missing(METHOD, f"keras could not be lowered: {type(err).__name__}: {err}")
    return {**counted, "method": METHOD}


def _tensorflow_count(model: Any, inputs: Any) -> Count:
    """TensorFlow's float_operation over the inference graph, with the batch's own shapes.

    The variables stay placeholders' inputs: nothing is frozen, so no weight is copied.
    """
    tf = sys.modules["tensorflow"]
    try:
        graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(inputs).graph
        builder = tf.compat.v1.profiler.ProfileOptionBuilder
        options = builder(builder.float_operation()).with_empty_output().build()
        flops = tf.compat.v1.profiler.profile(graph, options=options).total_float_ops
    except Exception as err:  # noqa: BLE001 - TensorFlow raises many kinds
        return missing(METHOD, f"tensorflow could not profile the graph: {type(err).__name__}: {err}")
    try:
        return {"method": METHOD, "forward": decimal(flops, "float_operation", zero=False)}
    except ValueError as err:
        return missing(METHOD, f"tensorflow's profiler does not know: {err}")
