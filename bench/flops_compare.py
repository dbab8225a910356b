"""Counts models of known cost with one counter after another: how far each is off, and what each leaves behind.

The models and their integers are the table of the client's tests (client/python/tests/flops/rows.py). Each counter runs
in a process of its own, since some patch torch for good, on models with real weights. `measure` writes what one counter
says; `table` makes the section of docs/flops.md.

Multiply-adds are doubled. A counter that knows no backward has none in the second table, unless it has a factor of its
own for it, which is then used as its authors do.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- make compare-flops writes from here -->\n", "<!-- to here -->\n"

# Row of the table of rows -> title.
MODELS = {
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "vit_b_16": "ViT-B/16",
    "BERT-base, pooler": "BERT-base",
    "encoder": "TransformerEncoderLayer",
    "lstm": "LSTM, 2 layers, bidirectional",
    "grouped convolutions": "grouped Conv + ConvTranspose",
    "frozen and teacher": "frozen layers and a teacher",
}
TOOLS = {
    "prov4ml": "prov4ml",
    "flop_counter": "FlopCounterMode",
    "fvcore": "fvcore",
    "deepspeed": "DeepSpeed",
    "calflops": "calflops",
    "ptflops": "ptflops",
    "thop": "thop",
    "torchinfo": "torchinfo",
}
PACKAGES = {**{tool: tool for tool in TOOLS}, "flop_counter": "torch", "prov4ml": "torch"}


# --- counters ---


def flop_counter(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        out = model(*args, **kwargs)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss(out).backward()
    return {"forward": forward, "backward": counter.get_total_flops()}


def loss(out: Any) -> Any:
    """Of every output that has a gradient."""
    if hasattr(out, "requires_grad"):
        return out.float().mean() if out.requires_grad else 0.0
    values = out.values() if hasattr(out, "values") else out
    return sum(loss(value) for value in values)


def fvcore(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, (*args, *kwargs.values()))
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    return {"forward": 2 * int(analysis.total())}


def deepspeed(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    profiler = FlopsProfiler(model)
    profiler.start_profile()
    model(*args, **kwargs)
    forward = int(profiler.get_total_flops())
    profiler.end_profile()
    return {"forward": forward, "backward": 2 * forward}  # its authors' factor


def calflops(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    from calflops import calculate_flops

    flops, _, _ = calculate_flops(
        model, args=list(args), kwargs=kwargs, print_results=False, print_detailed=False, output_as_string=False
    )
    return {"forward": int(flops), "backward": 2 * int(flops)}  # its authors' factor


def ptflops(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    from ptflops import get_model_complexity_info

    names = ["x"] if args else list(kwargs)
    values = [*args, *kwargs.values()]
    # It calls model(**what the constructor makes), or model(tensor) for a shape.
    if args:

        class Positional(type(model)):  # type: ignore[misc]
            def forward(self, x: Any) -> Any:
                return super().forward(x)

        model.__class__ = Positional
    macs, _ = get_model_complexity_info(
        model,
        (1,),
        input_constructor=lambda _: dict(zip(names, values)),
        as_strings=False,
        print_per_layer_stat=False,
        verbose=False,
        backend="pytorch",
    )
    return {"forward": 2 * int(macs)}


def thop(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    from thop import profile

    macs, _ = profile(model, inputs=(*args, *kwargs.values()), verbose=False)
    return {"forward": 2 * int(macs)}


def torchinfo(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    from torchinfo import summary

    data = kwargs or list(args)
    return {"forward": 2 * int(summary(model, input_data=data, verbose=0, mode="train").total_mult_adds)}


# --- what is left behind ---


def traces(model: Any) -> dict[str, Any]:
    """What a counter should leave as it was."""
    import torch

    def digest(things: Any) -> str:
        return hashlib.sha256(repr(things).encode()).hexdigest()

    return {
        "statistics": digest(
            [(n, b.double().sum().item()) for n, b in model.named_buffers() if not n.startswith("total_")]
        ),
        "random state": digest((torch.get_rng_state().tolist(), random.getstate())),
        "train mode": digest([(n, m.training) for n, m in model.named_modules()]),
        "state_dict": digest(list(model.state_dict())),
        "hooks": digest(
            [
                (n, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
                for n, m in model.named_modules()
            ]
        ),
        "attributes": digest([(n, sorted(vars(m))) for n, m in model.named_modules()]),
    }


def measure(tool: str, result: str) -> None:
    import torch

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "tool": tool,
        "version": importlib.metadata.version(PACKAGES[tool]),
        "torch": torch.__version__,
    }
    if tool == "prov4ml":
        import prov4ml
        from prov4ml import _flops

        def count(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
            name = titles[id(model)]
            batch = kwargs or args[0]
            prov4ml.log_flops_per_batch(name, model, batch, prov4ml.Context.TRAINING, step=0)
            # The call has returned; the trace may still run, and what it leaves changed is looked for after it.
            _flops.batch_cost(model, batch).result(300)
            return {}

    else:
        count = globals()[tool]
    titles: dict[int, str] = {}
    found["models"] = {}
    for row in rows():
        torch.manual_seed(1)
        model, (args, kwargs) = make(row)
        titles[id(model)] = row.name
        before = traces(model)
        began = time.perf_counter()
        try:
            one = dict(count(model, args, kwargs))
        except Exception as error:
            one = {"error": f"{type(error).__name__}: {error}"[:200]}
        one["seconds"] = time.perf_counter() - began
        after = traces(model)
        one["moved"] = [name for name in before if before[name] != after[name]]
        found["models"][row.name] = one
        kept.append(model)  # so that no two models share an id
    Path(result).write_text(json.dumps(found), encoding="utf-8")


kept: list[Any] = []


def rows() -> list[Any]:
    sys.path.insert(0, str(ROOT / "client/python/tests/flops"))
    import rows as known

    table = {row.name: row for row in [*known.TORCHVISION, *known.LAYERS, *known.LANGUAGE]}
    return [table[name] for name in MODELS]


def make(row: Any) -> tuple[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The row's model, with real weights, in training mode, and arguments for it."""
    model = row.make()
    if any(parameter.is_meta for parameter in model.parameters()):
        if row.name.startswith("BERT"):
            import transformers

            model = transformers.BertModel(transformers.BertConfig(vocab_size=21128))
        else:
            import torchvision

            model = getattr(torchvision.models, row.name)(weights=None)
    batch = row.batch()
    if isinstance(batch, dict):
        return model.train(), ((), batch)
    return model.train(), (((batch[0] if isinstance(batch, tuple) else batch),), {})


