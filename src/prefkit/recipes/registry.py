"""The registry: every published system that the library covers or will cover, by the name used on the command line."""

from __future__ import annotations

from collections.abc import Mapping

from prefkit.errors import PrefkitError, unknown
from prefkit.recipes import (
    calibrated_decoding,
    ches,
    context_pm,
    curry_dpo,
    diffusion_dpo,
    diffusion_dro,
    dissecting,
    domain_rm,
    dove,
    flr,
    gpm,
    ift,
    inpo,
    lcpo,
    madpo,
    mapl,
    osp,
    pal,
    prefpaint,
    ranking_accuracy,
    rationales,
    rdpo,
    secrets_rm,
    self_npo,
    smpo_diffusion,
    sparsepo,
    spo,
    tpo,
    value_drifts,
    vpo,
    worldpm,
)
from prefkit.recipes.recipe import Recipe

READY = (
    calibrated_decoding.RECIPE,
    context_pm.RECIPE,
    curry_dpo.RECIPE,
    domain_rm.RECIPE,
    ches.RECIPE,
    dissecting.RECIPE,
    diffusion_dpo.RECIPE,
    diffusion_dro.RECIPE,
    dove.RECIPE,
    gpm.RECIPE,
    flr.RECIPE,
    ift.RECIPE,
    inpo.RECIPE,
    lcpo.RECIPE,
    madpo.RECIPE,
    mapl.RECIPE,
    osp.RECIPE,
    pal.RECIPE,
    ranking_accuracy.RECIPE,
    rationales.RECIPE,
    rdpo.RECIPE,
    secrets_rm.RECIPE,
    prefpaint.RECIPE,
    self_npo.RECIPE,
    smpo_diffusion.RECIPE,
    sparsepo.RECIPE,
    spo.RECIPE,
    tpo.RECIPE,
    value_drifts.RECIPE,
    vpo.RECIPE,
    worldpm.RECIPE,
)

PLANNED = (
    Recipe("apo", "Momentum for iterated preference optimisation", 2024, "arXiv 2410.06293"),
    Recipe("ear", "Conversational recommendation that asks, suggests and reflects", 2020, "arXiv 2002.09102"),
    Recipe("gream", "Recommendation by generative reasoning over item codes", 2025, "arXiv 2510.20815"),
    Recipe("mcts-dpo", "Step-wise preferences from tree search, learned in rounds", 2024, "arXiv 2405.00451"),
    Recipe("nbpo", "Sampling for implicit feedback that is partly missing", 2020, "arXiv 2007.07204"),
    Recipe("on-policy", "When on-policy samples and negative gradients matter", 2024, "arXiv 2404.14367"),
    Recipe("pro", "Weights of several objectives chosen from the prompt", 2025, "arXiv 2511.10656"),
    Recipe("regret", "People compare regret rather than return", 2022, "arXiv 2206.02231"),
    Recipe("rps", "Inference over neighbouring preference directions", 2025, "arXiv 2510.20498"),
    Recipe("rso", "Pairs by rejection sampling from the optimal policy", 2023, "arXiv 2309.06657"),
    Recipe("selfie", "Preference data that a model spreads from a few labels", 2024, "arXiv 2406.04412"),
    Recipe("symbolic-mc-prm", "Process rewards from symbolic simulation of reasoning", 2025, "arXiv 2505.20415"),
    Recipe("unpacking", "What matters in DPO and PPO: data, reward model, prompts", 2024, "arXiv 2406.09279"),
    Recipe("upo", "Self-training that trusts pairs by their uncertainty", 2024, "arXiv 2409.11212"),
    Recipe("user-simulator", "Simulated users aligned with recorded behaviour", 2025, "arXiv 2508.18142"),
)

RECIPES: Mapping[str, Recipe] = {recipe.slug: recipe for recipe in sorted(READY + PLANNED, key=lambda r: r.slug)}
"""Every recipe by its slug."""


def find_recipe(slug: str) -> Recipe:
    """The recipe of that name.

    Raises:
        PrefkitError: there is none; the message offers the nearest.
    """
    if slug not in RECIPES:
        raise PrefkitError(unknown("recipe", slug, RECIPES))
    return RECIPES[slug]
