"""The original's other names, so that scripts written for it run unmodified.

start_run and end_run name and end the run, log_param and log_metric say something about it. Everything else that the
original has does nothing here, and says so once per name.
"""

from __future__ import annotations

import types

from . import _wire
from ._client import Client, Description
from ._context import context_fields
from ._notice import Notices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The original's public names in all its versions.
NAMES = frozenset(
    (
        "LoggingItemKind",
        "ProvMLItwinAILogger",
        "ProvMLLogger",
        "ProvenanceTrackedFunction",
        "ProvenanceTrackedModel",
        "create_context",
        "get_artifacts_dir",
        "get_avg_metric",
        "get_metric",
        "get_metric_time",
        "get_metrics",
        "get_param",
        "get_run_dir",
        "get_sum_metric",
        "log_artifact",
        "log_carbon_metrics",
        "log_context",
        "log_current_execution_time",
        "log_dataset",
        "log_execution_command",
        "log_execution_end_time",
        "log_execution_start_time",
        "log_model",
        "log_model_memory_footprint",
        "log_provenance_documents",
        "log_source_code",
        "register_final_metric",
        "save_model_version",
    )
)
# Names that a newer version may have and that a training calls in its loop.
_PREFIXES = ("log_", "save_", "register_")

# The agent's limit for a value, with room for the mark that it was cut.
_VALUE_BYTES = 1024


class Inert:
    """Stands for a name of the original: can be called, looked into, inherited from, used as a decorator."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **_: Any) -> Any:
        # As a decorator it leaves what it decorates as it was.
        if len(args) == 1 and isinstance(args[0], (types.FunctionType, type)):
            return args[0]
        return None

    def __getattr__(self, name: str) -> Inert:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __mro_entries__(self, _: tuple[object, ...]) -> tuple[type, ...]:
        return ()

    def __repr__(self) -> str:
        return f"<prov4ml.{self._name}: does nothing>"


def inert(module: str, name: str, notices: Notices) -> Inert:
    """The stand-in for a name; AttributeError for what the original doesn't have either."""
    if name not in NAMES and (name.startswith("_") or not name.startswith(_PREFIXES)):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    notices.say(f"inert {name}", f"{module}.{name} does nothing here: the agent measures by itself")
    return Inert(name)


def start(client: Client, experiment_name: object) -> None:
    client.describe(Description(name=str(experiment_name) if experiment_name is not None else ""))


def end(client: Client) -> None:
    client.describe(Description(end=True))


def param(client: Client, key: object, value: object) -> None:
    client.describe(Description(attributes={str(key): cut(str(value))}))


def metric(client: Client, key: object, value: object, context: object, step: object, timestamp: object) -> None:
    number = float(value)  # type: ignore[arg-type]  # the caller turns the object's refusal into a notice
    # protobuf's JSON has words for what JSON has no numbers for.
    text = repr(number) if number - number == 0 else '"NaN"' if number != number else f'"{"-" * (number < 0)}Infinity"'
    fields = f'"key":{_wire.quote(str(key))},"value":{text},{context_fields(context)}'
    if step is not None:
        fields += f'"step":{_wire.integer(step)},'
    if timestamp is not None:
        fields += f'"timestamp":{_wire.integer(timestamp)},'
    client.describe(Description(metric=f"{{{fields[:-1]}}}"))


def cut(text: str) -> str:
    """At most what the agent takes, cut between characters."""
    data = text.encode("utf-8", "replace")
    if len(data) <= _VALUE_BYTES:
        return data.decode("utf-8")
    return data[: _VALUE_BYTES - 3].decode("utf-8", "ignore") + "..."
