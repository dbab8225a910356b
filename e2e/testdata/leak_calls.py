"""Logs as fast as it is answered. Each line of standard input says how often; prints "logged N" when all calls are answered.

argv = the agent's socket, how many different steps the calls have. Calls are bare HTTP on one connection: the client goes on without
an answer after a second, and then drops calls where it makes more than it can tell.
"""

import socket
import sys

agent, steps = sys.argv[1], int(sys.argv[2])
total = 0
sock = socket.socket(socket.AF_UNIX)
sock.connect(agent)
answers = sock.makefile("rb")


def log(step):
    body = '{"context":"training","step":%d}' % step
    sock.sendall(
        b"POST /prov4ml.v1.AgentService/LogSystemMetrics HTTP/1.1\r\nHost: agent\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode())
    )
    status = answers.readline()
    if b" 200 " not in status:
        sys.exit(f"the agent answered {status}")
    length = 0
    while (line := answers.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    answers.read(length)


log(0)
print("ready", flush=True)
for line in sys.stdin:
    for number in range(total, total + int(line)):
        log(number % steps)
    total += int(line)
    print(f"logged {total}", flush=True)
