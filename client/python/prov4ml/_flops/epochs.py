"""What an epoch executes: how many batches of which shape.

Never one sample times the length of the dataset: cost is affine in the batch size, and the last batch may be short. The
number of batches and their sizes come from the loader's samplers, without iterating anything. The shapes come from the
batches that were logged before; only when there were none, two samples are read and collated (one, the other, both),
which shows how each extent depends on the batch size, with the random generators put back afterwards. The loader itself
and its workers are never started. Where shapes or sizes cannot be known beforehand, the answer says so, and the sum of
the logged batches is what counts.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import counters
from .cost import Cost, Fragment


class Plan(NamedTuple):
    """The batches of an epoch."""

    # (how many, samples in each); 0 samples = whatever one item of the loader is.
    parts: List[Tuple[int, int]]
    # Reads samples by number and makes one batch of them; None = there is nothing to read.
    read: Optional[Callable[[List[int]], Any]]
    samples: int
    # Whether one item is one batch, with no dimension added.
    whole: bool
    # Why sizes are not known.
    reason: str


def epoch(tracer: Any, model: Any, dataset: Any) -> Cost:
    """The cost of one epoch of dataset; see the package for the fragment."""
    state = tracer.state(model)
    if state.torch is None or counters.registered(model) is not None:
        return Cost(_other(tracer, state, model, dataset))
    if isinstance(dataset, (list, tuple)) and not _is_dataset(dataset):
        return _listed(tracer, state, model, dataset)
    plan = _plan(dataset)
    seen = state.torch.seen(model, state.entries)
    try:
        if plan.reason:
            return _measured(tracer, state, model, seen, plan.reason)
        shapes, reason = _shapes(plan, seen, state.torch)
        if shapes is None:
            return _measured(tracer, state, model, seen, reason)
        return _combine(tracer, state, model, shapes, reason)
    finally:
        for key, entry in list(state.entries.items()):
            if key[1] is model.training:
                entry.batches = 0


def _torch_data() -> Any:
    torch: Any = sys.modules["torch"]
    return torch.utils.data


def _is_dataset(dataset: Any) -> bool:
    return isinstance(dataset, _torch_data().Dataset)


# --- sizes ------------------------------------------------------------------------------------------------------------


def _plan(dataset: Any) -> Plan:
    data = _torch_data()
    if isinstance(dataset, data.DataLoader):
        return _of_loader(dataset)
    if isinstance(dataset, data.IterableDataset):
        return _unknown("an IterableDataset has no batches before it is read")
    if isinstance(dataset, data.BatchSampler):
        sizes = _sizes(dataset)
        return Plan(sizes, None, 0, False, "") if sizes is not None else _unknown(_UNKNOWN_SAMPLER)
    if isinstance(dataset, data.Sampler) or not hasattr(dataset, "__getitem__"):
        length = _length(dataset)
        if length is None or not isinstance(dataset, data.Sampler):
            return _unknown(f"a {type(dataset).__name__} says neither how many batches it has nor their shapes")
        return Plan([(length, -1)], None, length, False, "")
    length = _length(dataset)
    if length is None:
        return _unknown(f"a {type(dataset).__name__} without a length")

    def read(numbers: List[int]) -> Any:
        return data.default_collate([dataset[number] for number in numbers])

    return Plan([(length, -1)], read, length, False, "")


_UNKNOWN_SAMPLER = "a batch sampler of its own kind does not say the sizes of its batches beforehand"


def _of_loader(loader: Any) -> Plan:
    data = _torch_data()
    dataset = loader.dataset
    if isinstance(dataset, data.IterableDataset):
        length = _length(dataset)
        if length is None:
            return _unknown("an IterableDataset has no length")
        if loader.num_workers > 1:
            return _unknown("an IterableDataset with several workers: each decides by itself what it reads")
        if loader.batch_size is None:
            return Plan([(length, 0)], None, length, True, "")
        return Plan(_divide(length, loader.batch_size, loader.drop_last), None, length, False, "")

    def read(numbers: List[int]) -> Any:
        return loader.collate_fn([dataset[number] for number in numbers])

    def read_one(numbers: List[int]) -> Any:
        return loader.collate_fn(dataset[numbers[0]])

    samples = _length(dataset) or 0
    if loader.batch_sampler is None:
        length = _length(loader.sampler)
        if length is None:
            return _unknown("the sampler has no length")
        return Plan([(length, 0)], read_one, samples, True, "")
    sizes = _sizes(loader.batch_sampler)
    if sizes is None:
        return _unknown(_UNKNOWN_SAMPLER)
    return Plan(sizes, read, samples, False, "")


def _sizes(sampler: Any) -> Optional[List[Tuple[int, int]]]:
    if isinstance(sampler, (list, tuple)):
        counts: Dict[int, int] = {}
        for batch in sampler:
            counts[len(batch)] = counts.get(len(batch), 0) + 1
        return [(count, size) for size, count in counts.items() if size]
    # A subclass may yield what it likes.
    if type(sampler) is not _torch_data().BatchSampler:
        return None
    length = _length(sampler.sampler)
    return None if length is None else _divide(length, sampler.batch_size, sampler.drop_last)


def _divide(samples: int, size: int, drop_last: bool) -> List[Tuple[int, int]]:
    full, rest = divmod(samples, size)
    parts = [(full, size)] if full else []
    if rest and not drop_last:
        parts.append((1, rest))
    return parts


def _length(x: Any) -> Optional[int]:
    try:
        return len(x)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def _unknown(reason: str) -> Plan:
    return Plan([], None, 0, False, reason)


# --- shapes -----------------------------------------------------------------------------------------------------------


def _shapes(plan: Plan, seen: List[Any], owner: Any) -> Tuple[Optional[List[Tuple[int, Any]]], str]:
    """How many batches of which plan; None with the reason."""
    reason = ""
    parts = plan.parts
    if parts and parts[0][1] == -1:
        # The largest: the last batch of an epoch may be short.
        size = max((entry.batch_size for entry in seen), default=0)
        if not size:
            size = 1
            reason = "the batch size is unknown (a dataset, and no batch was logged): counted one sample at a time"
        parts = _divide(parts[0][0], size, False)
    fitting = {size for _, size in parts} & {entry.batch_size for entry in seen} or plan.whole
    if seen and (fitting or plan.read is None):
        return _from_seen(parts, seen, plan.whole)
    if plan.read is None:
        return None, "no batch of this model was logged before, so its shapes are unknown"
    shapes, problem = _from_samples(parts, plan)
    return shapes, problem or reason


def _from_seen(
    parts: List[Tuple[int, int]], seen: List[Any], whole: bool
) -> Tuple[Optional[List[Tuple[int, Any]]], str]:
    from .batches import resize, same_but_size

    latest = seen[0]
    for other in seen[1:]:
        if not same_but_size(latest.batch, latest.batch_size, other.batch, other.batch_size):
            return None, "the logged batches differ in more than their size: their sum is the number"
    if whole:
        return [(count, latest) for count, _ in parts], ""
    strange = {entry.batch_size for entry in seen} - {size for _, size in parts}
    if len(seen) > 1 and strange:
        return None, f"batches of {min(strange)} were logged, which the loader does not make: their sum is the number"
    shapes: List[Tuple[int, Any]] = []
    for count, size in parts:
        known = [entry for entry in seen if entry.batch_size == size]
        if known:
            shapes.append((count, known[0]))
            continue
        resized = resize(latest.batch, latest.batch_size, size)
        if resized is None:
            return (
                None,
                f"a batch of {size} cannot be made from one of {latest.batch_size}: it is not made of tensors only",
            )
        shapes.append((count, resized))
    return shapes, ""


def _from_samples(parts: List[Tuple[int, int]], plan: Plan) -> Tuple[Optional[List[Tuple[int, Any]]], str]:
    from .batches import extrapolate, same
    from .torch_model import host_generators

    read = plan.read
    assert read is not None
    try:
        with host_generators():
            one = _captured(read, [0])
            other = _captured(read, [1]) if plan.samples > 1 else one
            both = _captured(read, [0, 1]) if plan.samples > 1 and not plan.whole else None
    except Exception as err:  # noqa: BLE001 - the dataset's own code runs here
        return None, f"no sample could be read to learn its shape: {type(err).__name__}: {err}"
    if not same(one, other):
        return None, "samples differ in shape, so batches do"
    if plan.whole:
        return [(count, one) for count, _ in parts], ""
    shapes: List[Tuple[int, Any]] = []
    for count, size in parts:
        batch = one if size == 1 else extrapolate(one, both, size) if both is not None else None
        if batch is None:
            return None, f"the shape of a batch of {size} does not follow from batches of one and two samples"
        shapes.append((count, batch))
    return shapes, ""


def _captured(read: Callable[[List[int]], Any], numbers: List[int]) -> Any:
    from .capture import capture_batch

    return capture_batch(read(numbers))


# --- answers ----------------------------------------------------------------------------------------------------------


def _combine(tracer: Any, state: Any, model: Any, shapes: List[Tuple[int, Any]], reason: str) -> Cost:
    """One answer from the costs of several shapes, when the last of them is known."""
    costs = [(count, tracer.shape(state, model, shape)) for count, shape in shapes]
    cost = Cost()
    left = [len(costs)]
    lock = threading.Lock()

    def arrived(_: Cost) -> None:
        with lock:
            left[0] -= 1
            if left[0]:
                return
        try:
            cost.complete(_fragment([(count, part.result()) for count, part in costs], reason))
        except Exception as err:
            cost.complete({"incompleteReason": f"prov4ml failed: {type(err).__name__}: {err}"[:1000]})

    if not costs:
        return Cost({"batches": [], "incompleteReason": reason or "the epoch has no batches"})
    for _, part in costs:
        part.add_done_callback(arrived)
    return cost


def _fragment(parts: List[Tuple[int, Fragment]], reason: str) -> Fragment:
    lists: List[Dict[str, Any]] = []
    batches: Dict[str, int] = {}
    reasons = [reason]
    for count, part in parts:
        counted = part.get("count")
        if counted is not None:
            reasons.append(counted.get("missingReason") or "the batches are counted by the model itself")
            continue
        operators = part.get("operators")
        signature = operators["signature"] if operators is not None else part["signature"]
        if operators is not None:
            lists.append(operators)
            reasons.append(operators.get("missingReason") or "")
        batches[signature] = batches.get(signature, 0) + count
    fragment: Fragment = {"batches": [{"signature": key, "batches": count} for key, count in batches.items()]}
    if lists:
        fragment["operators"] = lists
    told = "; ".join(dict.fromkeys(filter(None, reasons)))
    if told:
        fragment["incompleteReason"] = told[:1000]
    return fragment


def _measured(tracer: Any, state: Any, model: Any, seen: List[Any], reason: str) -> Cost:
    """The batches logged since the last epoch, when the epoch cannot be known beforehand."""
    logged = [(entry.batches, entry) for entry in seen if entry.batches]
    if not logged:
        return Cost({"incompleteReason": f"{reason}; no batch was logged in this epoch"[:1000]})
    return _combine(tracer, state, model, logged, f"{reason}; these are the batches logged since the last epoch")


def _listed(tracer: Any, state: Any, model: Any, batches: Any) -> Cost:
    """A list of batches says everything."""
    from .capture import capture_batch
    from .torch_model import shape_key

    counts: Dict[Any, List[Any]] = {}
    for batch in batches:
        plan = counts.setdefault(shape_key(batch, state.torch.values, True), [0, None])
        if plan[1] is None:
            plan[1] = capture_batch(batch)
        plan[0] += 1
    return _combine(tracer, state, model, [(count, plan) for count, plan in counts.values()], "")


def _other(tracer: Any, state: Any, model: Any, dataset: Any) -> Fragment:
    """An epoch of a model that is not torch's."""
    if isinstance(dataset, (list, tuple)):
        return counters.total([tracer.other(state, model, batch).result()["count"] for batch in dataset])
    return {"incompleteReason": "only a list of batches can be counted beforehand for a model that is not torch's"}
