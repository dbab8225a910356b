"""The memory shared with the agent."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from pathlib import Path

import pytest

from prov4ml import _ring
from prov4ml._ring import Ring


def _read(ring: Ring, number: int) -> tuple[int, ...]:
    """A slot as the agent finds it: text, step, monotonic time, check."""
    return struct.unpack("<4Q", os.pread(ring.fd, 32, 4096 + number % 4096 * 32))


def test_a_call() -> None:
    ring = Ring()
    place = ring.text('{"a":{')
    assert ring.text('{"a":{') == place
    other = ring.text('{"bc":{')
    assert other == (6 << 32 | 7)
    assert os.pread(ring.fd, 13, 4096 + 4096 * 32) == b'{"a":{{"bc":{'
    assert ring.put(other, 5, 1_000)
    assert ring.put(place, 6, 2_000)
    assert _read(ring, 1) == (other, 5, 1_000, other ^ 5 ^ 1_000 ^ 1)
    assert _read(ring, 2) == (place, 6, 2_000, place ^ 6 ^ 2_000 ^ 2)
    ring.close()


def test_the_largest_numbers() -> None:
    ring = Ring()
    largest = (1 << 63) - 1
    assert ring.put(largest, largest, largest)
    assert _read(ring, 1) == (largest, largest, largest, largest ^ 1)
    ring.close()


def test_it_is_full_until_the_agent_has_read() -> None:
    ring = Ring()
    put = 0
    while ring.put(1, put, 1):
        put += 1
    assert 3_500 < put <= 4_096
    assert not ring.is_read()
    os.pwrite(ring.fd, struct.pack("<Q", 1_000), 0)
    again = 0
    while ring.put(1, again, 1):
        again += 1
    assert again == 1_000
    os.pwrite(ring.fd, struct.pack("<Q", put + again), 0)
    assert ring.is_read()
    ring.close()


def test_texts_have_a_limit() -> None:
    ring = Ring()
    assert ring.text("") == 0
    assert ring.text("x" * 8_193) == 0
    places = [ring.text(str(number) * 8_192) for number in range(8)]
    assert all(places[1:])
    assert ring.text("y") == 0
    assert ring.text("1" * 8_192) == places[1]
    ring.close()


def test_the_agent_says_that_it_has_taken_it() -> None:
    ring = Ring()
    assert not ring.is_taken()
    ring.hand_over()
    assert not ring.is_taken()
    os.pwrite(ring.fd, os.pread(ring.fd, 8, 8), 16)
    assert ring.is_taken()
    ring.hand_over()
    assert not ring.is_taken()
    ring.close()


def test_it_is_sealed() -> None:
    ring = Ring()
    assert fcntl.fcntl(ring.fd, 1034) & 2  # F_GET_SEALS, F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(ring.fd, 0)
    ring.close()


def test_threads_take_no_slot_twice() -> None:
    ring = Ring()

    def put(thread: int) -> None:
        for call in range(700):
            assert ring.put(1, thread * 1_000 + call, 5)

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = {_read(ring, number)[1] for number in range(1, 3_501)}
    assert steps == {thread * 1_000 + call for thread in range(5) for call in range(700)}
    ring.close()


def test_the_layout_is_the_agents() -> None:
    source = Path(__file__).parents[3] / "server" / "ring.go"
    constants = dict(
        line.split("//")[0].replace("=", " ").split(maxsplit=1)
        for line in source.read_text(encoding="utf-8").split("const (")[1].split("\n)")[0].splitlines()
        if "=" in line
    )
    assert constants["ringVersion"] == str(_ring.VERSION)
    assert constants["ringSlots"] == str(_ring._SLOTS)
    assert constants["ringSlotBytes"] == str(_ring._SLOT_BYTES)
    assert constants["ringSlotsAt"] == str(_ring._SLOTS_AT)
    assert constants["ringTextsBytes"] == "64 << 10"
    assert _ring._TEXTS_BYTES == 64 << 10
