"""Weights: how much each pair counts, beyond the weight that its record carries."""

from __future__ import annotations

from jaxtyping import Float
from pydantic import Field, FiniteFloat
from torch import Tensor

from prefkit.objectives.parts import Part, catalogue
from prefkit.options import Options


class StrengthOptions(Options):
    """Options of `strength`."""

    scale: FiniteFloat = Field(1.0, gt=0, description="strength of preference that counts as weight 1")


def strength(strengths: Float[Tensor, " batch"], *, scale: float = 1.0) -> Float[Tensor, " batch"]:
    """Weight proportional to how strongly the chosen response was preferred.

    Args:
        strengths: on the data's own scale, at least 0.
        scale: the strength that counts as 1.

    Source: Wang et al. 2024 (HelpSteer2-Preference, arXiv 2410.01257), scaled Bradley-Terry.
    """
    return strengths / scale


WEIGHTS = catalogue(Part("strength", strength, ("strengths",), StrengthOptions))
