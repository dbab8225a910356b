"""The variables that say which run and which rank this process is.

Only the names below ever leave the process. SLURM_* as a whole would hand over SLURM_JWT, which is a password.
"""

from __future__ import annotations

import os
import sys

# What the agent's rules read (runs/launch.go; a test there compares the lists), the trace context apart.
_NAMES = (
    # Ours.
    "PROV4ML_RUN_ID",
    "PROV4ML_RUN_NAME",
    "PROV4ML_RANK",
    "PROV4ML_ATTEMPT",
    # torchrun and torch.distributed's own rendezvous.
    "RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    # SLURM.
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
    "SLURM_PROCID",
    "SLURM_RESTART_COUNT",
    # MPI: Open MPI, PMIx, MPICH and Intel MPI, MVAPICH2, Cray PALS; Flux.
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "MV2_COMM_WORLD_RANK",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
    # Kubernetes: Kubeflow's training operator, JobSet.
    "PET_RDZV_ID",
    "JOBSET_NAME",
    "JOBSET_UID",
    "JOBSET_RESTART_ATTEMPT",
    "POD_NAMESPACE",
    # Ray.
    "RAY_JOB_ID",
)

# The agent's own limit for a value; a longer one is no identifier.
_VALUE_BYTES = 1024


def collect() -> dict[str, str]:
    """The variables of the list that are set and not empty."""
    found = {}
    for name in _NAMES:
        value = os.environ.get(name)
        if value and len(value) <= _VALUE_BYTES:
            found[name] = value
    return found


def traceparent() -> str:
    """The W3C trace context that the launcher handed down; empty = none."""
    value = os.environ.get("TRACEPARENT", "")
    return value if len(value) <= _VALUE_BYTES else ""


def script() -> str:
    """Base name of the script; empty in an interpreter without one."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return "" if name in ("-c", "-m", "-") else name
