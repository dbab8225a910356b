"""Closed forms from a model's configuration."""

from __future__ import annotations

from typing import Any, Dict, Optional


def operators(model: Any, plan: Any, setting: Any) -> Optional[Dict[str, Any]]:
    """The operators of a model whose configuration says them; None for any other."""
    return None
