"""Writes and reads known bytes in the ways a tree can, and logs each part as a step of its own.

Prints "flush" when everything is dirty and waits for a line: whoever started it lets a stranger write and sync meanwhile.
"""

import mmap
import os
import sys
import time

import prov4ml

MIB = 1 << 20
directory = sys.argv[1]


def path(name):
    return os.path.join(directory, name)


def write(name, size):
    with open(path(name), "wb", buffering=0) as file:
        for offset in range(0, size, MIB):
            file.write(bytes([offset // MIB % 251]) * MIB)


def write_direct(name, size):
    buffer = mmap.mmap(-1, MIB)
    buffer.write(b"d" * MIB)
    fd = os.open(path(name), os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o644)
    for _ in range(0, size, MIB):
        os.write(fd, buffer)
    os.close(fd)


def read_cold(name):
    fd = os.open(path(name), os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while os.read(fd, MIB):
        pass
    os.close(fd)


def in_child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid


def in_orphan(work):
    """Works in a grandchild whose parent is gone by then."""

    def fork_and_leave():
        parent = os.getpid()
        if os.fork() == 0:
            os.setsid()
            while os.getppid() == parent:
                time.sleep(0.001)
            work()
            os._exit(0)

    os.waitpid(in_child(fork_and_leave), 0)


prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=0)

os.waitpid(in_child(lambda: write("child", 64 * MIB)), 0)
write_direct("direct", 32 * MIB)


def orphan():
    write("orphan", 16 * MIB)
    os.rename(path("orphan"), path("orphan.done"))


in_orphan(orphan)
while not os.path.exists(path("orphan.done")):
    time.sleep(0.01)
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=1)

print("flush", flush=True)
sys.stdin.readline()
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=2)

for name in ("child", "direct", "orphan.done"):
    read_cold(name)
prov4ml.log_system_metrics(prov4ml.Context.VALIDATION, step=3)

write("late", 8 * MIB)
fd = os.open(path("late"), os.O_RDONLY)
os.fsync(fd)
