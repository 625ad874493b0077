"""Auxiliary terms: what is learned beside the comparison, whichever response is better.

They are added after noise corrections, soft labels and weights, which do not concern them. A part that asks for
companions (variants of a response, a rationale, other prompts) takes their scores and the number of pairs, then the
fields that it names, and gives one term a pair.
"""

from __future__ import annotations

from prefkit.objectives.degree import DEGREE
from prefkit.objectives.parts import catalogue

AUXILIARY = catalogue(DEGREE)
