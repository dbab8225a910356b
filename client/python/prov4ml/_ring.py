"""Memory shared with the agent, for the calls of log_flops_per_batch that nobody waits for.

A message on a socket wakes the agent up, which between two steps of a training costs more than all the rest of a call.
The agent looks into the ring by itself, soon, and before it measures a later call of this process. What is in the ring
is read also when this process is killed; an agent that comes later goes on where the one before it stopped, without the
numbers of those signatures that it does not know yet.

The layout is that of the agent (server/ring.go): a page with three numbers, then slots of four, then texts.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import sys

VERSION = 1
_SLOTS = 4096
_SLOT_BYTES = 32
# Calls that other threads may be about to put in.
_MARGIN = 256
_SLOTS_AT = 4096
_TEXTS_AT = _SLOTS_AT + _SLOTS * _SLOT_BYTES
_TEXTS_BYTES = 64 << 10
_TEXT_BYTES = 8 << 10
_BYTES = _TEXTS_AT + _TEXTS_BYTES
# linux/fcntl.h; Python has the names from 3.8 on, where the C library has them.
_ADD_SEALS = 1033
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1, 2, 4


class Ring:
    """One process's. `put` needs no lock, all else does. The constructor raises OSError where there is none."""

    __slots__ = (
        "_handed", "_inode", "_memory", "_texts", "_texts_end", "connection", "fd", "last", "numbers", "room", "until",
        "words",
    )  # fmt: skip

    def __init__(self, connection: int = 0) -> None:
        create = getattr(os, "memfd_create", None)
        if create is None or sys.byteorder != "little":
            raise OSError("this system has no memfd_create")
        self.fd = create("prov4ml-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, _BYTES)
            fcntl.fcntl(self.fd, _ADD_SEALS, _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW)
            self._memory = mmap.mmap(self.fd, _BYTES)
            self._inode = os.fstat(self.fd).st_ino
        except BaseException:
            os.close(self.fd)
            raise
        for at in range(0, _BYTES, 4096):  # so that no call meets a page fault
            self._memory[at] = 0
        self.words = memoryview(self._memory).cast("Q")
        # Counts the calls from 1; a step of it is one operation, whichever thread makes it.
        self.numbers = itertools.count(1)
        self.last = 0
        # Up to which number there is room for certain.
        self.room = _SLOTS - _MARGIN
        # The client's; and until when calls may come, monotonic ns: the next one shows whether the agent is there.
        self.connection = connection
        self.until = 0
        self._handed = 0
        self._texts: dict[str, int] = {}
        self._texts_end = 0

    def close(self) -> None:
        """Gives the memory back; a forked child does it with its copy of the parent's."""
        self.until = 0
        self.words.release()
        self._memory.close()
        try:
            # A daemon has perhaps closed everything, and opened other files.
            if os.fstat(self.fd).st_ino == self._inode:
                os.close(self.fd)
        except OSError:
            pass

    def hand_over(self) -> None:
        """The ring is about to be sent with a new stream."""
        self._handed += 1
        self.words[1] = self._handed

    def is_taken(self) -> bool:
        """Whether the agent at the end of the last stream reads the ring."""
        return self._handed > 0 and self.words[2] == self._handed

    def is_read(self) -> bool:
        """Whether the agent has read every call."""
        return self.words[0] >= self.last

    def text(self, text: str) -> int:
        """Where a text is, 0 = there is no room for it. It is the beginning of a message, as far as "step"."""
        known = self._texts.get(text)
        if known is not None:
            return known
        data = text.encode("ascii")
        end = self._texts_end + len(data)
        if not 0 < len(data) <= _TEXT_BYTES or end > _TEXTS_BYTES:
            return 0
        self._memory[_TEXTS_AT + self._texts_end : _TEXTS_AT + end] = data
        place = self._texts_end << 32 | len(data)
        self._texts_end = end
        self._texts[text] = place
        return place

    def put(self, place: int, step: int, made: int) -> bool:
        """Puts a call in: where its text is, its step, and time.monotonic_ns. False when the ring is full."""
        if self.last >= self.room:
            self.room = self.words[0] + _SLOTS - _MARGIN
            if self.last >= self.room:
                return False
        number = self.last = next(self.numbers)
        words = self.words
        at = _SLOTS_AT // 8 + number % _SLOTS * 4
        words[at] = place
        words[at + 1] = step
        words[at + 2] = made
        words[at + 3] = place ^ step ^ made ^ number  # says that all of it is there
        return True
