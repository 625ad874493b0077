"""Self-supervised Preference Optimization."""

from __future__ import annotations

from typing import Any

from prefkit import comparisons as c
from prefkit import objectives as o

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
DEGREES = tuple(f"{side}_degree_{what}" for side in ("chosen", "rejected") for what in ("logits", "labels"))


def total(x: dict[str, Any]) -> dict[str, Any]:
    align = o.dpo_loss(*(x[name] for name in LOGPS), beta=x["beta"])
    degrees = [x[name] for name in DEGREES]
    return {
        "align_loss": align.mean(),
        "degree_loss_chosen": o.degree_cross_entropy(*degrees[:2]).mean(),
        "degree_loss_rejected": o.degree_cross_entropy(*degrees[2:]).mean(),
        "loss": o.spo_total_loss(align, *degrees, gamma=x["gamma"]).mean(),
    }


def rake(x: dict[str, Any]) -> dict[str, Any]:
    words, phrases = c.rake_scores(x["phrases"])
    return {"word_scores": words, "phrase_scores": phrases}


def plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def remove(x: dict[str, Any]) -> dict[str, Any]:
    kept, spans = c.remove_key_content(*(plain(x[name]) for name in ("tokens", "spans", "span_scores", "ratio")))
    return {"kept": kept, "removed_spans": spans, "n_removed_spans": len(spans)}


FUNCTIONS = {
    "degree_cross_entropy": lambda x: {"losses": o.degree_cross_entropy(x["degree_logits"], x["degree_labels"])},
    "degree_head_loss": lambda x: {
        "losses": o.degree_head_loss(x["pooled"], x["weight"], x["bias"], x["degree_labels"])
    },
    "pool_hidden": lambda x: {"pooled": o.pool_hidden(x["hidden_states"], x["attention_mask"], x["kind"])},
    "spo_total_loss": total,
    "rake_scores": rake,
    "remove_key_content": remove,
}
