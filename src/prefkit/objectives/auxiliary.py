"""Auxiliary terms: what is learned beside the comparison, whichever response is better.

They are added after noise corrections, soft labels and weights, which do not concern them. A part that asks for
companions (variants of a response, a rationale, other prompts) takes their scores and the number of pairs, then the
fields that it names, and gives one term a pair.
"""

from __future__ import annotations

from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.comparisons.instructions import inter_companions, intra_companions
from prefkit.comparisons.rationales import rationale_companions
from prefkit.objectives.contrastive import CONTRASTIVE
from prefkit.objectives.degree import DEGREE
from prefkit.objectives.levels import InterOptions, IntraOptions, inter, intra
from prefkit.objectives.parts import Part, catalogue
from prefkit.objectives.rationales import Rationale, RationaleOptions
from prefkit.objectives.values import ValueOptions, value_term
from prefkit.options import Options


class CentreOptions(Options):
    """Options of `centre`."""

    weight: FiniteFloat = Field(0.01, ge=0, description="weight of the term; the default is TRL's advice")


def centre(
    chosen: Float[Tensor, " batch"], rejected: Float[Tensor, " batch"], *, weight: float = 0.01
) -> Float[Tensor, " batch"]:
    """weight * (chosen + rejected)^2: of all rewards that make the same choices, those with mean 0.

    A choice depends on differences only, so without this term rewards may drift together.

    Source: Eisenstein et al. 2023, Helping or herding? (arXiv 2312.09244).
    """
    return weight * (chosen + rejected) ** 2


AUXILIARY = catalogue(
    Part(
        "centre",
        centre,
        ("policy_chosen_logps", "policy_rejected_logps"),
        CentreOptions,
        requires=frozenset({"rewards"}),
    ),
    Part("intra", intra, options=IntraOptions, requires=frozenset({"reference"}), companions=intra_companions),
    Part(
        "inter",
        inter,
        ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps"),
        InterOptions,
        companions=inter_companions,
    ),
    Part("rationale", Rationale, options=RationaleOptions, companions=rationale_companions),
    Part("value", value_term, ("policy_chosen_logps", "ref_chosen_logps"), ValueOptions),
    DEGREE,
    CONTRASTIVE,
)
