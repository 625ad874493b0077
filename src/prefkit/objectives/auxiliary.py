"""Auxiliary terms: what is learned beside the comparison, whichever response is better.

They are added after noise corrections, soft labels and weights, which do not concern them. A part that asks for
companions (variants of a response, a rationale, other prompts) takes their scores and the number of pairs, then the
fields that it names, and gives one term a pair.
"""

from __future__ import annotations

from prefkit.comparisons.instructions import inter_companions, intra_companions
from prefkit.comparisons.rationales import rationale_companions
from prefkit.objectives.levels import InterOptions, IntraOptions, inter, intra
from prefkit.objectives.parts import Part, catalogue
from prefkit.objectives.rationales import Rationale, RationaleOptions
from prefkit.objectives.value import ValueOptions, value

AUXILIARY = catalogue(
    Part("intra", intra, options=IntraOptions, requires=frozenset({"reference"}), companions=intra_companions),
    Part(
        "inter",
        inter,
        ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps"),
        InterOptions,
        companions=inter_companions,
    ),
    Part("rationale", Rationale, options=RationaleOptions, companions=rationale_companions),
    Part("value", value, ("policy_chosen_logps", "ref_chosen_logps"), ValueOptions),
)
