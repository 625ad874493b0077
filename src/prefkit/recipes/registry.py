"""The registry: every published system that the library covers or will cover, by the name used on the command line."""

from __future__ import annotations

from collections.abc import Mapping

from prefkit.errors import PrefkitError, unknown
from prefkit.recipes import (
    calibrated_decoding,
    curry_dpo,
    diffusion_dpo,
    diffusion_dro,
    dove,
    ift,
    inpo,
    lcpo,
    madpo,
    mapl,
    osp,
    prefpaint,
    rationales,
    rdpo,
    self_npo,
    smpo_diffusion,
    sparsepo,
    spo,
    tpo,
    vpo,
)
from prefkit.recipes.recipe import Recipe

READY = (
    calibrated_decoding.RECIPE,
    curry_dpo.RECIPE,
    diffusion_dpo.RECIPE,
    diffusion_dro.RECIPE,
    dove.RECIPE,
    ift.RECIPE,
    inpo.RECIPE,
    lcpo.RECIPE,
    madpo.RECIPE,
    mapl.RECIPE,
    osp.RECIPE,
    prefpaint.RECIPE,
    rationales.RECIPE,
    rdpo.RECIPE,
    self_npo.RECIPE,
    smpo_diffusion.RECIPE,
    sparsepo.RECIPE,
    spo.RECIPE,
    tpo.RECIPE,
    vpo.RECIPE,
)

PLANNED = (
    Recipe("apo", "Momentum for iterated preference optimisation", 2024, "arXiv 2410.06293"),
    Recipe("ches", "Likelihood displacement in DPO, and a score that predicts it", 2024, "arXiv 2410.08847"),
    Recipe("context-pm", "Preference models that read the context of a judgement", 2024, "arXiv 2407.14916"),
    Recipe("dissecting", "Which properties of a response people and models prefer", 2024, "arXiv 2402.11296"),
    Recipe("domain-rm", "Reward models over expert features of a domain", 2024, "arXiv 2402.15473"),
    Recipe("ear", "Conversational recommendation that asks, suggests and reflects", 2020, "arXiv 2002.09102"),
    Recipe("flr", "Likelihood of a user's follow-up as reward", 2024, "arXiv 2409.13948"),
    Recipe("gpm", "Preference embeddings that can represent cycles", 2024, "arXiv 2410.02197"),
    Recipe("gream", "Recommendation by generative reasoning over item codes", 2025, "arXiv 2510.20815"),
    Recipe("mcts-dpo", "Step-wise preferences from tree search, learned in rounds", 2024, "arXiv 2405.00451"),
    Recipe("nbpo", "Sampling for implicit feedback that is partly missing", 2020, "arXiv 2007.07204"),
    Recipe("on-policy", "When on-policy samples and negative gradients matter", 2024, "arXiv 2404.14367"),
    Recipe("pal", "Ideal points for people who disagree", 2024, "arXiv 2406.08469"),
    Recipe("pro", "Weights of several objectives chosen from the prompt", 2025, "arXiv 2511.10656"),
    Recipe("ranking-accuracy", "How well aligned models rank what they were aligned on", 2024, "arXiv 2405.19534"),
    Recipe("regret", "People compare regret rather than return", 2022, "arXiv 2206.02231"),
    Recipe("rps", "Inference over neighbouring preference directions", 2025, "arXiv 2510.20498"),
    Recipe("rso", "Pairs by rejection sampling from the optimal policy", 2023, "arXiv 2309.06657"),
    Recipe("secrets-rm", "Reward models from noisy and shifting preferences", 2024, "arXiv 2401.06080"),
    Recipe("selfie", "Preference data that a model spreads from a few labels", 2024, "arXiv 2406.04412"),
    Recipe("symbolic-mc-prm", "Process rewards from symbolic simulation of reasoning", 2025, "arXiv 2505.20415"),
    Recipe("unpacking", "What matters in DPO and PPO: data, reward model, prompts", 2024, "arXiv 2406.09279"),
    Recipe("upo", "Self-training that trusts pairs by their uncertainty", 2024, "arXiv 2409.11212"),
    Recipe("user-simulator", "Simulated users aligned with recorded behaviour", 2025, "arXiv 2508.18142"),
    Recipe("value-drifts", "How values move in the course of post-training", 2025, "arXiv 2510.26707"),
    Recipe("worldpm", "Preference modelling at scale from public forums", 2025, "arXiv 2505.10527"),
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
