"""Scripts written for the original, in each of its forms."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from agent import Agent
from scripts import ROOT, script

import prov4ml
from prov4ml import _upstream, yprov4ml
from prov4ml._notice import Notices

ORIGINAL = """
import prov4ml
from prov4ml import ProvMLLogger, LoggingItemKind

prov4ml.start_run(
    prov_user_namespace="www.example.org", experiment_name="mnist", provenance_save_dir="prov",
    save_after_n_logs=100, collect_all_processes=True, rank=0, disable_codecarbon=True,
)
prov4ml.log_param("lr", 0.001)
prov4ml.log_param("dataset", {"name": "mnist"})
prov4ml.register_final_metric("MSE_test", 10, prov4ml.FoldOperation.MIN if False else min)
for epoch in range(2):
    prov4ml.log_metric("loss", 0.5, context=prov4ml.Context.TRAINING, step=epoch)
    prov4ml.log_metric("acc", 1, prov4ml.Context.VALIDATION, epoch, source="mine")
    prov4ml.log_carbon_metrics(prov4ml.Context.TRAINING, step=epoch)
    prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=epoch)
    prov4ml.log_current_execution_time("train_step", prov4ml.Context.TRAINING, epoch)
    prov4ml.save_model_version(object(), "m", prov4ml.Context.TRAINING, epoch)
prov4ml.log_model(object(), "m", log_model_info=True, log_as_artifact=True)
logger = ProvMLLogger()
LoggingItemKind.METRIC.value
prov4ml.end_run(create_graph=True, create_svg=True)
"""


def test_a_script_of_the_original(agent: Agent) -> None:
    done = script(ORIGINAL)
    assert done.returncode == 0, done.stderr
    assert [t.message["step"] for t in agent.logs()] == [0, 1]
    described = agent.described()
    assert described[0]["environment"] == {}
    rest = [
        {k: v for k, v in d.items() if k not in ("environment", "script", "traceparent", "clientVersion")}
        for d in described[1:]
    ]
    assert rest[:3] == [
        {"name": "mnist"},
        {"attributes": {"lr": "0.001"}},
        {"attributes": {"dataset": "{'name': 'mnist'}"}},
    ]
    assert rest[3:5] == [
        {"metrics": [{"key": "loss", "value": 0.5, "context": "training", "step": 0}]},
        {"metrics": [{"key": "acc", "value": 1.0, "context": "validation", "step": 0}]},
    ]
    assert rest[-1] == {"end": True}
    lines = done.stderr.splitlines()
    assert len(lines) == len(set(lines)) == 7, lines
    assert all("does nothing here" in line for line in lines)


def test_start_run_ctx_ends_the_run_also_on_an_exception(package: Any, agent: Agent) -> None:
    with pytest.raises(ZeroDivisionError), package.start_run_ctx("ns", "name", "dir"):
        1 / 0  # noqa: B018
    assert [d.get("name", d.get("end")) for d in agent.described()] == ["name", True]


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (0.5, 0.5),
        (3, 3.0),
        ("2.5", 2.5),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
    ],
)
def test_metric_values(package: Any, agent: Agent, value: object, sent: object) -> None:
    package.log_metric("loss", value, step=1, timestamp=5)
    assert agent.described()[-1]["metrics"] == [{"key": "loss", "value": sent, "step": 1, "timestamp": 5}]


def test_a_long_parameter_is_cut(package: Any, agent: Agent) -> None:
    package.log_param("config", "ü" * 2000)
    value = agent.described()[-1]["attributes"]["config"]
    assert len(value.encode()) <= 1024
    assert value.endswith("ü...")


def test_every_name_of_the_original_is_there() -> None:
    for name in _upstream.NAMES:
        stand_in = getattr(prov4ml, name)
        assert stand_in(1, 2, key=3) is None
        assert getattr(yprov4ml, name) is not None


@pytest.mark.parametrize("name", ["log_everything_new", "save_something", "register_x"])
def test_names_of_a_newer_version(name: str) -> None:
    assert getattr(prov4ml, name)("x") is None


@pytest.mark.parametrize("name", ["__path_", "_private", "Contxt", "numpy", "Log_x"])
def test_other_names_are_attribute_errors(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(prov4ml, name)


def test_what_stands_in_can_decorate_and_be_inherited_from() -> None:
    inert = _upstream.inert("prov4ml", "ProvenanceTrackedModel", Notices())

    class Model(inert):  # type: ignore[misc, valid-type]
        pass

    @inert
    def function() -> int:
        return 5

    assert Model.__bases__ == (object,)
    assert function() == 5
    assert inert(function, 1) is None
    assert inert.METRIC.value(1) is None


# The newest form.

NEWEST = """
yprov4ml.start_run("exp", "http://ns", "dir")
yprov4ml.log_system_metrics("pretrain", 3)
yprov4ml.log_system_metrics()
yprov4ml.log_metric("loss", 0.5, "train", step=1, source=None, timestamp=0)
yprov4ml.log_param("lr", 1, "train")
yprov4ml.create_context("mine")
yprov4ml.end_run(create_graph=False, create_svg=False, crate_ro_crate=True)
assert not hasattr(yprov4ml, "Context")
"""


def check(done: Any, agent: Agent) -> None:
    assert done.returncode == 0, done.stderr
    assert [t.message.get("context") for t in agent.wait_logs(2)] == ["pretrain", None]
    assert [d["name"] for d in agent.described() if "name" in d][:1] == ["exp"]
    assert agent.described()[-1] == {"end": True}


def test_alias_asked_for_in_the_script(agent: Agent) -> None:
    check(script("import prov4ml; prov4ml.install_alias()\nimport yprov4ml\n" + NEWEST), agent)


def test_alias_by_import(agent: Agent) -> None:
    check(script("from prov4ml import yprov4ml\n" + NEWEST), agent)


def test_alias_for_an_unmodified_script(agent: Agent, tmp_path: Any) -> None:
    folder = subprocess.run(
        [sys.executable, "-m", "prov4ml", "--alias-path"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PROV4ML_AGENT_SOCKET": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    check(script("import yprov4ml\n" + NEWEST, PYTHONPATH=f"{ROOT}:{folder}"), agent)


def test_without_the_wish_there_is_no_alias() -> None:
    done = script("import prov4ml\nimport yprov4ml")
    assert done.returncode == 1
    assert "No module named 'yprov4ml'" in done.stderr


def test_an_alias_does_not_replace_a_loaded_package() -> None:
    done = script(
        "import sys, types, prov4ml\nsys.modules['yprov4ml'] = mine = types.ModuleType('m')\n"
        "prov4ml.install_alias()\nassert sys.modules['yprov4ml'] is mine"
    )
    assert done.returncode == 0, done.stderr
