"""What the user is told: each thing once, and never by an exception.

The standard logging module is used and not warnings: `python -W error` turns a warning into an exception inside the
training, and a log line is one line. Logging is imported only when there is something to say.
"""

from __future__ import annotations


class Notices:
    """Remembers what was said. Copied by fork, so that worker processes don't repeat their parent."""

    # Texts that differ each time must not fill the memory or the terminal.
    LIMIT = 100

    def __init__(self) -> None:
        self._said: set[str] = set()
        # Texts to be said.
        self.waiting: list[str] = []

    def add(self, kind: str, text: str) -> None:
        """Keeps a text for `tell`. Of one kind only the first is ever said."""
        if kind in self._said or len(self._said) >= self.LIMIT:
            return
        self._said.add(kind)
        self.waiting.append(text)

    def tell(self) -> None:
        """Says what waits. To be called without locks held: a logging handler may block, or call us."""
        while self.waiting:
            try:
                text = self.waiting.pop(0)
            except IndexError:  # another thread was faster
                return
            try:
                import logging

                logging.getLogger("prov4ml").warning("prov4ml: %s", text)
            except Exception:  # a user's handler may raise, and at exit modules are half gone
                return

    def say(self, kind: str, text: str) -> None:
        self.add(kind, text)
        self.tell()
