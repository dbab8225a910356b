// Package cgroup reads what the kernel accounts for the memory cgroup of a process: usage, peak, limit, what it is made of, and
// how long its processes stood still for lack of memory (PSI).
//
// Which cgroup: a container's limit stands on the process's own cgroup, SLURM's on the job's or step's further up. So it is the one
// with the smallest limit among the process's own and those around it, the innermost of equals, and without any limit the process's
// own. All values are of that one cgroup, other processes in it included, those of other trees too. The root cgroup is the host
// and not told here.
//
// v1 and v2 are told apart by /proc/PID/cgroup, so hybrid machines work. v1 has no PSI and counts page cache and shared memory
// together; here File never has Shmem in it (Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst).
//
// What it cannot see: cgroups outside the agent's own cgroup namespace; their path begins with /.. then.
package cgroup
