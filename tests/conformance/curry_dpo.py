"""Curricula of pairs, and the loss of one stage."""

from __future__ import annotations

from typing import Any

from prefkit.comparisons import Candidate, curriculum_pairs, curriculum_stages
from prefkit.objectives import PairScores, make_objective

from .rdpo import LOGPS


def shown(pairs: list[Candidate]) -> dict[str, Any]:
    return {"pairs": [[pair.chosen, pair.rejected] for pair in pairs], "gaps": [pair.gap for pair in pairs]}


def stages(x: dict[str, Any]) -> dict[str, Any]:
    found = curriculum_stages([curriculum_pairs(list(map(float, one))) for one in x["ratings"]], x["num_stages"])
    return {"stages": [[[place, pair.chosen, pair.rejected] for place, pair in stage] for stage in found]}


def stage_loss(x: dict[str, Any]) -> dict[str, Any]:
    objective = make_objective({"kind": "dpo", "beta": x["beta"]})
    scores = PairScores(*(x[name] for name in LOGPS))
    chosen, rejected = objective.rewards(scores)
    return {"losses": objective(scores), "chosen_rewards": chosen, "rejected_rewards": rejected}


FUNCTIONS = {
    "curriculum_pairs": lambda x: shown(curriculum_pairs(x["ratings"].tolist(), x["mode"], drop_ties=x["drop_ties"])),
    "curriculum_stages": stages,
    "dpo_stage_loss": stage_loss,
    "logp_curriculum_pairs": lambda x: shown(
        curriculum_pairs(x["ratings"].tolist(), ref_logps=x["ref_logps"].tolist())
    ),
}
