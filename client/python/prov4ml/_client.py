"""The way of a call from the script to the agent.

Strategy. The training must never wait long, never see an exception, and lose as little as can be.

* A synchronous call is one request on the asking connection and its answer, with a deadline of one second. When the
  deadline passes the agent counts as stalled: from then on calls are told on the stream without waiting, until the late
  answer arrives. So a stopped agent costs one second once.
* An asynchronous call is one message on the telling connection (LogStream), written to the kernel in the call. What the
  kernel has is read by the agent also when this process is killed.
* An asynchronous call of log_flops_per_batch goes through memory shared with the agent where that reads such (_ring).
  That wakes nobody up; the agent looks by itself. Once a second such a call looks whether the agent is still there.
* Without an agent calls are kept, the oldest dropped beyond a limit, and told when it is back; the next message says
  how many were dropped. A new attempt to connect is a comparison of times in a call; there is no thread for it.
* A call gets its number (seq) when it is first sent, so that dropped calls leave no gap that the agent would wait for.
* A call whose connection broke before the answer is sent again if the agent had not read it, which the kernel tells. If
  it had, the call may be recorded: it is counted as dropped rather than recorded twice.
* One lock guards everything. A signal handler that logs while its own thread is inside, and a thread that has waited
  for the lock for a second, put their call aside; the next call picks it up.
* After fork the child starts from nothing: the inherited connections belong to the parent, since the agent takes the
  caller's identity from the connection.
"""

from __future__ import annotations

import _thread
import sys
from _thread import get_ident
from collections import deque
from os import getpid
from time import monotonic_ns

from . import _environment, _wire
from ._connection import Asking, Telling, connect, milliseconds, socket_path
from ._notice import Notices
from ._version import VERSION

TYPE_CHECKING = False  # the typing module takes longer to import than the whole package
if TYPE_CHECKING:
    from collections.abc import Callable

    from ._ring import Ring

# How long a call waits for its answer.
_WAIT_NANOS = 1_000_000_000
_WAIT_MILLISECONDS = 1_000
# Pauses between attempts to connect. An attempt costs some 10 us, so the longest is short.
_FIRST_PAUSE_NANOS = 50_000_000
_LONGEST_PAUSE_NANOS = 1_000_000_000
_HANG_UPS = 3
# An agent that stalls again and again is not waited for during longer and longer rests.
_FIRST_REST_NANOS = 1_000_000_000
_LONGEST_REST_NANOS = 60_000_000_000
# What is kept while the agent is away.
_KEPT_CALLS = 1_024
_KEPT_BYTES = 4 << 20
_ASIDE = 64
# Longer than any call holds the lock.
_LOST_LOCK_NANOS = 5_000_000_000
# The agent's limits for a run's attributes.
_ATTRIBUTES = 128
_ATTRIBUTE_BYTES = 1024
_METRICS = 1_024
# The refusal of a call that the agent has no way to understand.
NOT_FOUND = "not_found"
# How long the agent's end may go unnoticed by calls through the ring.
_LOOK_NANOS = 1_000_000_000
# In the answer of an agent that reads our kind of ring.
_RINGS = b'"ringVersion":1,'
# A message has some fields beside the call's own.
_FIELDS_BYTES = _wire.MESSAGE_BYTES - 512


class Call:
    """One log call."""

    __slots__ = ("connection", "fields", "function", "made", "seq")

    def __init__(self, function: _wire.Function, fields: str, made: int, seq: int = 0, connection: int = 0) -> None:
        self.function = function
        # The only connection on which the agent can understand the call; 0 = any.
        self.connection = connection
        # The beginning of the message's JSON object: '"context":"training","step":3,'.
        self.fields = fields
        # time.monotonic_ns when the script made the call.
        self.made = made
        # 0 = not sent yet.
        self.seq = seq


