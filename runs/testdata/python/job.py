"""A job that writes known numbers of bytes in a tree of processes and speaks to the socket of the test.

    job.py MODE SOCKET

Each process that speaks says hello first. BYTES below are written by write(2), so they are in wchar of /proc/PID/io.
"""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

MAIN, WORKER = 1_000_000, 10_000_000
SOCKET = sys.argv[2] if len(sys.argv) > 2 else ""


class Link:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        self.say("hello", {k: v for k, v in os.environ.items() if k in NAMES})

    def say(self, what, environment=None):
        self.file.write(json.dumps({"do": what, "environment": environment or {}}) + "\n")
        self.file.flush()
        answer = self.file.readline()
        if answer != "ok\n":
            raise SystemExit(f"{what}: {answer}")


NAMES = ("RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")


def write(count):
    fd = os.open("/dev/null", os.O_WRONLY)
    os.write(fd, bytes(count))
    os.close(fd)


def worker(rank, path):
    link = Link(path)
    write(WORKER)
    link.say("log")


def silent():
    write(WORKER)


def main(mode, path):
    if mode == "torchrun":
        worker(int(os.environ["RANK"]), path)
        return
    link = Link(path)
    write(MAIN)
    link.say("log")
    if mode == "fork":
        pid = os.fork()
        if pid == 0:
            worker(0, path)
            os._exit(0)
        os.waitpid(pid, 0)
    elif mode in ("spawn", "forkserver"):
        process = multiprocessing.get_context(mode).Process(target=worker, args=(0, path))
        process.start()
        process.join()
    elif mode == "silent":
        process = multiprocessing.get_context("spawn").Process(target=silent)
        process.start()
        process.join()
    elif mode == "child":
        subprocess.run([sys.executable, os.path.abspath(__file__), "alone", path], check=True)
    elif mode == "orphan":
        # The middle process leaves a child behind, which writes when it is an orphan and tells by closing the pipe.
        ends = os.pipe()
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                os.close(ends[0])
                parent = os.getppid()
                while os.getppid() == parent:
                    time.sleep(0.01)
                write(WORKER)
                os.write(ends[1], b"x")
                time.sleep(1000)
            time.sleep(2)  # /proc is looked at now and then: an orphan is known if it was seen with its parent
            os._exit(0)
        os.close(ends[1])
        os.waitpid(pid, 0)
        os.read(ends[0], 1)
    elif mode == "mp.spawn":
        import torch.multiprocessing

        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", "29511"
        torch.multiprocessing.spawn(worker, args=(path,), nprocs=2)
    link.say("log")


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        worker(0, SOCKET)
    else:
        main(sys.argv[1], SOCKET)
