"""Forks children that end at once. Each line of standard input says how many; logs and prints "forked N" when they have ended.

argv = the agent's socket, a directory for files. Every tenth child makes a page dirty and removes its file before anybody writes it;
every five-hundredth logs, so it is a run of its own that ends. Calls are bare HTTP: a process with few pages forks fastest.
"""

import os
import socket
import sys

agent, directory = sys.argv[1:]
total = 0


def log(step):
    body = '{"context":"training","step":%d}' % step
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(agent)
        sock.sendall(
            b"POST /prov4ml.v1.AgentService/LogSystemMetrics HTTP/1.1\r\nHost: agent\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode())
        )
        answer = sock.recv(4096)
    if b" 200 " not in answer:
        sys.exit(f"the agent answered {answer}")


def child(number):
    if number % 10 == 1:
        path = f"{directory}/{number}"
        with open(path, "wb", buffering=0) as file:
            file.write(b"w" * 4096)
        os.unlink(path)
    if number % 500 == 0:
        log(number)


log(0)
print("ready", flush=True)
for line in sys.stdin:
    for number in range(total, total + int(line)):
        pid = os.fork()
        if pid == 0:
            child(number)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit(f"child {number} ended with {status}")
    total += int(line)
    log(total)
    print(f"forked {total}", flush=True)
