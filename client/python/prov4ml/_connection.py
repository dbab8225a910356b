"""The two connections to the agent: one asks and is answered, one only tells.

Sockets are non-blocking and waits go through poll, whose time limit also holds while signals arrive; a receive timeout
of the socket (SO_RCVTIMEO) would start anew at each signal. Deadlines are nanoseconds of time.monotonic_ns; a past one
means "what is possible now". A connection that is over says so in `ended`; the other side's doings raise nothing here.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from time import monotonic_ns

from . import _wire

# Without it a write to a dead agent would kill a training that has set SIGPIPE back to its default.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
_RECEIVE_BYTES = 64 << 10
# More room for asynchronous calls while the agent is busy; the kernel caps it at net.core.wmem_max.
_SEND_BUFFER_BYTES = 4 << 20
# How many calls are told between two looks for an answer that ends the stream early.
_TOLD_BETWEEN_LOOKS = 64


def socket_path() -> str:
    """Where the agent listens. Read at each attempt, since scripts set variables late."""
    path = os.environ.get("PROV4ML_AGENT_SOCKET") or "/run/prov4ml/agent.sock"
    return path[len("unix://") :] if path.startswith("unix://") else path


def connect(path: str) -> socket.socket:
    """A connected non-blocking socket. Never waits: a full backlog is an OSError (EAGAIN) like the others."""
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise OSError("this system has no Unix sockets")
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


class _Connection:
    """A socket, waits for it that have an end, and whether it is over."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)
        self.ended = False
        # It ended before the other side had read all that was sent: the kernel says ECONNRESET or EPIPE then, and an
        # orderly end of file else (unix_release_sock).
        self.unread = False

    def close(self) -> None:
        self.ended = True
        self._sock.close()

    def _send(self, data: bytes) -> int:
        """Bytes that the kernel took; 0 when its buffer is full or the connection is over."""
        try:
            return self._sock.send(data, _NO_SIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self.ended = self.unread = True
            return 0

    def _receive(self) -> bytes:
        """What has arrived; empty when nothing has or the connection is over."""
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            self.unread = True
            data = b""
        if not data:
            self.ended = True
        return data


def milliseconds(deadline: int) -> int:
    """What is left until the deadline, for poll; rounded up so that a wait doesn't end early and spin."""
    left = deadline - monotonic_ns()
    return 0 if left <= 0 else -(-left // 1_000_000)


class Asking(_Connection):
    """Requests with answers, in order; several may be on their way (HTTP/1.1 pipelining)."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        # Functions whose answers are still to come, oldest first.
        self.owed: list[_wire.Function] = []
        # Why the other side is no agent; empty = no reason to think so.
        self.garbage = ""
        self._received = b""
        self._unsent = b""
        # The head of the last answer that was a success, and the length of that answer.
        self._head = b"\0"
        self._length = 0

    def ask(self, request: bytes, function: _wire.Function, milliseconds: int) -> bool:
        """One send, one wait, one receive: true when that brought the whole answer and it is a success.

        Else the answer is owed and `settle` goes on. Nothing may be owed before.
        """
        sent = self._send(request)
        if sent == len(request):
            if self._readable.poll(milliseconds):
                data = self._receive()
                if self._is_success(data):
                    return True
                self._received = data
        else:
            self._unsent = request[sent:]
        self.owed.append(function)
        return False

    def post(self, request: bytes, function: _wire.Function) -> None:
        """Sends without waiting; what the kernel doesn't take goes out in `settle`."""
        self.owed.append(function)
        if not self._unsent:
            request = request[self._send(request) :]
        self._unsent += request

    def settle(self, deadline: int) -> list[tuple[_wire.Function, _wire.Answer]]:
        """The answers that have come when nothing is owed any more, at the deadline, or at the connection's end."""
        answers: list[tuple[_wire.Function, _wire.Answer]] = []
        try:
            while True:
                self._parse(answers)
                if not self.owed or self.ended:
                    return answers
                if self._unsent:
                    self._unsent = self._unsent[self._send(self._unsent) :]
                    if self._unsent and not self.ended and not self._writable.poll(milliseconds(deadline)):
                        return answers
                    continue
                data = self._receive()
                if data:
                    self._received += data
                elif not self.ended and not self._readable.poll(milliseconds(deadline)):
                    return answers
        except _wire.GarbageError as error:
            self.garbage = str(error)
            self.ended = True
            return answers

    def _is_success(self, data: bytes) -> bool:
        """Whether the bytes are exactly one answer of status 200 that leaves the connection open."""
        if len(data) == self._length and data.startswith(self._head):
            return True
        if not data.startswith(b"HTTP/1.1 200"):
            return False
        body = data.find(b"\r\n\r\n") + 4
        at = data.find(b"Content-Length: ", 0, body)
        if at < 0 or data.find(b"onnection: close", 0, body) >= 0:
            return False
        try:
            length = int(data[at + 16 : data.index(b"\r", at)])
        except ValueError:
            return False
        if body + length != len(data):
            return False
        self._head, self._length = data[:body], len(data)
        return True

    def has_hung_up(self) -> bool:
        """Whether the other side has closed the connection; something said unasked is taken for that too."""
        if not self.owed and self._readable.poll(0):
            self.ended = True
        return self.ended

    def _parse(self, answers: list[tuple[_wire.Function, _wire.Answer]]) -> None:
        while self._received:
            answer, taken = _wire.parse(self._received, self.ended)
            if answer is None:
                return
            self._received = self._received[taken:]
            if answer.status == 408 or not self.owed:
                # A server's farewell to an idle connection, which answers nothing of ours.
                self.ended = self.unread = True
                return
            answers.append((self.owed.pop(0), answer))
            if answer.last:
                self.ended = True
                return


class Telling(_Connection):
    """One long request (LogStream) whose messages are calls nobody waits for."""

    def __init__(self, sock: socket.socket, ring: int = -1) -> None:
        super().__init__(sock)
        # The descriptor of a ring that goes with the first bytes; -1 = none.
        self._ring = ring
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        except OSError:
            pass  # the default holds some 200 calls
        # The rest of something of which the kernel took only a part.
        self.unsent = _wire.STREAM_HEAD
        self._told = 0

    def tell(self, message: bytes) -> bool:
        """Writes a message to the kernel. False when it takes nothing now or the stream is over: nothing was said."""
        if self.is_over() or (self.unsent and not self.flush(0)):
            return False
        return self.put(message)

    def is_over(self) -> bool:
        """Whether the stream is known to have ended; asked before each call, and looks once in a while."""
        self._told += 1
        return self.ended or (self._told % _TOLD_BETWEEN_LOOKS == 0 and self.has_hung_up())

    def put(self, message: bytes) -> bool:
        """The last step of `tell`: nothing may be unsent before."""
        try:
            sent = self._sock.send(message, _NO_SIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            self.ended = self.unread = True
            return False
        if sent != len(message):
            self.unsent = message[sent:]
        return True

    def flush(self, deadline: int) -> bool:
        """Writes what is left of a message. True when nothing is left at the deadline."""
        while self.unsent:
            sent = self._send_ring() if self._ring >= 0 else self._send(self.unsent)
            self.unsent = self.unsent[sent:]
            if not sent and (self.ended or not self._writable.poll(milliseconds(deadline))):
                return False
        return True

    def _send_ring(self) -> int:
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, self._ring.to_bytes(4, sys.byteorder))]
            sent = self._sock.sendmsg([self.unsent], rights, _NO_SIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self.ended = self.unread = True
            return 0
        self._ring = -1
        return sent

    def has_hung_up(self) -> bool:
        """Whether the other side has ended the request: it says nothing else before our end."""
        if self.ended or self._readable.poll(0):
            self.ended = True
        return self.ended

    def room(self, deadline: int) -> bool:
        """Waits until the kernel takes more."""
        return bool(self._writable.poll(milliseconds(deadline)))

    def finish(self, deadline: int) -> _wire.Answer | None:
        """Ends the request and waits for its answer, which comes when every call is recorded. None = none came."""
        if not self.flush(deadline):
            return None
        self.unsent = _wire.STREAM_END
        return self.answer(deadline) if self.flush(deadline) else None

    def answer(self, deadline: int) -> _wire.Answer | None:
        """The answer if it is there by the deadline: also the agent's reason when it ended the request itself."""
        received = b""
        over = False
        while True:
            self.ended = False
            data = self._receive()
            over = self.ended
            received += data
            if received:
                try:
                    answer, _ = _wire.parse(received, over)
                except _wire.GarbageError:
                    return None
                if answer is not None:
                    return answer
            if over or (not data and not self._readable.poll(milliseconds(deadline))):
                self.ended = over
                return None
