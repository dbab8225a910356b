"""A cost that is known, or will be."""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, List, Optional

Fragment = Dict[str, Any]


class Cost:
    """Part of a FLOPs request, ready or to come. Safe to use from any thread."""

    __slots__ = ("_callbacks", "_done", "_fragment", "_lock")

    def __init__(self, fragment: Optional[Fragment] = None) -> None:
        self._fragment = fragment
        if fragment is None:
            self._lock = threading.Lock()
            self._done = threading.Event()
            self._callbacks: List[Callable[[Cost], None]] = []

    def done(self) -> bool:
        """Whether result returns at once."""
        return self._fragment is not None

    def result(self, timeout: Optional[float] = None) -> Fragment:
        """The fragment; waits for at most timeout seconds (None: without limit), then raises TimeoutError."""
        fragment = self._fragment
        if fragment is not None:
            return fragment
        if not self._done.wait(timeout):
            raise TimeoutError("the cost is still being traced")
        fragment = self._fragment
        assert fragment is not None
        return fragment

    def add_done_callback(self, fn: Callable[[Cost], None]) -> None:
        """Calls fn(self) once the cost is known: now, or on the thread that completes it. What it raises is lost."""
        if self._fragment is None:
            with self._lock:
                if self._fragment is None:
                    self._callbacks.append(fn)
                    return
        self._call(fn)

    def _call(self, fn: Callable[[Cost], None]) -> None:
        try:
            fn(self)
        except Exception:  # a callback's fault is not the tracer's
            pass

    def complete(self, fragment: Fragment) -> None:
        """Hands in the fragment. Only the first one counts."""
        if self._fragment is not None:
            return
        with self._lock:
            if self._fragment is not None:
                return
            self._fragment = fragment
            callbacks, self._callbacks = self._callbacks, []
        self._done.set()
        for fn in callbacks:
            self._call(fn)
