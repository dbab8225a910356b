"""An agent for tests: a real HTTP server on a Unix socket, written from the contract and not from the client.

As a program (`python agent.py SOCKET OUT`) it runs in a process of its own, so that it can be stopped and killed; each
call that it takes becomes a line of JSON in OUT.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OK = {"record": "1", "traceId": "00" * 16, "spanId": "00" * 8}


@dataclass
class Taken:
    """One call as it came."""

    function: str
    message: dict[str, Any]
    streamed: bool
    connection: int
    peer: int
    at: float = field(default_factory=time.monotonic)


@dataclass
class Reply:
    status: int = 200
    body: Any = field(default_factory=lambda: OK)
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None  # instead of everything else
    delay: float = 0.0
    hang_up: bool = False  # close after this answer
    silent: bool = False  # never answer


Decide = Callable[["Taken"], Reply]


class Agent:
    def __init__(self, path: str, decide: Decide | None = None, hello: Reply | None = None) -> None:
        self.path = path
        self.taken: list[Taken] = []
        self.bytes: list[bytes] = []  # everything that came, one entry per receive
        self.hello = hello or Reply(body={"runId": "r", "agentVersion": "test"})
        self.decide: Decide = decide or (lambda _: Reply())
        self.changed = threading.Condition()
        self._connections: list[socket.socket] = []
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(128)
        self._count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Goes away like a killed agent: all connections end, the socket file stays."""
        if self._closed:
            return
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.close()

    def remove(self) -> None:
        self.close()
        os.unlink(self.path)

    def logs(self) -> list[Taken]:
        return [taken for taken in self.taken if taken.function != "DescribeRun"]

    def described(self) -> list[dict[str, Any]]:
        return [taken.message for taken in self.taken if taken.function == "DescribeRun"]

    def wait(self, enough: Callable[[], bool], seconds: float = 10.0) -> None:
        """Waits until enough has come; an AssertionError when it does not."""
        with self.changed:
            assert self.changed.wait_for(enough, seconds), [(t.function, t.message) for t in self.taken]

    def wait_logs(self, count: int) -> list[Taken]:
        self.wait(lambda: len(self.logs()) >= count)
        return self.logs()

    def take(self, taken: Taken) -> None:
        with self.changed:
            self.taken.append(taken)
            self.changed.notify_all()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._count += 1
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection, self._count), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            peer = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            reader = _Reader(connection, self.bytes)
            while True:
                line = reader.line()
                method, target, version = line.split(" ")
                assert (method, version) == ("POST", "HTTP/1.1"), line
                headers = {}
                while True:
                    line = reader.line()
                    if not line:
                        break
                    name, _, value = line.partition(": ")
                    headers[name.lower()] = value
                assert headers["host"], headers
                service, _, function = target.rpartition("/")
                assert service == "/prov4ml.v1.AgentService", target
                if function == "LogStream":
                    self._stream(connection, reader, headers, number, peer)
                    continue
                assert headers["content-type"] == "application/json", headers
                body = reader.exactly(int(headers["content-length"]))
                taken = Taken(function, json.loads(body), False, number, peer)
                if function == "DescribeRun":
                    self.take(taken)
                    reply = self.hello
                else:
                    reply = self.decide(taken)
                    if not reply.silent and reply.status == 200:
                        self.take(taken)
                if reply.delay:
                    time.sleep(reply.delay)
                if not reply.silent:
                    self._answer(connection, reply)
                if reply.hang_up:
                    return
        except (OSError, EOFError):
            return
        finally:
            connection.close()

    def _answer(self, connection: socket.socket, reply: Reply) -> None:
        if reply.raw is not None:
            connection.sendall(reply.raw)
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        head = f"HTTP/1.1 {reply.status} Whatever\r\nContent-Type: application/json\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers)
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def _stream(
        self, connection: socket.socket, reader: _Reader, headers: dict[str, str], number: int, peer: int
    ) -> None:
        assert headers["content-type"] == "application/connect+json", headers
        assert headers["transfer-encoding"] == "chunked", headers
        assert headers["connect-protocol-version"] == "1", headers
        accepted, refused, why = 0, 0, ""
        pending = b""
        while True:
            size = int(reader.line(), 16)
            if size == 0:
                assert reader.line() == ""
                break
            pending += reader.exactly(size)
            assert reader.exactly(2) == b"\r\n"
            while len(pending) >= 5:
                flags, length = pending[0], int.from_bytes(pending[1:5], "big")
                if len(pending) < 5 + length:
                    break
                assert flags == 0, flags
                ((key, message),) = json.loads(pending[5 : 5 + length]).items()
                pending = pending[5 + length :]
                taken = Taken(key[0].upper() + key[1:], message, True, number, peer)
                reply = self.decide(taken)
                if reply.delay:
                    time.sleep(reply.delay)
                if reply.silent:
                    continue
                if reply.hang_up:
                    self._answer(connection, reply)
                    raise EOFError
                if reply.status == 200:
                    accepted += 1
                    self.take(taken)
                else:
                    refused += 1
                    why = why or reply.body["message"]
        result = {"accepted": str(accepted), "refused": str(refused), "firstRefusal": why}
        body = b"".join(
            bytes((flags,)) + len(text).to_bytes(4, "big") + text
            for flags, text in ((0, json.dumps(result).encode()), (2, b"{}"))
        )
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
            + b"0\r\n\r\n"
        )


class _Reader:
    def __init__(self, connection: socket.socket, seen: list[bytes]) -> None:
        self._connection = connection
        self._seen = seen
        self._data = b""

    def _more(self) -> bool:
        data = self._connection.recv(65536)
        self._seen.append(data)
        self._data += data
        return bool(data)

    def line(self) -> str:
        while b"\r\n" not in self._data:
            if not self._more():
                raise EOFError
        line, _, self._data = self._data.partition(b"\r\n")
        return line.decode("ascii")

    def exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            if not self._more():
                raise EOFError
        data, self._data = self._data[:size], self._data[size:]
        return data


def main(path: str, out: str) -> None:
    if os.path.exists(path):
        os.unlink(path)
    agent = Agent(path)
    done = 0
    with open(out, "a", buffering=1) as file:
        print("ready", flush=True)
        while True:
            with agent.changed:
                while len(agent.taken) == done:
                    agent.changed.wait()
                new = agent.taken[done:]
            for taken in new:
                line = {"function": taken.function, "streamed": taken.streamed, "peer": taken.peer, **taken.message}
                file.write(json.dumps(line) + "\n")
            done += len(new)


if __name__ == "__main__":
    main(*sys.argv[1:])
