"""The phase of a run that a call belongs to."""

from __future__ import annotations

import enum

from . import _wire


class Context(enum.Enum):
    """Phase of the run. Anywhere a context is asked for, any string or None is taken too."""

    TRAINING = "training"
    VALIDATION = "validation"
    EVALUATION = "evaluation"
    TESTING = "testing"

    def __init__(self, value: str) -> None:
        # The member's part of a message, and the beginning of a usual call's chunk: a call then only joins strings.
        self._fields = f'"context":"{value}",'
        self._usual = _wire.usual(self._fields)


def context_fields(context: object) -> str:
    """The context's part of a message. None is no part: the attribute is then absent.

    Raises whatever the object's own __str__ raises.
    """
    if isinstance(context, Context):
        return context._fields
    if context is None:
        return ""
    if isinstance(context, enum.Enum):
        # Context enums of other packages, the original's included, have the word as value.
        context = context.value if isinstance(context.value, str) else context.name
    return f'"context":{_wire.quote(str(context))},'
