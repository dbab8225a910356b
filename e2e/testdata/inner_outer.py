"""Two processes that log, one inside the other: argv = directory. Goes on at each line of its input, and prints what it waits for.

The outer one writes 1 MiB in each part, the inner ones 8 MiB (ends before the agent does), 16 MiB (ends while there is none) and
32 MiB (lives on).
"""

import os
import sys

import prov4ml

MIB = 1 << 20
directory = sys.argv[1]


def write(name, size):
    with open(os.path.join(directory, name), "ab", buffering=0) as file:
        for _ in range(size):
            file.write(b"i" * MIB)
        os.fsync(file.fileno())


def part(name):
    print(name, flush=True)
    sys.stdin.readline()


class Inner:
    """A child that logs, writes when told, and ends when told."""

    def __init__(self, size):
        self.told, tell = os.pipe()
        done, self.done = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(tell)
            os.close(done)
            prov4ml.log_system_metrics(prov4ml.Context.VALIDATION, step=0)
            self.say()
            self.hear()
            write(f"inner{size}", size)
            self.say()
            self.hear()
            os._exit(0)
        os.close(self.told)
        os.close(self.done)
        self.tell, self.answers = tell, done
        self.answered()

    def say(self):
        os.write(self.done, b".")

    def hear(self):
        os.read(self.told, 1)

    def answered(self):
        os.read(self.answers, 1)

    def work(self):
        os.write(self.tell, b".")
        self.answered()

    def end(self):
        os.write(self.tell, b".")
        os.waitpid(self.pid, 0)


prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=0)
before, meanwhile, after = Inner(8), Inner(16), Inner(32)
before.work()
before.end()
write("outer", 1)
part("kill")
meanwhile.work()
meanwhile.end()
write("outer", 1)
part("start")
after.work()
write("outer", 1)
prov4ml.log_system_metrics(prov4ml.Context.TRAINING, step=1)
part("end")
after.end()
