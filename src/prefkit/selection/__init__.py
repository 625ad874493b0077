"""Selection: choosing among candidates."""

from prefkit.selection.best_of import Chosen, MinedPairs, best_of_n, choose_best, mine_pairs, mined_comparisons

__all__ = [
    "Chosen",
    "MinedPairs",
    "best_of_n",
    "choose_best",
    "mine_pairs",
    "mined_comparisons",
]