class Description:
    """What a script says about its run."""

    __slots__ = ("attributes", "end", "metric", "name")

    def __init__(
        self, name: str = "", attributes: dict[str, str] | None = None, metric: str = "", end: bool = False
    ) -> None:
        self.name = name
        self.attributes = attributes or {}
        # A LoggedMetric in JSON.
        self.metric = metric
        self.end = end


def _make_ring(connection: int) -> Ring | None:
    """None where there is no such memory: no Linux, too many descriptors, a sandbox."""
    try:
        from ._ring import Ring

        return Ring(connection)
    except (ImportError, OSError, ValueError):
        return None


class Client:
    """One process's connection with the agent. Safe for threads, signal handlers and fork."""

    def __init__(self, notices: Notices) -> None:
        self.notices = notices
        # Called at the end of a forked worker of multiprocessing, which runs no atexit functions.
        self.at_worker_exit: Callable[[], None] | None = None
        self._is_fork = False
        # The process that all this belongs to.
        self.pid = 0
        # Changes whenever another agent may be at the other end, or none.
        self.connection = 0
        # What the script has said of its run; a forked child belongs to the same one.
        self._name = ""
        self._attributes: dict[str, str] = {}
        self._begin()

    def _begin(self) -> None:
        """The state of a process that has said nothing yet."""
        self.pid = getpid()
        self._lock = _thread.allocate_lock()
        self._owner = 0
        # Since when nobody could have the lock; 0 = it is in order.
        self._lock_lost_at = 0
        self._aside: deque[Call | Description] = deque()
        self._aside_dropped = 0

        self._asking: Asking | None = None
        self._telling: Telling | None = None
        # Whether the agent reads rings, and ours, once there is a stream to such a one.
        self._agent_has_rings = False
        self._ring: Ring | None = None
        # Connected, every answer had, nothing kept and nothing to be said first: the shortest way is open.
        self._steady = False
        self._attempt_at = 0
        self._pause = 0
        self._hang_ups = 0
        self._stalled = False
        self._stalls = 0
        self._rest_until = 0
        # Names of the functions that the agent has said it lacks. A new connection asks again.
        self.unimplemented: set[str] = set()
        # The code of the last refusal within this call.
        self._refusal = ""

        self._seq = 0
        self._kept: deque[Call] = deque()
        self._kept_bytes = 0
        self._dropped = 0

        self._has_logged = False
        self._environment: dict[str, str] = {}
        # Parts of the description that no request has carried yet, and parts whose request is not answered.
        self._is_identity_due = True
        self._due_attributes: dict[str, str] = {}
        self._due_metrics: list[str] = []
        self._sent_metrics: list[str] = []
        self._is_end_due = False

    # What the package calls.

    def hello(self) -> None:
        """Says that this process is here. Waits for nothing, complains about nothing."""
        lock = self._enter()
        if lock is None:
            return
        try:
            self._connect(monotonic_ns(), complain=False)
        except BaseException:
            self._lose()
            raise
        finally:
            self._leave(lock)

    def log(self, function: _wire.Function, fields: str, synchronous: bool, made: int = 0, connection: int = 0) -> str:
        """Sends one log call. made is its monotonic time in ns, 0 = now. Waits at most a second.

        Returns the code of the agent's refusal, if it has refused the call; it is told to the user already. A call that
        only makes sense on one connection, which is no more, is not sent: not_found.
        """
        now = monotonic_ns()
        made = made or now
        lock: _thread.LockType | None = self._lock
        if getpid() != self.pid or not self._lock.acquire(False):
            lock = self._enter()
            if lock is None:
                self._put_aside(Call(function, fields, made))
                return ""
        try:
            self._owner = get_ident()
            self._refusal = ""
            if not self._steady or self._aside or len(fields) > _FIELDS_BYTES:
                self._log(Call(function, fields, made, 0, connection), synchronous, now)
                return self._refusal
            # The usual case, written out: a call between two steps of a training finds cold caches, and pays for every
            # line that it touches.
            self._seq = seq = self._seq + 1
            if synchronous:
                request = _wire.unary(function, f'{fields}"seq":{seq},"monotonicNanos":{made}')
                if self._asking.ask(request, function, _WAIT_MILLISECONDS):  # type: ignore[union-attr]  # steady
                    return ""
                call = Call(function, fields, made, seq, connection)
                if not self._has_arrived(call, 0, now + _WAIT_NANOS):
                    self._ask(call, now + _WAIT_NANOS)
                return self._refusal
            telling = self._telling
            if telling is None or not telling.tell(
                _wire.streamed(function, f'{fields}"seq":{seq},"monotonicNanos":{made}')
            ):
                call = Call(function, fields, made, seq, connection)
                if not self._tell(call, now + _WAIT_NANOS):
                    self._keep(call)
            return self._refusal
        except BaseException:
            # Ctrl-C can come between any two steps: what the connections have said is then unknown.
            self._lose()
            raise
        finally:
            self._owner = 0
            if lock is not None:
                lock.release()
            if self.notices.waiting:
                self.notices.tell()

    def tell(self, head: str, step: int) -> bool:
        """Sends an asynchronous log_system_metrics call, where nothing is out of the usual. False: nothing is done.

        head is from _wire.usual. This is `log` with all that it calls, written out in one function: a call between two
        steps of a training finds cold caches, and pays for every line that it touches.
        """
        lock = self._lock
        if getpid() != self.pid or not lock.acquire(False):
            return False
        try:
            self._owner = get_ident()
            telling = self._telling
            if not self._steady or self._aside or telling is None or telling.unsent or telling.is_over():
                return False
            made = monotonic_ns()
            self._seq = seq = self._seq + 1
            chunk = f'{head}{step},"seq":{seq},"monotonicNanos":{made}}}}}'.ljust(_wire.USUAL_CHUNK_BYTES) + "\r\n"
            if telling.put(chunk.encode("latin-1")):
                return True
            self._seq = seq - 1  # nothing was said
            return False
        except BaseException:
            self._lose()
            raise
        finally:
            self._owner = 0
            lock.release()

    def open_ring(self, text: str) -> tuple[Ring, int] | None:
        """The ring, and where it has the text that calls begin with; 0 when there is no room for it.

        None: there is no ring, or the agent has not taken it yet.
        """
        lock = self._enter()
        if lock is None:
            return None
        try:
            ring = self._ring
            if ring is None or not self._look_at_ring(ring):
                return None
            return ring, ring.text(text)
        finally:
            self._leave(lock)

    def look(self) -> bool:
        """Whether the agent is there and reads the ring. Calls may go through it for a second then."""
        lock = self._enter()
        if lock is None:
            return False
        try:
            return self._ring is not None and self._look_at_ring(self._ring)
        finally:
            self._leave(lock)

    def _look_at_ring(self, ring: Ring) -> bool:
        if self._telling is None or not ring.is_taken() or self._telling.has_hung_up():
            return False
        ring.until = monotonic_ns() + _LOOK_NANOS
        return True

    def describe(self, description: Description) -> None:
        """Says something about the run, or keeps it until there is an agent. Waits at most a second."""
        now = monotonic_ns()
        lock = self._enter()
        if lock is None:
            self._put_aside(description)
            return
        try:
            self._put_aside(description)
            self._pick_up()
            self._listen(now)
            for _ in range(2):
                if self._asking is None and now >= self._attempt_at:
                    self._connect(now, complain=True)
                if self._asking is None or self._stalled:
                    break
                self._post_description()
                if self._settle(now + _WAIT_NANOS):
                    break
            self._steady = False
        except BaseException:
            self._lose()
            raise
        finally:
            self._leave(lock)

    def drop(self) -> None:
        """Counts a call that will not be sent."""
        lock = self._enter()
        if lock is not None:
            self._dropped += 1
            self._steady = False
            self._leave(lock)

    def close(self, deadline: int) -> None:
        """The process ends: sends what can be sent until the deadline, not waiting for an agent that doesn't answer."""
        now = monotonic_ns()
        lock = self._enter()
        if lock is None:
            return
        try:
            self._pick_up()
            self._listen(now)
            unread = self._ring is not None and not self._ring.is_read()
            if unread and self._asking is not None and self._asking.has_hung_up():
                self._lose()
            if self._asking is None and (self._kept or unread or self._is_description_due()):
                self._connect(now, complain=False)
            if self._asking is None:
                return
            if unread and self._telling is None:
                self._open_stream(min(now + _WAIT_NANOS, deadline))
            if not self._stalled and self._is_description_due():
                self._post_description()
                self._settle(min(now + _WAIT_NANOS, deadline))
            # As long as the agent takes some within a second, it is waited for.
            before = len(self._kept) + 1
            while self._kept and len(self._kept) < before and now < deadline:
                before = len(self._kept)
                self._flush(min(now + _WAIT_NANOS, deadline), not self._stalled)
                now = monotonic_ns()
            if self._telling is not None and not self._stalled and not self._kept:
                answer = self._telling.finish(min(monotonic_ns() + _WAIT_NANOS, deadline))
                if answer is not None:
                    self._hear_stream(answer)
        finally:
            self._lose()
            self._leave(lock)

    def forked(self) -> None:
        """The process is a fork's child: forgets the parent's connections without a word on them."""
        for connection in (self._asking, self._telling):
            if connection is not None:
                connection.close()
        if self._ring is not None:
            self._ring.close()
        self._is_fork = True
        self._begin()

    # The lock.

    def _enter(self) -> _thread.LockType | None:
        """The lock, taken; None when this thread must not or cannot have it."""
        if getpid() != self.pid:  # a fork that ran no hooks
            self.forked()
        lock = self._lock
        if not lock.acquire(False):
            # The owner may be this very thread, below us on the stack, when we are in a signal handler.
            if self._owner == get_ident():
                return None
            if self._lock_lost_at:
                if monotonic_ns() - self._lock_lost_at < _LOST_LOCK_NANOS:
                    return None
                # No call holds it that long. Ctrl-C has ended one between taking it and the block that gives it back.
                self._lock = lock = _thread.allocate_lock()
                lock.acquire()
            elif not lock.acquire(timeout=_WAIT_NANOS / 1e9):
                self._lock_lost_at = monotonic_ns()
                return None
        self._owner = get_ident()
        self._lock_lost_at = 0
        return lock

    def _leave(self, lock: _thread.LockType) -> None:
        self._owner = 0
        lock.release()
        if self.notices.waiting:
            self.notices.tell()

    def _put_aside(self, item: Call | Description) -> None:
        if len(self._aside) < _ASIDE:
            self._aside.append(item)
        else:
            self._aside_dropped += 1

    def _pick_up(self) -> None:
        """Takes over what was put aside without the lock."""
        self._dropped += self._aside_dropped
        self._aside_dropped = 0
        while self._aside:
            item = self._aside.popleft()
            if isinstance(item, Call):
                self._keep(item)
                continue
            if item.name:
                self._name = item.name
                self._is_identity_due = True
            for key, value in item.attributes.items():
                if key not in self._attributes and len(self._attributes) >= _ATTRIBUTES:
                    self.notices.add("attributes", f"a run has at most {_ATTRIBUTES} attributes; {key!r} is left out")
                    continue
                self._attributes[key] = self._due_attributes[key] = value
            if item.metric:
                if len(self._due_metrics) >= _METRICS:
                    del self._due_metrics[0]
                    self._dropped += 1
                self._due_metrics.append(item.metric)
            self._is_end_due = self._is_end_due or item.end

    # A log call.

    def _log(self, call: Call, synchronous: bool, now: int) -> None:
        """The long way, for whenever something is not as usual."""
        self._steady = False
        self._lock_lost_at = 0
        if len(call.fields) > _FIELDS_BYTES:
            self._dropped += 1
            self.notices.add(
                "size",
                f"a {call.function.name} call of {len(call.fields)} bytes was dropped: "
                f"a message has at most {_wire.MESSAGE_BYTES}; send less in one call",
            )
            return
        self._pick_up()
        self._watch_worker_exit()
        self._listen(now)
        if self._asking is None and now >= self._attempt_at:
            self._connect(now, complain=True)
        if self._asking is None:
            self._keep(call)
            return
        if not self._has_logged:
            self._has_logged = True
            self._is_identity_due = self._is_identity_due or _environment.collect() != self._environment
        deadline = now + _WAIT_NANOS
        if not self._stalled and self._is_description_due():
            if self._asking.owed:  # see _ask
                self._settle(deadline)
            self._post_description()
        waits = synchronous and not self._stalled
        if not self._flush(deadline, waits):
            if waits and self._telling is not None:
                self._stall()
            self._keep(call)
        elif waits:
            self._ask(call, deadline)
        elif not self._tell(call, deadline):
            self._keep(call)
        self._steady = (
            self._asking is not None
            and not self._asking.owed
            and not self._stalled
            and not self._kept
            and not self._dropped
            and not self._is_description_due()
        )

    def _ask(self, call: Call, deadline: int) -> None:
        """Sends a call and waits for its answer."""
        for _ in range(2):
            if self._asking is None:
                self._connect(monotonic_ns(), complain=True)
            asking = self._asking
            if asking is None:
                self._keep(call)
                return
            if call.connection not in (0, self.connection):
                self._refusal = NOT_FOUND
                return
            # Nothing is sent behind a request that is not answered: were this process to die, the agent would fail to
            # answer that one and read no further.
            if asking.owed and not self._settle(deadline):
                continue
            if self._stalled:
                if not self._tell(call, deadline):
                    self._keep(call)
                return
            dropped = self._dropped
            request = _wire.unary(call.function, self._message(call))
            if asking.ask(request, call.function, milliseconds(deadline)):
                self._dropped -= dropped
                return
            if self._has_arrived(call, dropped, deadline):
                return
        self._keep(call)

    def _has_arrived(self, call: Call, dropped: int, deadline: int) -> bool:
        """Waits for the answer to a call that was sent. False: it has to be sent again.

        dropped is what the call has reported.
        """
        asking = self._asking
        if self._settle(deadline):
            # A stalled agent has the call as well.
            self._dropped -= dropped
            return True
        if asking is not None and asking.unread:
            return False
        # The agent read the call and died. Sent again, it could be recorded twice.
        self._dropped += 1
        return True

    def _tell(self, call: Call, deadline: int) -> bool:
        """Writes a call to the stream. False when it could not be written now."""
        for _ in range(2):
            telling = self._telling or self._open_stream(deadline)
            if telling is None:
                return False
            if call.connection not in (0, self.connection):
                self._refusal = NOT_FOUND
                return True
            dropped = self._dropped
            if telling.tell(_wire.streamed(call.function, self._message(call))):
                self._dropped -= dropped
                return True
            if not telling.ended:
                return False
            answer = telling.answer(0)
            if answer is not None:
                self._hear_stream(answer)
            telling.close()
            self._telling = None
            if self._ring is not None:
                self._ring.until = 0
            # The agent may have gone, and a new one must get our hello before the stream.
            self._look()
            if self._asking is None:
                self._connect(monotonic_ns(), complain=True)
        return False

    def _message(self, call: Call) -> str:
        if not call.seq:
            self._seq += 1
            call.seq = self._seq
        if self._dropped:
            return f'{call.fields}"droppedCalls":{self._dropped},"seq":{call.seq},"monotonicNanos":{call.made}'
        return f'{call.fields}"seq":{call.seq},"monotonicNanos":{call.made}'

    def _keep(self, call: Call) -> None:
        self._steady = False
        call.connection = 0  # later it is all that there is
        self._kept.append(call)
        self._kept_bytes += len(call.fields)
        while len(self._kept) > _KEPT_CALLS or self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft().fields)
            self._dropped += 1

    def _flush(self, deadline: int, waits: bool) -> bool:
        """Tells the kept calls. True when none is left. waits: for room in the kernel, until the deadline."""
        while self._kept:
            if self._tell(self._kept[0], deadline):
                self._kept_bytes -= len(self._kept.popleft().fields)
            elif self._telling is None or not self._telling.room(deadline if waits else 0):
                return False
        return True

    # Connections.

    def _connect(self, now: int, complain: bool) -> None:
        """Opens the asking connection and says hello on it."""
        if complain:
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE_NANOS), _LONGEST_PAUSE_NANOS)
            self._attempt_at = now + self._pause
        path = socket_path()
        try:
            asking = Asking(connect(path))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            if complain:
                self._complain(path, error if isinstance(error, OSError) else OSError(str(error)))
            return
        self._asking = asking
        self._change_connection()
        self.unimplemented.clear()
        self._is_identity_due = True
        self._due_attributes = dict(self._attributes)
        self._post_description()

    def _change_connection(self) -> None:
        self.connection += 1
        if self._ring is not None:
            self._ring.connection, self._ring.until = self.connection, 0

    def _open_stream(self, deadline: int) -> Telling | None:
        """Opens the telling connection, after the agent has had our hello if it answers at all."""
        if self._asking is not None and self._asking.owed and not self._stalled:
            self._settle(deadline)
        if self._asking is None:
            return None
        path = socket_path()
        try:
            if self._agent_has_rings and self._ring is None:
                self._ring = _make_ring(self.connection)
            if self._agent_has_rings and self._ring is not None:
                self._ring.hand_over()
                self._telling = Telling(connect(path), self._ring.fd)
            else:
                self._telling = Telling(connect(path))
        except (OSError, ValueError) as error:
            self._complain(path, error if isinstance(error, OSError) else OSError(str(error)))
            return None
        return self._telling

    def _complain_of_hanging_up(self) -> None:
        """An agent that is killed at the wrong moment does it once."""
        self._hang_ups += 1
        if self._hang_ups >= _HANG_UPS:
            self.notices.add(
                "hangs up",
                f"what listens at {socket_path()} hangs up without an answer; is it a prov4ml agent, and is it well?",
            )

    def _complain(self, path: str, error: OSError) -> None:
        from . import _absence

        self.notices.add("absent", _absence.sentence(path, error))

    def _lose(self) -> None:
        """Gives up both connections."""
        for connection in (self._asking, self._telling):
            if connection is not None:
                connection.close()
        if self._asking is not None:
            self._change_connection()
        self._asking = None
        self._telling = None
        self._agent_has_rings = False
        self._steady = False
        self._stalled = False
        self._due_metrics = self._sent_metrics + self._due_metrics
        self._sent_metrics = []

    def _settle(self, deadline: int) -> bool:
        """Waits for all answers. False: the connection was over before. With the deadline the agent becomes stalled."""
        asking = self._asking
        if asking is None:
            return False
        for function, answer in asking.settle(deadline):
            self._hear(function, answer)
        settled = not asking.owed
        if asking.ended:
            if asking.garbage:
                self.notices.add(
                    "garbage",
                    f"what listens at {socket_path()} is no prov4ml agent ({asking.garbage}); "
                    "name the agent's socket in PROV4ML_AGENT_SOCKET",
                )
            elif not settled and self._pause:  # it has never answered
                self._complain_of_hanging_up()
            self._lose()
        elif not settled:
            self._stall()
            return True
        return settled

    def _stall(self) -> None:
        """The agent has let a second pass."""
        self._steady = False
        self._stalled = True
        rest = min(_FIRST_REST_NANOS << (self._stalls - 1), _LONGEST_REST_NANOS) if self._stalls else 0
        self._stalls = min(self._stalls + 1, 16)
        self._rest_until = monotonic_ns() + rest
        self.notices.add(
            "stalled",
            f"the agent at {socket_path()} did not answer within {_WAIT_NANOS // 1_000_000_000} s; "
            "calls do not wait for it until it answers again",
        )

    def _listen(self, now: int) -> None:
        """While the agent is stalled: hears whether it answers again."""
        if self._stalled:
            self._look()
            if self._asking is not None and not self._asking.owed and now >= self._rest_until:
                self._stalled = False

    def _look(self) -> None:
        """Hears what the asking connection has to say at this moment."""
        if self._asking is None:
            return
        for function, answer in self._asking.settle(0):
            self._hear(function, answer)
        if self._asking.has_hung_up():
            self._lose()

    def _hear(self, function: _wire.Function, answer: _wire.Answer) -> None:
        if function is _wire.DESCRIBE_RUN:
            self._sent_metrics = []
            self._agent_has_rings = self._agent_has_rings or _RINGS in answer.body.translate(None, b" ").replace(
                b"}", b","
            )
        if answer.status == 200:
            self._pause = 0
            self._attempt_at = 0
            self._hang_ups = 0
            return
        code, sentence = answer.refusal()
        if function is not _wire.DESCRIBE_RUN:
            self._refusal = code
        if code == "unimplemented":
            self.unimplemented.add(function.name)
            self.notices.add(
                f"unimplemented {function.name}",
                f"the agent at {socket_path()} has no {function.name} ({sentence or code}); these calls are left out",
            )
        else:
            self.notices.add(f"{function.name} {code}", f"the agent refused {function.name}: {sentence} ({code})")

    def _hear_stream(self, answer: _wire.Answer) -> None:
        if answer.status != 200:
            self._hear(_wire.LOG_STREAM, answer)
            return
        refused, sentence = _wire.stream_outcome(answer.body)
        if refused:
            self.notices.add("stream", f"the agent refused {refused} asynchronous calls, the first: {sentence}")

    # The description.

    def _is_description_due(self) -> bool:
        return bool(self._is_identity_due or self._due_attributes or self._due_metrics or self._is_end_due)

    def _post_description(self) -> None:
        """Sends what is due; the answer is owed."""
        if self._asking is None or not self._is_description_due():
            return
        described: dict[str, object] = {}
        if self._is_identity_due:
            self._environment = _environment.collect()
            described["environment"] = self._environment
            described["script"] = _environment.script()
            described["traceparent"] = _environment.traceparent()
            described["clientVersion"] = VERSION
            if self._name:
                described["name"] = self._name
        if self._due_attributes:
            described["attributes"] = self._due_attributes
        if self._is_end_due:
            described["end"] = True
        fields = _wire.document(described)[1:-1]
        if self._due_metrics:
            fields += f'{"," if fields else ""}"metrics":[{",".join(self._due_metrics)}]'
        self._asking.post(_wire.unary(_wire.DESCRIBE_RUN, fields), _wire.DESCRIBE_RUN)
        self._is_identity_due = False
        self._due_attributes = {}
        self._sent_metrics += self._due_metrics
        self._due_metrics = []
        self._is_end_due = False

    def _watch_worker_exit(self) -> None:
        """A forked worker of multiprocessing ends by os._exit, after its own list of finalizers."""
        if not self._is_fork:
            return
        self._is_fork = False
        util = sys.modules.get("multiprocessing.util")
        if util is not None and self.at_worker_exit is not None:
            util.Finalize(None, self.at_worker_exit, exitpriority=0)
