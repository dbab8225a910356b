"""Logs two steps; between them a child enters a memory cgroup and takes more than it allows: argv = cgroup.procs, bytes."""

import os
import sys

import prov4ml

processes, size = sys.argv[1], int(sys.argv[2])
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=1)
child = os.fork()
if child == 0:
    with open(processes, "w") as file:
        file.write(str(os.getpid()))
    memory = bytearray(size)
    for at in range(0, size, 4096):
        memory[at] = 1
    os._exit(0)
_, status = os.waitpid(child, 0)
print("child", child, "signal", os.WTERMSIG(status), flush=True)
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=2)
