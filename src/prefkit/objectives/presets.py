"""Presets: named methods as data, and the step from a configuration to an objective.

A preset names one part a role and the defaults of their options. In a configuration the options of these parts stand
beside `kind`; a role that is given replaces the preset's part, and its options go with it:

    {"kind": "rdpo", "beta": 0.1, "flip_rate": 0.2}
    {"kind": "simpo", "noise": {"kind": "robust", "flip_rate": 0.1}, "regularisers": [{"kind": "sft", "weight": 0.5}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefkit.errors import OptionError, unknown
from prefkit.objectives.auxiliary import AUXILIARY
from prefkit.objectives.compose import (
    DemonstrationObjective,
    LabelObjective,
    ListObjective,
    Objective,
    PairObjective,
)
from prefkit.objectives.links import LINKS
from prefkit.objectives.listwise import RANKINGS
from prefkit.objectives.noise import NOISE
from prefkit.objectives.parts import AnyPart, Part
from prefkit.objectives.regularisers import IMITATION, REGULARISERS
from prefkit.objectives.rewards import REWARDS
from prefkit.objectives.scores import Form
from prefkit.objectives.unpaired import UTILITIES
from prefkit.objectives.weights import WEIGHTS

CATALOGUE: Mapping[str, Mapping[str, Part]] = {
    "reward": REWARDS,
    "link": LINKS,
    "noise": NOISE,
    "weights": WEIGHTS,
    "regularisers": REGULARISERS,
    "auxiliary": AUXILIARY,
    "ranking": RANKINGS,
    "utility": UTILITIES,
    "imitation": IMITATION,
}
"""Every part by role and name."""

ROLES: Mapping[Form, tuple[str, ...]] = {
    "pairs": ("reward", "link", "noise", "weights", "regularisers", "auxiliary"),
    "lists": ("reward", "ranking"),
    "labels": (),
    "demonstrations": ("imitation",),
}
"""The roles that a configuration may fill, by form."""

CLASSES: Mapping[Form, type[Objective[Any]]] = {
    "pairs": PairObjective,
    "lists": ListObjective,
    "labels": LabelObjective,
    "demonstrations": DemonstrationObjective,
}


@dataclass(frozen=True)
class Preset:
    """A named method.

    Args:
        form: what it compares.
        summary: one line for people.
        source: where it was published.
        parts: name of the part in each role; regularisers and auxiliary terms are lists of configurations.
        options: defaults of the parts' options, where they differ from the parts' own.
        origin: where the defaults come from.
    """

    form: Form
    summary: str
    source: str
    parts: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    origin: str = "the paper"


PRESETS: Mapping[str, Preset] = {
    "dpo": Preset(
        "pairs",
        "direct preference optimisation: logistic loss on log-ratios to the reference",
        "Rafailov et al. 2023, arXiv 2305.18290",
        {"reward": "log_ratio", "link": "logistic"},
        {"beta": 0.1},
    ),
    "cdpo": Preset(
        "pairs",
        "conservative DPO: smoothed labels",
        "Mitchell 2023, A note on DPO with noisy preferences",
        {"reward": "log_ratio", "link": "logistic", "noise": "conservative"},
        {"beta": 0.1, "flip_rate": 0.1},
        "common practice",
    ),
    "rdpo": Preset(
        "pairs",
        "robust DPO: unbiased when labels are flipped at a known rate",
        "Chowdhury et al. 2024, arXiv 2403.00409",
        {"reward": "log_ratio", "link": "logistic", "noise": "robust"},
        {"beta": 0.1, "flip_rate": 0.1},
        "the advice of TRL's documentation for real data",
    ),
    "ipo": Preset(
        "pairs",
        "identity preference optimisation: regression on a finite margin of summed log-ratios",
        "Azar et al. 2023, arXiv 2310.12036",
        {"reward": "log_ratio", "link": "squared"},
        {"beta": 0.1},
    ),
    "ipo_avg": Preset(
        "pairs",
        "IPO on log-ratios a token",
        "Azar et al. 2023, arXiv 2310.12036; averaged as in TRL",
        {"reward": "average_log_ratio", "link": "squared"},
        {"beta": 0.1},
        "TRL",
    ),
    "slic": Preset(
        "pairs",
        "hinge loss on log-ratios to the reference",
        "Liu et al. 2023 (RSO), arXiv 2309.06657, eq. 10",
        {"reward": "log_ratio", "link": "hinge"},
        {"beta": 0.05},
        "RSO's gamma",
    ),
    "slic_hf": Preset(
        "pairs",
        "hinge loss on log-probabilities without a reference, and likelihood of the chosen response",
        "Zhao et al. 2023, arXiv 2305.10425, eq. 1",
        {"reward": "log_prob", "link": "hinge", "regularisers": [{"kind": "sft", "weight": 0.1}]},
        {"beta": 1.0, "gamma": 1.0},
        "this library",
    ),
    "simpo": Preset(
        "pairs",
        "logistic loss on log-probabilities a token, with a target margin, without a reference",
        "Meng et al. 2024, arXiv 2405.14734",
        {"reward": "average_log_prob", "link": "logistic"},
        {"beta": 2.5, "gamma": 0.25},
        "the authors' settings for Mistral-7B-Instruct",
    ),
    "cpo": Preset(
        "pairs",
        "logistic loss on log-probabilities without a reference, and likelihood of the chosen response",
        "Xu et al. 2024, arXiv 2401.08417",
        {"reward": "log_prob", "link": "logistic", "regularisers": [{"kind": "sft", "weight": 1.0}]},
        {"beta": 0.1},
    ),
    "orpo": Preset(
        "pairs",
        "likelihood of the chosen response, and the odds ratio of the two, without a reference",
        "Hong et al. 2024, arXiv 2403.07691",
        {
            "reward": "log_odds",
            "link": "weighted_logistic",
            "regularisers": [{"kind": "average_sft", "weight": 1.0}],
        },
        {"beta": 0.1},
    ),
    "spo": Preset(
        "pairs",
        "self-supervised preference optimisation: DPO that also tells how much key content a response has lost",
        "Li et al. 2024, arXiv 2409.17791",
        {"reward": "log_ratio", "link": "logistic", "auxiliary": [{"kind": "degree"}]},
        {"beta": 0.1},
        "this library; the paper's were not to be had",
    ),
    "tdpo1": Preset(
        "pairs",
        "token-level DPO: a sequential divergence from the reference belongs to the reward",
        "Zeng et al. 2024, arXiv 2404.11999",
        {"reward": "tdpo1", "link": "logistic"},
        {"beta": 0.1},
        "the authors' code",
    ),
    "tdpo2": Preset(
        "pairs",
        "token-level DPO that holds the rejected response's divergence to the chosen one's",
        "Zeng et al. 2024, arXiv 2404.11999",
        {"reward": "tdpo2", "link": "logistic"},
        {"beta": 0.1, "alpha": 0.5},
        "the authors' code",
    ),
    "sparsepo": Preset(
        "pairs",
        "token-level preference with masks that are learned and sparse",
        "Christopoulou et al. 2024, arXiv 2410.05102",
        {"reward": "sparse", "link": "logistic"},
        {"beta": 0.1},
        "the authors' code; beta as for their dialogue data, 0.8 elsewhere",
    ),
    "mapo": Preset(
        "pairs",
        "token-level preference with masks from the reference's activations",
        "Christopoulou et al. 2024, arXiv 2410.05102",
        {"reward": "activations", "link": "logistic"},
        {"beta": 0.1},
        "the authors' code; beta as for their dialogue data",
    ),
    "plackett_luce": Preset(
        "lists",
        "DPO for rankings: likelihood of the order as a series of choices",
        "Rafailov et al. 2023, arXiv 2305.18290, eq. 18",
        {"reward": "log_ratio", "ranking": "plackett_luce"},
        {"beta": 0.1},
    ),
    "all_pairs": Preset(
        "lists",
        "DPO on every ordered pair of a ranking",
        "Ouyang et al. 2022, arXiv 2203.02155, eq. 1, on log-ratios",
        {"reward": "log_ratio", "ranking": "all_pairs"},
        {"beta": 0.1},
        "as DPO",
    ),
    "kto": Preset(
        "labels",
        "Kahneman-Tversky optimisation: good and bad responses without pairs",
        "Ethayarajh et al. 2024, arXiv 2402.01306",
        {"reward": "log_ratio", "utility": "kto"},
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    ),
    "sft": Preset(
        "demonstrations",
        "supervised fine-tuning: likelihood a token of the chosen response",
        "maximum likelihood",
        {"imitation": "average_sft"},
        origin="common practice",
    ),
    "ift": Preset(
        "demonstrations",
        "intuitive fine-tuning: the model reads its own predictions, and tokens weigh what follows them",
        "Hua et al. 2024, arXiv 2405.11870",
        {"imitation": "ift"},
    ),
}
"""Every named method."""


def make_objective(config: str | Mapping[str, Any], where: str = "objective") -> Objective[Any]:
    """Build an objective from a configuration.

    Args:
        config: the name of a preset, or a mapping with `kind` (the name) and options.
        where: dotted path of the configuration, used in messages.

    Raises:
        OptionError: the preset, an option or a part is unknown, an option does not apply to the preset, or a value is
            out of range.
    """
    given: dict[str, Any] = {"kind": config} if isinstance(config, str) else dict(config)
    kind = given.pop("kind", None)
    if not isinstance(kind, str):
        raise OptionError(f"{where}.kind is required; known: {', '.join(sorted(PRESETS))}")
    if kind not in PRESETS:
        raise OptionError(f"{where}.kind: {unknown('objective', kind, PRESETS)}")
    preset = PRESETS[kind]

    replaced = [role for role in ROLES[preset.form] if role in given]
    parts: dict[str, Any] = {}
    flat: dict[str, Part] = {}  # parts whose options stand beside `kind`
    for role in dict.fromkeys((*ROLES[preset.form], *preset.parts)):
        choice = preset.parts.get(role)
        if role in ROLES[preset.form]:
            choice = given.pop(role, choice)
        if choice is None:
            continue
        if role in _TERMS:
            parts[role] = _terms(role, choice, f"{where}.{role}")
        elif isinstance(choice, Mapping):
            parts[role] = _nested(role, choice, f"{where}.{role}")
        else:
            flat[role] = _named(role, choice, f"{where}.{role}")

    _check_names(given, kind, flat, preset, where)
    for role, part in flat.items():
        options = part.options.model_fields
        # A part that the configuration named brings its own defaults.
        defaults = preset.options if role not in replaced else {}
        values = {name: value for name, value in {**defaults, **given}.items() if name in options}
        parts[role] = part.set(values, where).made()
    return CLASSES[preset.form](name=kind, **parts)


def _named(role: str, name: object, where: str) -> Part:
    if not isinstance(name, str) or name not in CATALOGUE[role]:
        raise OptionError(f"{where}: {unknown(role, str(name), CATALOGUE[role])}")
    return CATALOGUE[role][name]


def _nested(role: str, config: Mapping[str, Any], where: str) -> AnyPart:
    values = dict(config)
    if "kind" not in values:
        raise OptionError(f"{where}.kind is required; known: {', '.join(sorted(CATALOGUE[role]))}")
    return _named(role, values.pop("kind"), f"{where}.kind").set(values, where).made()


_TERMS = ("regularisers", "auxiliary")
"""Roles that several parts share."""


def _terms(role: str, choice: object, where: str) -> tuple[AnyPart, ...]:
    if isinstance(choice, str) or not isinstance(choice, Sequence):
        raise OptionError(f"{where} must be a list such as [{{kind: sft, weight: 1.0}}], got {choice!r}")
    return tuple(
        _nested(role, item if isinstance(item, Mapping) else {"kind": item}, f"{where}.{index}")
        for index, item in enumerate(choice)
    )


def _check_names(given: Mapping[str, Any], kind: str, flat: Mapping[str, Part], preset: Preset, where: str) -> None:
    """Refuse options that none of the chosen parts takes."""
    applicable = [*ROLES[preset.form], *(name for part in flat.values() for name in part.options.model_fields)]
    everywhere = {
        *CATALOGUE,
        *(name for parts in CATALOGUE.values() for part in parts.values() for name in part.options.model_fields),
    }
    for name in given:
        if name in applicable:
            continue
        if name in everywhere:
            raise OptionError(
                f"{where}.{name} does not apply to '{kind}', whose options are: {', '.join(sorted(applicable))}"
            )
        raise OptionError(unknown(f"option of {where}", name, applicable))
