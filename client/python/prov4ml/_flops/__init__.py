"""What one batch or one epoch of a model executes: operators with shapes, counted by the agent.

This package is imported when a FLOPs function is called for the first time, never before. It needs the standard library
only; torch is used when the user's program has imported it, and is never imported by us.

What the client core calls
==========================

``batch_cost(model, batch) -> Cost`` and ``epoch_cost(model, dataset) -> Cost``
    Neither raises, whatever it is given, and neither blocks on anything but its own work on the calling thread. A
    ``Cost`` is done or will be:

    * ``cost.done() -> bool``: whether ``result`` returns at once.
    * ``cost.result(timeout=None) -> dict``: the fragment below; ``TimeoutError`` when it takes longer than ``timeout``
      seconds. ``None`` waits for as long as it takes.
    * ``cost.add_done_callback(fn)``: calls ``fn(cost)`` once, at once if it is done already, else on the thread that
      completes it. ``fn`` must not block.

    A fragment is merged into the request as it is; keys and values are protobuf's JSON mapping (lowerCamelCase names,
    integers as numbers). For ``LogFlopsPerBatchRequest`` exactly one of::

        {"operators": {...OperatorList...}}      the first time that this process asks for this signature
        {"signature": "..."}                     every later time
        {"count": {...FlopsCount...}}            JAX, Keras, a registered counter, or a model that is not torch's

    and for ``LogFlopsPerEpochRequest`` any of::

        {"operators": [{...}, ...], "batches": [{"signature": "...", "batches": 42}, ...],
         "count": {...}, "incompleteReason": "..."}

    Costs complete in the order of their calls, except those of models that must be traced on the calling thread (done
    at once) and those that wait for a step of the user's to be watched (at most 30 s, then a count without a number
    says so). A signature's operators are handed out once; a bare one that the agent does not know is sent again with
    them.

``form(model, batch) -> Form | None``
    What ``prov4ml._repeat`` compares to know that a call is like this one, whose cost is known.

``operators(signature) -> dict | None``
    The OperatorList of a signature that was handed out, to send again when the agent answers that it does not know it
    (it was restarted, or the first message was dropped). None: no longer kept. A signature is a digest of the list's
    content, so it means the same in every process.

``close(seconds)``
    At exit: waits at most ``seconds`` for running traces, ends those that take longer, and completes every open cost,
    saying why it is missing. Call it before waiting for unsent calls. It is also registered with ``atexit`` with the
    limit of ``PROV4ML_EXIT_SECONDS``; a second call does nothing.

``register_counter(type, fn)``
    Public as ``prov4ml.register_counter``, which raises nothing: for models of ``type`` (subclasses too) the cost of a
    batch is ``fn(model, batch)``: an int (FLOP of the call, 1 multiply-accumulate = 2), a pair ``(forward, backward)``,
    or a mapping with the keys ``forward``, ``backward``, ``dtype``. It takes precedence over everything else. None as
    ``fn`` removes it.

What it does to the training
============================

Nothing that training could notice. The model is never run, copied or switched: a *shadow* of it, with the same
modules and no data, is traced on meta or fake tensors. Random generators, modes, hooks, gradients, statistics,
optimizer state and device memory stay as they are, also when the model raises. What runs once more is the Python code
of the forward: a line that it prints, or writes to something outside of the model, is printed or written once for
each new signature. Only where no shadow works is one step of the training watched while it runs. ``tracer`` has the
order of the rungs.

What a known signature costs, and what it notices
=================================================

A call computes a key from the batch's shapes and dtypes, the model's train flag, the autocast setting and the
``requires_grad`` bits of the first parameter tensor, the last, and two between them, others in each call. So:

* a freeze or an unfreeze of a whole network (a GAN's), of everything but the head, or of the head, is noticed at once,
  and so is any other when the train flag has changed since, as it does around a validation; of one parameter tensor
  in the middle within ``parameter tensors / 2`` calls (30 for a ResNet-18), of a run of neighbouring ones in
  fewer, and within 128 calls in any case;
* a replaced parameter whose predecessor was released: in the same bound;
* any other change of structure (a module added, a module's own train flag, a plain setting such as ``num_layers``):
  within 128 calls, and whenever the model's train flag has changed.
"""

from __future__ import annotations

from .cost import Cost
from .tracer import batch_cost, close, epoch_cost, form, operators, register_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .torch_model import Form as Form

__all__ = ["Cost", "batch_cost", "close", "epoch_cost", "form", "operators", "register_counter"]
