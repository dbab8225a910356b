"""Bytes on the socket: JSON in HTTP/1.1, as ConnectRPC has it.

A call is one POST with a JSON body (protobuf's JSON mapping). Asynchronous calls are messages of one long request,
Connect's client streaming: each in an envelope of one flag byte and four length bytes, each envelope in an HTTP chunk.
Everything here is pure: text in, bytes out, and back.
"""

from __future__ import annotations

import operator

SERVICE = "/prov4ml.v1.AgentService/"

# The agent's limit for one message.
MESSAGE_BYTES = 1 << 20

_HEAD_BYTES = 64 << 10
_INT64_MIN = -(1 << 63)
_INT64_MAX = (1 << 63) - 1


class Function:
    """One function of the service, with the parts of its messages that never change."""

    __slots__ = ("message", "name", "request")

    def __init__(self, name: str, key: str = "") -> None:
        self.name = name
        # Everything before the number of Content-Length.
        self.request = (
            f"POST {SERVICE}{name} HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\nContent-Length: "
        )
        # The opening of the same call as a message of the stream.
        self.message = f'{{"{key}":{{"synchronous":false,'


SYSTEM_METRICS = Function("LogSystemMetrics", "logSystemMetrics")
FLOPS_PER_BATCH = Function("LogFlopsPerBatch", "logFlopsPerBatch")
FLOPS_PER_EPOCH = Function("LogFlopsPerEpoch", "logFlopsPerEpoch")
DESCRIBE_RUN = Function("DescribeRun")
LOG_STREAM = Function("LogStream")

STREAM_HEAD = (
    f"POST {SERVICE}LogStream HTTP/1.1\r\nHost: agent\r\nContent-Type: application/connect+json\r\n"
    "Connect-Protocol-Version: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
).encode("ascii")
STREAM_END = b"0\r\n\r\n"


def unary(function: Function, fields: str) -> bytes:
    """A whole request of a message's fields, which must be ASCII, as everything from `quote` is."""
    return f"{function.request}{len(fields) + 2}\r\n\r\n{{{fields}}}".encode("ascii")


def streamed(function: Function, fields: str) -> bytes:
    """The same call as one chunk of the stream."""
    message = f"{function.message}{fields}}}}}"
    size = len(message)
    if size > 0xFFFF:
        return b"%x\r\n\0%b%b\r\n" % (size + 5, size.to_bytes(4, "big"), message.encode("ascii"))
    # The length's bytes as characters: one step from text to bytes is what a call can afford.
    return f"{size + 5:x}\r\n\0\0\0{chr(size >> 8)}{chr(size & 255)}{message}\r\n".encode("latin-1")


# Of a usual call's message, so that its lengths are known beforehand. JSON allows the spaces that fill it up; the
# longest context and numbers (20 digits) leave some.
_USUAL_BYTES = 184
# The whole chunk but its end of line.
USUAL_CHUNK_BYTES = 9 + _USUAL_BYTES


def usual(fields: str) -> str:
    """The chunk of an asynchronous log_system_metrics call as far as its step, as characters of one byte.

    Behind the fields come spaces up to USUAL_CHUNK_BYTES, and an end of line.
    """
    envelope = f"{_USUAL_BYTES + 5:x}\r\n\0\0\0\0{chr(_USUAL_BYTES)}"
    return f'{envelope}{SYSTEM_METRICS.message}{fields}"step":'


def quote(text: str) -> str:
    """A JSON string in ASCII. Half surrogates, which file names may bring in, become question marks."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    import json

    return json.dumps(text.encode("utf-8", "replace").decode("utf-8"))


def document(value: object) -> str:
    """Any JSON value in ASCII; raises ValueError or TypeError for what JSON has not."""
    import json

    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def integer(value: object) -> int:
    """An int64 from what scripts pass for one: int, numpy and torch integers, 3.0, "3". Else ValueError."""
    if isinstance(value, float):
        number = int(value)
        if number != value:
            raise ValueError("not a whole number")
    elif isinstance(value, str):
        number = int(value)
    else:
        try:
            number = int(operator.index(value))  # type: ignore[arg-type]  # its TypeError is caught
        except TypeError:  # numpy's and torch's floats
            number = _whole(value)
    if not _INT64_MIN <= number <= _INT64_MAX:
        raise ValueError("does not fit 64 bits")
    return number


def _whole(value: object) -> int:
    number = float(value)  # type: ignore[arg-type]  # the object's own refusal is the error wanted
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


class GarbageError(Exception):
    """The other side speaks no HTTP, or HTTP without end."""


class Answer:
    """One HTTP answer."""

    __slots__ = ("body", "last", "status")

    def __init__(self, status: int, body: bytes, last: bool) -> None:
        self.status = status
        self.body = body
        # The other side closes the connection after this answer.
        self.last = last

    def refusal(self) -> tuple[str, str]:
        """Connect's code and sentence of an answer that is no success."""
        code, message = f"HTTP status {self.status}", ""
        try:
            import json

            error = json.loads(self.body)
            code = str(error.get("code", code))
            message = str(error.get("message", ""))
        except Exception:  # no JSON, or JSON of another shape: the status must do
            message = self.body[:200].decode("utf-8", "replace").strip()
        if self.status == 501 or self.status == 404:
            code = "unimplemented"
        return code, message


