"""The variables that say which run and which rank this process is.

Only the names below ever leave the process. SLURM_* as a whole would hand over SLURM_JWT, which is a password.
"""

from __future__ import annotations

import os
import sys

_NAMES = (
    # Ours.
    "PROV4ML_RUN_ID",
    "PROV4ML_RUN_NAME",
    "PROV4ML_ATTEMPT",
    "PROV4ML_RANK",
    # torchrun and torch.distributed's own rendezvous.
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
    # SLURM.
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "SLURM_JOB_NAME",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NNODES",
    "SLURM_JOB_NUM_NODES",
    "SLURM_RESTART_COUNT",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_HET_JOB_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_PARTITION",
    "SLURMD_NODENAME",
    # MPI: Open MPI, MPICH and Intel MPI, PMIx, MVAPICH2.
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "OMPI_COMM_WORLD_NODE_RANK",
    "OMPI_MCA_ess_base_jobid",
    "PMI_ID",
    "PMI_RANK",
    "PMI_SIZE",
    "PMI_LOCAL_RANK",
    "PMI_LOCAL_SIZE",
    "PMI_JOBID",
    "PMIX_ID",
    "PMIX_RANK",
    "PMIX_NAMESPACE",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_SIZE",
    # Kubernetes: indexed Jobs, JobSet, Kubeflow's training operator and pipelines.
    "JOB_COMPLETION_INDEX",
    "JOB_NAME",
    "JOB_UID",
    "JOBSET_NAME",
    "JOBSET_UID",
    "JOBSET_RESTART_ATTEMPT",
    "REPLICATED_JOB_NAME",
    "PET_NODE_RANK",
    "PET_NNODES",
    "PET_NPROC_PER_NODE",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
    "PET_RDZV_ID",
    "PET_RDZV_ENDPOINT",
    "KUBEFLOW_JOB_ID",
    "KUBEFLOW_TRAINJOB_NAME",
    "KUBEFLOW_TRAINJOB_UID",
    "KFP_RUN_ID",
    # Ray.
    "RAY_JOB_ID",
    "RAY_SUBMISSION_ID",
    "RAY_TRAIN_RUN_ID",
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
