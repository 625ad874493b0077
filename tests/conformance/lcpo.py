"""The pairwise losses that latent collective preference optimisation wraps, through composed objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prefkit.objectives import PairScores, induced_log_odds, make_objective

FIELDS = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_lengths",
    "rejected_lengths",
)


def base(kind: str) -> Any:
    def adapter(x: Mapping[str, Any]) -> dict[str, Any]:
        objective = make_objective({"kind": kind, **{name: x[name] for name in ("beta", "gamma") if name in x}})
        scores = PairScores(**{name: x[name] for name in FIELDS if name in x})
        losses, swapped = objective(scores), objective(scores.swapped())
        delta = induced_log_odds(losses, swapped)
        return {
            "losses": losses,
            "swapped_losses": swapped,
            "delta": delta,
            "preference_probability": torch.sigmoid(delta),
        }

    return adapter


FUNCTIONS = {f"{kind}_loss": base(kind) for kind in ("dpo", "ipo", "simpo", "cpo")}