def parse(data: bytes, closed: bool = False) -> tuple[Answer | None, int]:
    """The first answer in data and how many bytes it takes; (None, 0) while it is not whole.

    closed says that no more will come, which ends an answer that states no length.
    """
    head_end = data.find(b"\r\n\r\n")
    if not data.startswith(b"HTTP/1."[: len(data)]) or (head_end < 0 and len(data) > _HEAD_BYTES):
        raise GarbageError("the answer is no HTTP")
    if head_end < 0:
        return None, 0
    lines = data[:head_end].split(b"\r\n")
    try:
        status = int(lines[0].split(b" ", 2)[1])
    except (IndexError, ValueError):
        raise GarbageError("the answer's status line is no HTTP") from None
    headers = {}
    for line in lines[1:]:
        name, _, text = line.partition(b":")
        headers[name.strip().lower()] = text.strip().lower()
    start = head_end + 4
    if 100 <= status < 200:  # interim answers carry nothing and precede the real one
        answer, taken = parse(data[start:], closed) if len(data) > start else (None, 0)
        return answer, start + taken if answer else 0
    last = headers.get(b"connection") == b"close" or lines[0].startswith(b"HTTP/1.0")
    if headers.get(b"transfer-encoding") == b"chunked":
        body, end = _chunks(data, start)
    elif b"content-length" in headers:
        try:
            length = int(headers[b"content-length"])
        except ValueError:
            raise GarbageError("the answer's length is no number") from None
        if not 0 <= length <= MESSAGE_BYTES:
            raise GarbageError("the answer is too long")
        end = start + length if len(data) >= start + length else 0
        body = data[start:end] if end else b""
    elif status in (204, 304):
        body, end = b"", start
    else:
        if len(data) - start > MESSAGE_BYTES:
            raise GarbageError("the answer is too long")
        body, end = (data[start:], len(data)) if closed else (b"", 0)
        last = True
    return (Answer(status, body, last), end) if end else (None, 0)


def _chunks(data: bytes, at: int) -> tuple[bytes, int]:
    """The chunked body that starts at `at`, and where it ends; 0 = not whole."""
    body = bytearray()
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            if len(data) - at > 64:
                raise GarbageError("the answer's chunks are no chunks")
            return b"", 0
        try:
            size = int(data[at:line_end].split(b";")[0], 16)
        except ValueError:
            raise GarbageError("the answer's chunks are no chunks") from None
        if size < 0 or len(body) + size > MESSAGE_BYTES:
            raise GarbageError("the answer is too long")
        at = line_end + 2
        if size == 0:  # trailers end with an empty line
            end = data.find(b"\r\n", at)
            while end > at:
                at = end + 2
                end = data.find(b"\r\n", at)
            return (bytes(body), at + 2) if end == at else (b"", 0)
        if len(data) < at + size + 2:
            return b"", 0
        body += data[at : at + size]
        at += size + 2


def stream_outcome(body: bytes) -> tuple[int, str]:
    """Refused calls and the first refusal's sentence, from the stream's answer. (0, "") when it has none."""
    import json

    refused, sentence = 0, ""
    at = 0
    while at + 5 <= len(body):
        flags, size = body[at], int.from_bytes(body[at + 1 : at + 5], "big")
        text = body[at + 5 : at + 5 + size]
        at += 5 + size
        try:
            message = json.loads(text)
            if flags & 2:  # end of stream: an error, or nothing
                error = message.get("error") or {}
                if error:
                    sentence = sentence or f"{error.get('code', 'error')}: {error.get('message', '')}"
                    refused = max(refused, 1)
            else:
                refused = int(message.get("refused", 0))
                sentence = str(message.get("firstRefusal", ""))
        except Exception:  # an answer nobody can read refuses nothing
            continue
    return refused, sentence
