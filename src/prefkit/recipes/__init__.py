"""Recipes: one file a published system, with the experiment that checks its claim."""

from prefkit.recipes.recipe import Claim, Experiment, Illustrated, Recipe, Reproduction, Verdict, reproduce
from prefkit.recipes.registry import RECIPES, find_recipe

__all__ = [
    "RECIPES",
    "Claim",
    "Experiment",
    "Illustrated",
    "Recipe",
    "Reproduction",
    "Verdict",
    "find_recipe",
    "reproduce",
]
