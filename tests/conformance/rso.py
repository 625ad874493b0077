"""The losses of statistical rejection sampling optimisation."""

from __future__ import annotations

from prefkit.objectives import dpo_loss, slic_hinge_loss, slic_loss

from .rdpo import LOGPS, named

FUNCTIONS = {
    "sigmoid_norm_loss": named(dpo_loss, *LOGPS, beta="gamma"),
    "hinge_norm_loss": named(slic_hinge_loss, *LOGPS, beta="gamma"),
    "hinge_loss": named(slic_loss, "policy_chosen_logps", "policy_rejected_logps", beta="gamma"),
    "slic_loss": named(
        slic_loss,
        "policy_chosen_logps",
        "policy_rejected_logps",
        "policy_target_logps",
        gamma="margin",
        sft_weight="reg_weight",
    ),
}