# --- the table ---


def ours(path: str) -> dict[str, dict[str, int]]:
    """What stands on the spans, by label."""
    found = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    values = {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}
                    if span["name"] == "log_flops_per_batch" and "prov4ml.flops" in values:
                        found[values["prov4ml.label"]] = {
                            "forward": int(values["prov4ml.flops.forward"]),
                            "backward": int(values["prov4ml.flops.backward"]),
                        }
    return found


def table(folder: str, document: str) -> int:
    results = {}
    for tool in TOOLS:
        path = Path(folder) / f"{tool}.json"
        if path.exists():
            results[tool] = json.loads(path.read_text(encoding="utf-8"))
    for name, counts in ours(f"{folder}/run/traces.jsonl").items():
        if name in results["prov4ml"]["models"]:
            results["prov4ml"]["models"][name].update(counts)
    known = {row.name: row for row in rows()}
    tools = list(results)
    names = [
        f"{TOOLS[tool]} {results[tool]['version']}" if tool not in ("prov4ml", "flop_counter") else TOOLS[tool]
        for tool in tools
    ]
    lines = [
        f"Python {platform.python_version()}, torch {results[tools[0]]['torch']}, on the CPU, training mode. A bold "
        "1.0000 is the integer itself, to the last digit.",
        "",
        "Forward, as a ratio to the truth:",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(tools),
    ]
    for name, title in MODELS.items():
        cells = [ratio(results[tool]["models"][name], "forward", known[name].forward) for tool in tools]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    second = [tool for tool in tools if any("backward" in one for one in results[tool]["models"].values())]
    lines += [
        "",
        "A training step, forward and backward; *the original* is fvcore's multiply-adds of the forward, the "
        "first value of its running sum:",
        "",
        "| | " + " | ".join([TOOLS[tool] for tool in second] + ["the original"]) + " |",
        "|---|" + "---|" * (len(second) + 1),
    ]
    for name, title in MODELS.items():
        step = known[name].forward + known[name].backward
        cells = [ratio(results[tool]["models"][name], "step", step) for tool in second]
        original = results["fvcore"]["models"][name] if "fvcore" in results else {}
        cells.append(f"{original['forward'] / 2 / step:.4f}" if "forward" in original else "-")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "What each leaves changed on the model that it counted, or in the process:",
        "",
        "| | changed |",
        "|---|---|",
    ]
    for tool in tools:
        moved = sorted({thing for one in results[tool]["models"].values() for thing in one["moved"]})
        lines.append(f"| {TOOLS[tool]} | {', '.join(moved) or 'nothing'} |")
    failures = [
        f"{TOOLS[tool]} on {MODELS[name]}: `{one['error']}`"
        for tool in tools
        for name, one in results[tool]["models"].items()
        if "error" in one
    ]
    if failures:
        lines += ["", "A dash is a failure: " + "; ".join(failures) + "."]
    text = "\n".join([*lines, ""])
    print(text)
    if document:
        replace_section(document, text)
    exact = all(
        (one.get("forward"), one.get("backward")) == (known[name].forward, known[name].backward) and not one["moved"]
        for name, one in results["prov4ml"]["models"].items()
    )
    return 0 if exact else 1


def ratio(one: dict[str, Any], what: str, truth: int) -> str:
    if what == "step":
        if "forward" not in one or "backward" not in one:
            return "-"
        value = one["forward"] + one["backward"]
    elif what in one:
        value = one[what]
    else:
        return "-"
    return "**1.0000**" if value == truth else f"{value / truth:.4f}"


def replace_section(path: str, text: str) -> None:
    """Replaces what stands between the two marks."""
    document = Path(path).read_text(encoding="utf-8")
    head, found, rest = document.partition(BEGIN)
    _, found_end, tail = rest.partition(END)
    if not found or not found_end:
        raise SystemExit(f"{path} lacks the lines {BEGIN.strip()} and {END.strip()}")
    Path(path).write_text(head + BEGIN + text + END + tail, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("tool", choices=list(TOOLS))
    one.add_argument("--result", required=True)
    all_of_them = commands.add_parser("table")
    all_of_them.add_argument("folder")
    all_of_them.add_argument("--document", default="")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments.tool, arguments.result)
        return 0
    return table(arguments.folder, arguments.document)


if __name__ == "__main__":
    sys.exit(main())
