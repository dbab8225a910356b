"""Bytes: what goes out, exactly, and what may come back."""

from __future__ import annotations

import json
import random

import pytest

from prov4ml import Context, _wire


def test_a_request_is_these_bytes() -> None:
    assert _wire.unary(_wire.SYSTEM_METRICS, '"step":3') == (
        b"POST /prov4ml.v1.AgentService/LogSystemMetrics HTTP/1.1\r\n"
        b"Host: agent\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
        b'{"step":3}'
    )


@pytest.mark.parametrize("size", [1, 200, 65_000, 65_600, 1_000_000])
def test_a_streamed_call_is_one_chunk_with_one_envelope(size: int) -> None:
    fields = f'"label":"{"x" * size}"'
    message = b'{"logFlopsPerBatch":{"synchronous":false,' + fields.encode() + b"}}"
    assert _wire.streamed(_wire.FLOPS_PER_BATCH, fields) == (
        f"{len(message) + 5:x}".encode() + b"\r\n\x00" + len(message).to_bytes(4, "big") + message + b"\r\n"
    )


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("number", [0, -(1 << 63), (1 << 63) - 1])
def test_a_usual_call_is_the_same_chunk_filled_up(context: Context, number: int) -> None:
    rest = f'{number},"seq":{(1 << 64) - 1},"monotonicNanos":{(1 << 63) - 1}}}}}'
    chunk = (_wire.usual(context._fields) + rest).ljust(_wire.USUAL_CHUNK_BYTES).encode("latin-1") + b"\r\n"
    head, body = chunk.split(b"\r\n", 1)
    assert len(body) == int(head, 16) + 2
    assert body.endswith(b" \r\n")
    assert body[:5] == b"\0" + (len(body) - 7).to_bytes(4, "big")
    fields = f'{context._fields}"step":{number},"seq":{(1 << 64) - 1},"monotonicNanos":{(1 << 63) - 1}'
    assert body[5:].rstrip() == _wire.streamed(_wire.SYSTEM_METRICS, fields).split(b"\r\n")[1][5:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "training",
        'a"b',
        "a\\b",
        "tab\t",
        "line\nline",
        "nul\0",
        "ü 漢 😀",
        "\x7f",
        "\u2028",
        "\ud800half",
        "a" * 5000,
    ],
)
def test_quote_is_ascii_json_of_the_same_text(text: str) -> None:
    quoted = _wire.quote(text)
    assert quoted.isascii()
    assert json.loads(quoted) == text.encode("utf-8", "replace").decode()


class Index:
    def __index__(self) -> int:
        return 7


class Float:
    def __float__(self) -> float:
        return 7.0


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0),
        (True, 1),
        (-(1 << 63), -(1 << 63)),
        ((1 << 63) - 1, (1 << 63) - 1),
        (3.0, 3),
        ("3", 3),
        (Index(), 7),
        (Float(), 7),
    ],
)
def test_integer(value: object, number: int) -> None:
    got = _wire.integer(value)
    assert (got, type(got)) == (number, int)


@pytest.mark.parametrize(
    "value", [1 << 63, -(1 << 63) - 1, 3.5, float("nan"), float("inf"), "x", "", None, [], object(), 3j]
)
def test_integer_refuses(value: object) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        _wire.integer(value)


ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", False),
    (b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\n{}", 200, b"{}", False),
    (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"", False),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", False),
    (b"HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbad", 400, b"bad", True),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
        200,
        b"abcde",
        False,
    ),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nA: b\r\nC: d\r\n\r\n", 200, b"a", False),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, b"x", False),
]


@pytest.mark.parametrize(("data", "status", "body", "last"), ANSWERS)
def test_parse_whole_and_cut_at_every_byte(data: bytes, status: int, body: bytes, last: bool) -> None:
    answer, taken = _wire.parse(data + b"HTTP/1.1")
    assert answer is not None
    assert (answer.status, answer.body, answer.last, taken) == (status, body, last, len(data))
    for cut in range(len(data)):
        assert _wire.parse(data[:cut]) == (None, 0), data[:cut]


def test_parse_takes_an_answer_without_length_until_the_end() -> None:
    data = b"HTTP/1.0 200 OK\r\n\r\nall of it"
    assert _wire.parse(data) == (None, 0)
    answer, taken = _wire.parse(data, closed=True)
    assert answer is not None
    assert (answer.body, answer.last, taken) == (b"all of it", True, len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x01\x02",
        b"HTTP/2.0 200\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 100,
        b"HTTP/1.1 " + b"a" * 70000,
    ],
)
def test_parse_calls_garbage_garbage(data: bytes) -> None:
    with pytest.raises(_wire.GarbageError):
        _wire.parse(data)


def test_parse_of_anything_ends_in_an_answer_or_garbage() -> None:
    dice = random.Random(1)
    parts = [b"HTTP/1.1 ", b"200", b" OK", b"\r\n", b"\r\n\r\n", b"Content-Length: ", b"5", b"0", b"chunked", b"a\0"]
    parts += [b"Transfer-Encoding: chunked", b"100", b":", b";", b"ffff", b" ", b"Connection: close"]
    for _ in range(5000):
        data = b"HTTP/1.1 200 OK\r\n" * dice.randrange(2) + b"".join(dice.choices(parts, k=dice.randrange(30)))
        for closed in (False, True):
            try:
                answer, taken = _wire.parse(data, closed)
            except _wire.GarbageError:
                continue
            assert (answer is None) == (taken == 0)
            assert taken <= len(data)


@pytest.mark.parametrize(
    ("status", "body", "refusal"),
    [
        (
            400,
            b'{"code":"invalid_argument","message":"step is no integer"}',
            ("invalid_argument", "step is no integer"),
        ),
        (501, b'{"code":"unimplemented","message":"not yet"}', ("unimplemented", "not yet")),
        (404, b"404 page not found\n", ("unimplemented", "404 page not found")),
        (500, b"", ("HTTP status 500", "")),
        (500, b"[1]", ("HTTP status 500", "[1]")),
        (502, b"\xff\xfe", ("HTTP status 502", "\ufffd\ufffd")),
    ],
)
def test_refusal(status: int, body: bytes, refusal: tuple[str, str]) -> None:
    assert _wire.Answer(status, body, False).refusal() == refusal


def envelope(flags: int, message: object) -> bytes:
    text = json.dumps(message).encode()
    return bytes((flags,)) + len(text).to_bytes(4, "big") + text


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b"", (0, "")),
        (envelope(0, {"accepted": "5"}) + envelope(2, {}), (0, "")),
        (envelope(0, {"accepted": "5", "refused": "2", "firstRefusal": "label is long"}), (2, "label is long")),
        (envelope(2, {"error": {"code": "internal", "message": "disk"}}), (1, "internal: disk")),
        (b"\0\0\0\xff\xff{", (0, "")),
        (envelope(0, [1]), (0, "")),
    ],
)
def test_stream_outcome(body: bytes, outcome: tuple[int, str]) -> None:
    assert _wire.stream_outcome(body) == outcome
