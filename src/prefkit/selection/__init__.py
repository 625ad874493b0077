"""Selection: choosing among candidates."""

from prefkit.selection.best_of import MinedPairs, best_of_n, mine_pairs, mined_comparisons

__all__ = [
    "MinedPairs",
    "best_of_n",
    "mine_pairs",
    "mined_comparisons",
]
