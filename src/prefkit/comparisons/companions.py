"""Companions: further texts that belong to a pair and are scored with it (variants of a response, rationales, ...)."""

from __future__ import annotations

from typing import NamedTuple

from prefkit.comparisons.record import Text


class Companion(NamedTuple):
    """A text that belongs to a pair.

    Args:
        prompt: its context.
        response: the text that is scored.
        label: what it is, as its maker and the objective that reads it have agreed.
    """

    prompt: Text
    response: Text
    label: int = 0
