"""Presets: named methods as data, and the step from a configuration to an objective.

A preset names one part a role and the defaults of their options. In a configuration the options of these parts stand
beside `kind`; a role that is given replaces the preset's part, and its options go with it. Two parts that take an
option of one name share it, so a term of the preset has the temperature of its link:

    {"kind": "rdpo", "beta": 0.1, "flip_rate": 0.2}
    {"kind": "simpo", "noise": {"kind": "robust", "flip_rate": 0.1}, "regularisers": [{"kind": "sft", "weight": 0.5}]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefkit.errors import OptionError, unknown
from prefkit.objectives.agreement import STRENGTH_LINKS
from prefkit.objectives.auxiliary import AUXILIARY
from prefkit.objectives.batch_adaptive import BATCH_LINKS
from prefkit.objectives.compose import (
    DemonstrationObjective,
    LabelObjective,
    ListObjective,
    Objective,
    PairObjective,
)
from prefkit.objectives.latent import LATENT
from prefkit.objectives.links import LINKS
from prefkit.objectives.listwise import RANKINGS
from prefkit.objectives.margin_adaptive import ADAPTIVE_WEIGHTS
from prefkit.objectives.noise import NOISE
from prefkit.objectives.parts import AnyPart, Part
from prefkit.objectives.regularisers import IMITATION, REGULARISERS
from prefkit.objectives.rewards import REWARDS
from prefkit.objectives.scores import Form
from prefkit.objectives.sides import SIDES
from prefkit.objectives.smoothed import SMOOTHED
from prefkit.objectives.transport import TRANSPORT
from prefkit.objectives.unpaired import UTILITIES
from prefkit.objectives.weights import WEIGHTS

CATALOGUE: Mapping[str, Mapping[str, Part]] = {
    "reward": REWARDS,
    "link": {**LINKS, **SIDES, **TRANSPORT, **BATCH_LINKS, **STRENGTH_LINKS, **SMOOTHED},
    "noise": {**NOISE, **LATENT},
    "weights": {**WEIGHTS, **ADAPTIVE_WEIGHTS},
    "regularisers": REGULARISERS,
    "auxiliary": AUXILIARY,
    "ranking": RANKINGS,
    "utility": UTILITIES,
    "imitation": IMITATION,
}
"""Every part by role and name."""

ROLES: Mapping[Form, tuple[str, ...]] = {
    "pairs": ("reward", "link", "noise", "weights", "regularisers", "auxiliary"),
    "lists": ("reward", "ranking", "noise"),
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
        parts: name of the part in each role; regularisers and auxiliary terms are lists, of configurations or of names.
            The options of a part that is named stand beside `kind`.
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
    "dpo_gamma": Preset(
        "pairs",
        "DPO with a reference that counts in part, or not at all",
        "Chen et al. 2024, arXiv 2405.19534, eq. 4",
        {"reward": "weighted_log_ratio", "link": "logistic"},
        {"beta": 0.1, "ref_weight": 0.1},
        "the authors' code",
    ),
    "jpo": Preset(
        "pairs",
        "joint preference optimisation: DPO that scores the prompts of joint comparisons with their responses",
        "Bansal et al. 2024, arXiv 2404.00530",
        {"reward": "joint_log_ratio", "link": "logistic"},
        {"beta": 0.1},
        "the authors' code",
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
    "lcpo": Preset(
        "pairs",
        "DPO in which each label may be wrong: posteriors and reliabilities are estimated beside the policy",
        "Cao et al. 2025, arXiv 2509.24159",
        {"reward": "log_ratio", "link": "logistic", "noise": "latent"},
        {"beta": 0.1, "reliability": 0.9},
        "the paper; beta, which it does not give, as for DPO",
    ),
    "madpo": Preset(
        "pairs",
        "DPO weighed by a reward model's margins: hard pairs are amplified, easy ones dampened",
        "Margin Adaptive DPO 2025, arXiv 2510.05342",
        {"reward": "log_ratio", "link": "logistic", "weights": "margin_adaptive"},
        {"beta": 0.1, "c_max": 2.0, "lam": 1.0},
        "the authors' notebook",
    ),
    "beta_dpo": Preset(
        "pairs",
        "DPO with a temperature for each batch and a filter of its pairs",
        "Wu et al. 2024, arXiv 2407.08639",
        {"reward": "log_ratio", "link": "batch_logistic"},
        {"beta": 0.1, "alpha": 0.6, "keep": 0.8, "momentum": 0.9},
        "the notebook of the authors of MADPO",
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
    "reward_model": Preset(
        "pairs",
        "likelihood of Bradley-Terry choices under the rewards of a reward model",
        "Ouyang et al. 2022, arXiv 2203.02155, eq. 1",
        {"reward": "score", "link": "logistic"},
        {"beta": 1.0},
    ),
    "reward_model_margin": Preset(
        "pairs",
        "reward model whose margin of each pair is the strength that other reward models give it",
        "Wang et al. 2024, arXiv 2401.06080, section 2.5",
        {"reward": "score", "link": "adaptive_margin"},
        {"beta": 1.0, "alpha": 0.0, "smoothed": "negative"},
    ),
    "mapl": Preset(
        "pairs",
        "DPO, and responses and pairs under prompts with instructions that they obey or not",
        "Multi-Level Aware Preference Learning, 2025, arXiv 2505.12845",
        {"reward": "log_ratio", "link": "logistic", "auxiliary": ["intra", "inter"]},
        {"beta": 0.1, "intra_weight": 1.0, "inter_weight": 1.0},
        "beta from a method of the same group; the weights are this library's",
    ),
    "osp": Preset(
        "pairs",
        "DPO on soft labels that say how strongly a response is preferred (SPCE)",
        "Online Self-Preferring Language Models, 2024, arXiv 2405.14103",
        {"reward": "log_ratio", "link": "logistic", "noise": "strength_label"},
        {"beta": 0.1, "label": "pairwise"},
        "this library, the paper's being unknown",
    ),
    "rationale_dpo": Preset(
        "pairs",
        "DPO, and likelihood of the rationale of each pair",
        "Just et al. 2024, arXiv 2407.14477",
        {"reward": "log_ratio", "link": "logistic", "auxiliary": ["rationale"]},
        {"beta": 0.1, "rationale_weight": 2.0},
        "the paper, appendix B.1; that its weight goes with a mean over tokens is this library's guess",
    ),
    "rationale_orpo": Preset(
        "pairs",
        "ORPO, and likelihood of the rationale of each pair",
        "Just et al. 2024, arXiv 2407.14477",
        {
            "reward": "log_odds",
            "link": "weighted_logistic",
            "regularisers": [{"kind": "average_sft", "weight": 1.0}],
            "auxiliary": ["rationale"],
        },
        {"beta": 0.1, "rationale_weight": 10.0},
        "the paper, appendix B.1; beta from the authors' code",
    ),
    "rationale_simpo": Preset(
        "pairs",
        "SimPO, and likelihood of the rationale of each pair",
        "Just et al. 2024, arXiv 2407.14477",
        {"reward": "average_log_prob", "link": "logistic", "auxiliary": ["rationale"]},
        {"beta": 2.5, "gamma": 0.25, "rationale_weight": 1.0},
        "SimPO's, and a weight of this library",
    ),
    "vpo": Preset(
        "pairs",
        "DPO that is pessimistic (or optimistic) about the value of responses outside the data",
        "Cen et al. 2024, arXiv 2405.19320",
        {"reward": "log_ratio", "link": "logistic", "auxiliary": ["value"]},
        {"beta": 0.1, "alpha": 0.1, "sign": -1},
        "beta as DPO; alpha is this library's, the paper's being unknown for offline data",
    ),
    "smpo": Preset(
        "pairs",
        "DPO whose margins count as far as a scorer finds the two samples different",
        "Lu et al. 2025 (SmPO-Diffusion), arXiv 2506.02698",
        {"reward": "log_ratio", "link": "smoothed_logistic"},
        {"beta": 2000.0, "sensitivity": 10.0, "score_range": 1.0},
        "the authors' code, for Stable Diffusion 1.5; score_range is that of the data",
    ),
    "exo": Preset(
        "pairs",
        "exact optimisation: the KL divergence of DPO the other way round, on smoothed labels",
        "Ji et al. 2024, arXiv 2402.00856",
        {"reward": "log_ratio", "link": "exo"},
        {"beta": 0.1, "epsilon": 1e-3},
        "TRL",
    ),
    "discopop": Preset(
        "pairs",
        "a loss found by a language model: logistic for wrong pairs, exponential for right ones",
        "Lu et al. 2024, arXiv 2406.08414",
        {"reward": "log_ratio", "link": "discopop"},
        {"beta": 0.1, "tau": 0.05},
        "TRL; tau from the paper",
    ),
    "nca": Preset(
        "pairs",
        "noise contrastive alignment: absolute likelihoods of both responses",
        "Chen et al. 2024, arXiv 2402.05369",
        {"reward": "log_ratio", "link": "nca"},
        {"beta": 0.1},
        "TRL",
    ),
    "bco_pair": Preset(
        "pairs",
        "binary classifier of chosen and rejected responses, without a shift",
        "Jung et al. 2024, arXiv 2404.04656",
        {"reward": "log_ratio", "link": "bco_pair"},
        {"beta": 0.1},
        "TRL",
    ),
    "apo_zero": Preset(
        "pairs",
        "anchored preference optimisation: chosen responses up, rejected ones down",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        {"reward": "log_ratio", "link": "apo_zero"},
        {"beta": 0.1},
    ),
    "apo_down": Preset(
        "pairs",
        "anchored preference optimisation: both down, rejected responses more so",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        {"reward": "log_ratio", "link": "apo_down"},
        {"beta": 0.1},
    ),
    "sppo": Preset(
        "pairs",
        "self-play preference optimisation: each log-ratio is led to its win rate",
        "Wu et al. 2024, arXiv 2405.00675",
        {"reward": "log_ratio", "link": "sppo"},
        {"beta": 0.001},
        "the authors' code",
    ),
    "dpop": Preset(
        "pairs",
        "DPO-Positive: DPO with a penalty where the chosen response becomes less likely",
        "Pal et al. 2024, arXiv 2402.13228",
        {"reward": "log_ratio", "link": "dpop"},
        {"beta": 0.3, "penalty": 50.0},
        "the paper's Smaug models (unsure)",
    ),
    "aot": Preset(
        "pairs",
        "alignment via optimal transport: sorted margins of the batch against the reference's",
        "Melnyk et al. 2024, arXiv 2406.05882",
        {"reward": "log_ratio", "link": "aot"},
        {"beta": 0.1},
        "TRL",
    ),
    "aot_unpaired": Preset(
        "pairs",
        "alignment via optimal transport: sorted rewards of chosen responses against those of rejected ones",
        "Melnyk et al. 2024, arXiv 2406.05882",
        {"reward": "log_ratio", "link": "aot_unpaired"},
        {"beta": 0.1},
        "TRL",
    ),
    "wpo": Preset(
        "pairs",
        "DPO on pairs weighed by how likely the policy would write them",
        "Zhou et al. 2024, arXiv 2406.11827",
        {"reward": "log_ratio", "link": "logistic", "weights": "wpo"},
        {"beta": 0.1},
        "TRL (unsure)",
    ),
    "ld_dpo": Preset(
        "pairs",
        "length-desensitised DPO: tokens beyond the shorter response count less",
        "Liu et al. 2024, arXiv 2409.06411",
        {"reward": "shared_length_log_ratio", "link": "logistic"},
        {"beta": 0.1, "tail_weight": 0.5},
        "this library (unsure: the paper tunes the weight for each model)",
    ),
    "length_dpo": Preset(
        "pairs",
        "length-regularised DPO (R-DPO): what the lengths explain is not learned",
        "Park et al. 2024, arXiv 2403.19159",
        {"reward": "log_ratio", "link": "length_logistic"},
        {"beta": 0.1, "length_weight": 0.01},
        "this library (unsure: the paper tunes the weight)",
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
    "calibration": Preset(
        "lists",
        "likelihoods that correlate with ratings, and likelihood of the best candidate, without a reference",
        "Calibrating Translation Decoding with Quality Estimation on LLMs, 2025, arXiv 2504.19044",
        {"reward": "log_prob", "ranking": "calibration"},
        {"nll_weight": 1.0, "calibration_weight": 1.0, "cpo_weight": 0.0},
        "the authors' training script",
    ),
    "plr": Preset(
        "lists",
        "preference list ranking: DPO on all pairs of a rated list, weighted by ratings and present ranks",
        "TPO, 2024, arXiv 2410.12854, eqs. 7, 8",
        {"reward": "log_ratio", "ranking": "graded"},
        {"beta": 0.5},
    ),
    "tpo": Preset(
        "lists",
        "tree preference optimisation: preference list ranking with a weight for each reasoning step",
        "TPO, 2024, arXiv 2410.12854, eqs. 7, 8, 10",
        {"reward": "log_ratio", "ranking": "graded_steps"},
        {"beta": 0.5},
    ),
    "gpo": Preset(
        "lists",
        "general preference optimisation: each log-ratio is led to the response's mean score against the policy",
        "Zhang et al. 2024, arXiv 2410.02197, eq. 5.3",
        {"reward": "log_ratio", "ranking": "gpo"},
        {"beta": 0.001},
        "the authors' code",
    ),
    "kto": Preset(
        "labels",
        "Kahneman-Tversky optimisation: good and bad responses without pairs",
        "Ethayarajh et al. 2024, arXiv 2402.01306",
        {"reward": "log_ratio", "utility": "kto"},
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    ),
    "bco": Preset(
        "labels",
        "binary classifier optimisation: good and bad responses against the running mean of their rewards",
        "Jung et al. 2024, arXiv 2404.04656",
        {"reward": "log_ratio", "utility": "bco"},
        {"beta": 0.1},
        "TRL",
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
    parts: dict[str, list[AnyPart | None]] = {}
    flat: dict[tuple[str, int], Part] = {}  # parts whose options stand beside `kind`
    for role in dict.fromkeys((*ROLES[preset.form], *preset.parts)):
        choice = preset.parts.get(role)
        if role in ROLES[preset.form]:
            choice = given.pop(role, choice)
        if choice is None:
            continue
        if role in _TERMS and role in replaced:
            parts[role] = [*_terms(role, choice, f"{where}.{role}")]
            continue
        parts[role] = []
        for place, item in enumerate(choice if role in _TERMS else [choice]):
            if isinstance(item, Mapping):
                parts[role].append(_nested(role, item, f"{where}.{role}"))
            else:
                parts[role].append(None)
                flat[role, place] = _named(role, item, f"{where}.{role}")

    _check_names(given, kind, flat.values(), preset, where)
    for (role, place), part in flat.items():
        options = part.options.model_fields
        # A part that the configuration named brings its own defaults.
        defaults = preset.options if role not in replaced else {}
        values = {name: value for name, value in {**defaults, **given}.items() if name in options}
        parts[role][place] = part.set(values, where).made()
    made = {role: tuple(found) if role in _TERMS else found[0] for role, found in parts.items()}
    return CLASSES[preset.form](name=kind, **made)


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


_MEANINGLESS: Mapping[tuple[Form, str], str] = {
    ("lists", "weights"): "weights are of single pairs; the weight of a record counts in every objective",
    ("lists", "link"): "all_pairs takes link as an option of the ranking",
    ("labels", "noise"): "a correction needs the loss of the exchanged pair, and a single response has none",
    ("labels", "weights"): "weights are of single pairs; the weight of a record counts in every objective",
    ("demonstrations", "noise"): "a demonstration has no label that could be wrong",
    ("demonstrations", "weights"): "weights are of single pairs; the weight of a record counts in every objective",
}
"""Why roles are missing in some forms."""


def _check_names(given: Mapping[str, Any], kind: str, flat: Iterable[Part], preset: Preset, where: str) -> None:
    """Refuse options that none of the chosen parts takes."""
    applicable = {*ROLES[preset.form], *(name for part in flat for name in part.options.model_fields)}
    everywhere = {
        *CATALOGUE,
        *(name for parts in CATALOGUE.values() for part in parts.values() for name in part.options.model_fields),
    }
    for name in given:
        if name in applicable:
            continue
        if name in everywhere:
            why = f" ({_MEANINGLESS[preset.form, name]})" if (preset.form, name) in _MEANINGLESS else ""
            raise OptionError(
                f"{where}.{name} does not apply to '{kind}', whose options are: {', '.join(sorted(applicable))}{why}"
            )
        raise OptionError(unknown(f"option of {where}", name, applicable))
