"""CHES, its baselines, the rates of the theory, and the loss with an imitation term."""

from __future__ import annotations

from typing import Any

from prefkit import diagnostics as d
from prefkit import objectives as o

SIDES = ("chosen", "rejected")


def left_padded(x: dict[str, Any]) -> dict[str, Any]:
    states = [x[f"{side}_hidden"] for side in SIDES]
    masks = [
        d.predicting_mask(x[f"{side}_last_prompt_index"], hidden.shape[1])
        for side, hidden in zip(SIDES, states, strict=True)
    ]
    return {"ches": d.ches_score(*states, *masks, length_normalize=x["length_normalize"])}


def masked(x: dict[str, Any]) -> dict[str, Any]:
    names = [f"{side}_{kind}" for kind in ("hidden", "mask") for side in SIDES]
    return {
        "ches": d.ches_score(*(x[name] for name in names), length_normalize=x["length_normalize"]),
        **{f"{side}_lengths": x[f"{side}_mask"].sum(1) for side in SIDES},
    }


def single(x: dict[str, Any]) -> dict[str, Any]:
    given = (x[name] for name in ("unembedding", "hidden", "chosen_id", "rejected_id"))
    return d.single_token_rates(*given, loss_derivative=x["loss_derivative"])._asdict()


def several(x: dict[str, Any]) -> dict[str, Any]:
    names = ("unembedding", "chosen_ids", "rejected_ids", "chosen_hidden", "rejected_hidden")
    return d.multi_token_rate(*(x[name] for name in names))._asdict()


def with_sft(x: dict[str, Any]) -> dict[str, Any]:
    scores = o.PairScores(*(x[f"{model}_{side}_logps"] for model in ("policy", "ref") for side in SIDES))
    imitate = [{"kind": "sft", "weight": x["sft_coeff"]}]
    objective = o.make_objective({"kind": x["objective"], "beta": x["beta"], "regularisers": imitate})
    return {"loss": objective(scores).mean()}


FUNCTIONS = {
    "ches_left_padded": left_padded,
    "ches_masked": masked,
    "normalized_edit_distance": lambda x: {
        "normalized_edit_distance": d.normalized_edit_distance(list(x["chosen_ids"]), list(x["rejected_ids"]))
    },
    "quantile_subset": lambda x: {
        "selected_indices": d.quantile_subset(x["scores"], x["quantile"], x["num_elements"]).tolist()
    },
    "single_token_rates": single,
    "multi_token_rate": several,
    "preference_loss_with_sft": with_sft,
}
