"""The original's newest form: its package is named yprov4ml, a context is a string, and experiment_name comes first.

Asked for, it answers to that name too: `prov4ml.install_alias()` before `import yprov4ml`; or, for an unmodified
script, the folder that `python -m prov4ml --alias-path` prints on PYTHONPATH.
"""

from __future__ import annotations

import prov4ml
from prov4ml import (
    end_run,
    log_flops_per_batch,
    log_flops_per_epoch,
    log_metric,
    log_param,
    log_system_metrics,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "end_run",
    "log_flops_per_batch",
    "log_flops_per_epoch",
    "log_metric",
    "log_param",
    "log_system_metrics",
    "start_run",
    "start_run_ctx",
]


def start_run(
    experiment_name: object = None, prov_user_namespace: object = None, *args: object, **kwargs: object
) -> None:
    """Names the run after experiment_name."""
    prov4ml.start_run(prov_user_namespace, experiment_name)


class start_run_ctx(prov4ml.start_run_ctx):  # the original's name, called like a function
    """start_run at the beginning of a with block, end_run at its end."""

    def __init__(
        self, experiment_name: object = None, prov_user_namespace: object = None, *args: object, **kwargs: object
    ) -> None:
        super().__init__(prov_user_namespace, experiment_name)


if not TYPE_CHECKING:  # type checkers shall still find a misspelt name

    def __getattr__(name: str) -> Any:
        from prov4ml import _notices, _upstream

        return _upstream.inert(__name__, name, _notices)
