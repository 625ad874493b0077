"""Joint preferences over prompt and response."""

from __future__ import annotations

from typing import Any

from prefkit.comparisons import consistent_feedback
from prefkit.diagnostics import win_rate
from prefkit.language import sequence_logps, truncated_lengths
from prefkit.objectives import jpo_loss, jpo_loss_decomposed

from .rdpo import LOGPS, named

INSTRUCTIONS = tuple(name.replace("_logps", "_instruction_logps") for name in LOGPS)


def sequences(x: dict[str, Any]) -> dict[str, Any]:
    found = sequence_logps(*(x[name] for name in ("logits", "input_ids", "attention_mask", "prompt_lengths")))
    return {f"{name}_logps": logps for name, logps in found._asdict().items()}


def decomposed(x: dict[str, Any]) -> dict[str, Any]:
    return jpo_loss_decomposed(*(x[name] for name in (*LOGPS, *INSTRUCTIONS)), beta=x["beta"])._asdict()


def lengths(x: dict[str, Any]) -> dict[str, Any]:
    kept = truncated_lengths(
        x["prompt_length"], x["response_length"], max_length=x["max_length"], max_prompt_length=x["max_prompt_length"]
    )
    return {f"{name}_length": length for name, length in kept._asdict().items()}


FUNCTIONS = {
    "sequence_logps": sequences,
    "jpo_loss": named(jpo_loss, *LOGPS, beta="beta"),
    "jpo_loss_decomposed": decomposed,
    "consistent_feedback": lambda x: {"feedback": consistent_feedback(**x)},
    "win_rate": lambda x: {"win_rate": win_rate(**x)},
    "truncated_lengths": lengths,
}
