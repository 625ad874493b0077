"""Methods that other libraries have, against their formulas written out, in the words of TRL's DPOTrainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.test_losses import NAMED
from torch import Tensor

from prefkit.comparisons import Comparison, Label
from prefkit.errors import OptionError
from prefkit.language import load_scorer
from prefkit.objectives import (
    PRESETS,
    LabelScores,
    PairScores,
    TokenScores,
    apo_down,
    apo_zero,
    bco_loss,
    bco_pair,
    discopop,
    dpop,
    exo,
    make_objective,
    nca,
    sppo,
)
from prefkit.training import TrainingOptions, fit

LENGTHS = (torch.tensor([3, 5, 2, 4, 1, 6]), torch.tensor([4, 2, 2, 6, 3, 1]))


def some_tokens(lengths: Tensor, generator: torch.Generator) -> TokenScores:
    policy, ref = -4 * torch.rand(2, int(lengths.sum()), generator=generator, dtype=torch.float64)
    return TokenScores(policy, torch.repeat_interleave(torch.arange(len(lengths)), lengths), ref_logps=ref)


def scored() -> PairScores:
    """Pairs whose summed log-probabilities are those of their tokens."""
    generator = torch.Generator().manual_seed(3)
    tokens = [some_tokens(lengths, generator) for lengths in LENGTHS]

    def sums(values: Any, side: TokenScores) -> Tensor:
        return torch.zeros(6, dtype=torch.float64).index_add(0, side.response, values)

    policy, ref = ([sums(getattr(side, f), side) for side in tokens] for f in ("policy_logps", "ref_logps"))
    return PairScores(*policy, *ref, *LENGTHS, chosen_tokens=tokens[0], rejected_tokens=tokens[1])


def desensitised(s: PairScores, alpha: float) -> Tensor:
    """Token by token: `ld_alpha` of the policy's and the reference's log-probabilities."""
    rows = []
    for row in range(6):
        shared = min(int(s.chosen_lengths[row]), int(s.rejected_lengths[row]))
        sides = []
        for tokens in (s.chosen_tokens, s.rejected_tokens):
            mine = tokens.response == row
            ratio = tokens.policy_logps[mine] - tokens.ref_logps[mine]
            sides.append(ratio[:shared].sum() + alpha * ratio[shared:].sum())
        rows.append(sides[0] - sides[1])
    return torch.stack(rows)


def by_hand(s: PairScores, beta: float) -> dict[str, Tensor]:
    pc, pr, rc, rr = s.policy_chosen_logps, s.policy_rejected_logps, s.ref_chosen_logps, s.ref_rejected_logps
    nc, nr = s.chosen_lengths, s.rejected_lengths
    c, r = pc - rc, pr - rr
    h = c - r
    q, e = torch.sigmoid(beta * h), 1e-3
    m = torch.sigmoid(beta * h / 0.05)
    return {
        "exo": q * (q.log() - math.log(1 - e)) + (1 - q) * ((1 - q).log() - math.log(e)),
        "discopop": (1 - m) * -F.logsigmoid(beta * h) + m * torch.exp(-beta * h),
        "nca": -F.logsigmoid(beta * c) - 0.5 * F.logsigmoid(-beta * c) - 0.5 * F.logsigmoid(-beta * r),
        "bco_pair": -F.logsigmoid(beta * c) - F.logsigmoid(-beta * r),
        "apo_zero": 1 - torch.sigmoid(beta * c) + torch.sigmoid(beta * r),
        "apo_down": torch.sigmoid(beta * c) + 1 - torch.sigmoid(beta * h),
        "sppo": (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2,
        "aot": -F.logsigmoid(beta * (torch.sort(pc - pr)[0] - torch.sort(rc - rr)[0])),
        "aot_unpaired": -F.logsigmoid(beta * (torch.sort(c)[0] - torch.sort(r)[0])),
        "dpop": -F.logsigmoid(beta * (h - 50 * torch.clamp(rc - pc, min=0))),
        "wpo": -F.logsigmoid(beta * h) * torch.exp(pc / nc) * torch.exp(pr / nr),
        "ld_dpo": -F.logsigmoid(beta * desensitised(s, 0.5)),
        "length_dpo": -F.logsigmoid(beta * h + 0.01 * (nc - nr)),
        "dpo_gamma": -F.logsigmoid(beta * ((pc - pr) - 0.1 * (rc - rr))),
    }


@pytest.mark.parametrize("beta", [0.05, 0.7])
@pytest.mark.parametrize("kind", by_hand(scored(), 1.0))
def test_preset_agrees_with_the_formula(kind: str, beta: float) -> None:
    scores = scored()
    losses = make_objective({"kind": kind, "beta": beta})(scores)
    if kind == "aot":  # each quantile's loss stands at its pair
        losses = losses[torch.argsort(scores.policy_chosen_logps - scores.policy_rejected_logps)]
    torch.testing.assert_close(losses, by_hand(scores, beta)[kind], rtol=1e-9, atol=1e-9)


ELSEWHERE = {
    "test_latent": {"lcpo"},
    "test_margin_adaptive": {"madpo"},
    "test_batch_adaptive": {"beta_dpo"},
    "test_judging": {"osp"},
    "test_agreement": {"reward_model_margin"},
    "test_levels": {"mapl"},
    "test_rationales": {"rationale_dpo", "rationale_orpo", "rationale_simpo"},
    "test_values": {"vpo"},
    "test_degree": {"spo"},
    "test_smoothed": {"smpo"},
    "test_token_level": {"tdpo1", "tdpo2", "sparsepo", "mapo"},
}
"""Methods that read more than the scores of whole responses, or hold state, and the module that tests each."""


def test_every_pairwise_preset_has_a_second_implementation() -> None:
    known = {name for name, preset in PRESETS.items() if preset.form == "pairs"}
    assert known == {*by_hand(scored(), 1.0), *NAMED}.union(*ELSEWHERE.values())
    for module, names in ELSEWHERE.items():
        text = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
        assert all(f'"{name}"' in text for name in names), module


@pytest.mark.parametrize("kind", [kind for kind in by_hand(scored(), 1.0) if kind not in ("wpo", "ld_dpo")])
def test_gradcheck(kind: str) -> None:
    scores, objective = scored(), make_objective({"kind": kind, "beta": 0.1})

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objective(replace(scores, policy_chosen_logps=chosen, policy_rejected_logps=rejected))

    inputs = (scores.policy_chosen_logps.requires_grad_(), scores.policy_rejected_logps.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


LINKS: dict[str, Callable[..., Tensor]] = {
    "nca": nca,
    "bco_pair": bco_pair,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "sppo": sppo,
    "dpop": dpop,
    "exo": lambda c, r, **o: exo(c - r, **o),
    "discopop": lambda c, r, **o: discopop(c - r, **o),
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_far_out_in_float32(kind: str) -> None:
    c, r = (torch.tensor(x, requires_grad=True) for x in ([-1e3, -50.0, 0.0, 50.0, 1e3], [1e3, 50.0, 0.0, -50.0, -1e3]))
    losses = LINKS[kind](c, r)
    gradients = torch.autograd.grad(losses.sum(), (c, r))
    assert all(tensor.isfinite().all() for tensor in (losses, *gradients))


def test_exo_wants_a_smoothed_label() -> None:
    with pytest.raises(OptionError, match=r"objective\.epsilon must be greater than 0"):
        make_objective({"kind": "exo", "epsilon": 0.0})


def test_exo_is_least_at_the_smoothed_label() -> None:
    margin = torch.tensor(math.log(0.8 / 0.2) / 0.1, dtype=torch.float64, requires_grad=True)
    loss = exo(margin, beta=0.1, epsilon=0.2)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, margin)[0].item() == pytest.approx(0, abs=1e-12)


def test_sppo_with_probabilities_and_soft_labels_have_one_gradient() -> None:
    scores, beta = scored(), 0.05
    p = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64)
    policy = [scores.policy_chosen_logps.requires_grad_(), scores.policy_rejected_logps.requires_grad_()]
    mixed = make_objective({"kind": "sppo", "beta": beta})(replace(scores, probabilities=p))
    paper = sppo(policy[0] - scores.ref_chosen_logps, policy[1] - scores.ref_rejected_logps, p, beta=beta)
    for one, other in zip(*(torch.autograd.grad(x.sum(), policy) for x in (mixed, paper)), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(mixed - paper, 2 * p * (1 - p) / beta**2)


def test_weights_of_wpo_have_no_gradient() -> None:
    scores = scored()
    chosen = scores.policy_chosen_logps.requires_grad_()
    gradients = [torch.autograd.grad(make_objective(kind)(scores).sum(), chosen)[0] for kind in ("wpo", "dpo")]
    means = scores.policy_chosen_logps / LENGTHS[0] + scores.policy_rejected_logps / LENGTHS[1]
    torch.testing.assert_close(gradients[0], gradients[1] * means.detach().exp())


def test_limits_of_the_length_methods_are_dpo() -> None:
    scores, dpo = scored(), make_objective("dpo")(scored())
    for config in (
        {"kind": "ld_dpo", "tail_weight": 1.0},
        {"kind": "length_dpo", "length_weight": 0.0},
        {"kind": "dpop", "penalty": 0.0, "beta": 0.1},
    ):
        torch.testing.assert_close(make_objective(config)(scores), dpo)


def test_a_longer_chosen_response_leaves_less_to_learn() -> None:
    scores = scored()
    gradient = []
    for more in (0, 50):
        chosen = scores.policy_chosen_logps.detach().clone().requires_grad_()
        longer = replace(scores, policy_chosen_logps=chosen, chosen_lengths=LENGTHS[0] + more)
        gradient.append(torch.autograd.grad(make_objective("length_dpo")(longer).sum(), chosen)[0].abs())
    assert (gradient[1] < gradient[0]).all()


# --- sorted batches


@pytest.mark.parametrize("kind", ["aot", "aot_unpaired"])
def test_label_smoothing_of_sorted_batches(kind: str) -> None:
    """TRL's label_smoothing acts on each quantile; exchanging all pairs does the same."""
    scores, e = scored(), 0.2
    smooth = make_objective({"kind": kind, "beta": 0.3, "noise": {"kind": "conservative", "flip_rate": e}})(scores)
    loss = by_hand(scores, 0.3)[kind]
    delta = -torch.log(torch.expm1(loss))  # the loss is softplus(-delta)
    expected = -F.logsigmoid(delta) * (1 - e) - F.logsigmoid(-delta) * e
    torch.testing.assert_close(smooth.sort()[0], expected.sort()[0])


@pytest.mark.parametrize("kind", ["aot", "aot_unpaired"])
def test_what_single_pairs_carry_is_refused_where_batches_are_sorted(kind: str) -> None:
    with pytest.raises(OptionError, match=f"link '{kind}' sorts a batch.*weights of single pairs do not apply"):
        make_objective({"kind": kind, "weights": "wpo"})
    objective, ones = make_objective(kind), torch.ones(6)
    with pytest.raises(OptionError, match="soft labels do not apply; leave them out of the data"):
        objective(replace(scored(), probabilities=0.9 * ones))
    with pytest.raises(OptionError, match="weights do not apply; leave them out of the data"):
        objective(replace(scored(), weights=ones))


@pytest.mark.parametrize(
    "change", [{"reward": "log_prob"}, {"reward": "average_log_ratio"}, {"divergence": "forward_kl"}]
)
def test_aot_needs_whole_log_ratios(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="link 'aot' adds the reference's log-probabilities back to the reward"):
        make_objective({"kind": "aot", **change})


def test_a_single_pair_leaves_dpo() -> None:
    scores = scored()
    one = PairScores(*(getattr(scores, f)[:1] for f in list(PairScores.__dataclass_fields__)[:6]))
    for kind in ("aot", "aot_unpaired"):
        torch.testing.assert_close(make_objective(kind)(one), make_objective("dpo")(one))


# --- unpaired


def labelled(policy: Tensor) -> LabelScores:
    return LabelScores(policy, torch.tensor([True, False, True]), torch.tensor([-4.0, -6.0, -5.0]))


def test_bco_against_the_running_mean_by_hand() -> None:
    objective = make_objective({"kind": "bco", "beta": 0.5})
    first = torch.tensor([-3.0, -8.0, -5.0], requires_grad=True)  # rewards 1, -2, 0
    second = torch.tensor([0.0, -5.0, -4.0], requires_grad=True)  # rewards 4, 1, 1
    for policy, mean in ((first, -1 / 3), (second, (-1 + 6) / 6)):
        rewards = policy.detach() - torch.tensor([-4.0, -6.0, -5.0])
        signs = torch.tensor([1.0, -1.0, 1.0])
        expected = -F.logsigmoid(signs * 0.5 * (rewards - mean))
        torch.testing.assert_close(objective(labelled(policy)), expected)
        torch.testing.assert_close(bco_loss(rewards, mean, signs > 0, beta=0.5), expected)
    assert objective.summary() == {"bco": {"reference_point": pytest.approx(5 / 6)}}
    assert objective.figures()["reference_point"].tolist() == pytest.approx([5 / 6] * 3)


def test_evaluation_does_not_move_the_running_mean() -> None:
    objective = make_objective("bco")
    objective(labelled(torch.tensor([-3.0, -8.0, -5.0], requires_grad=True)))
    before = objective.summary()
    with torch.no_grad():
        objective(labelled(torch.tensor([-30.0, -8.0, -5.0])))
    assert objective.summary() == before


def test_the_running_mean_is_that_of_all_processes_and_is_restored() -> None:
    objective, other = make_objective("bco"), make_objective("bco")
    objective.prepare(total=lambda tensor: 2 * tensor)
    objective(labelled(torch.tensor([-3.0, -8.0, -5.0], requires_grad=True)))
    assert objective.summary()["bco"]["reference_point"] == pytest.approx(-1 / 3)
    other.load_state_dict(objective.state_dict())
    assert other.summary() == objective.summary()
    assert other.stateful[0].count.item() == 6


# --- training


OPTIONS = TrainingOptions(epochs=4, batch_size=3, learning_rate=1e-3, warmup=0, log_every=1, progress=False)
PAIRS = [
    Comparison.pair(prompt, chosen, rejected, source="p", line=line)
    for line, (prompt, chosen, rejected) in enumerate(
        [
            ("Name a colour. ", "Blue.", "Er, dunno, ask somebody."),
            ("Say hello. ", "Hello to you.", "No."),
            ("Name a tree. ", "An oak.", "Ugh."),
        ],
        1,
    )
]
LABELS = [
    Comparison(pair.prompts, (response,), Label(good), source="l", line=line)
    for line, pair in enumerate(PAIRS, 1)
    for response, good in zip(pair.responses, (True, False), strict=True)
]


@pytest.mark.parametrize("kind", ["ld_dpo", "wpo", "aot", "sppo", "bco"])
def test_methods_with_hooks_of_their_own_train(kind: str, tmp_path: Path) -> None:
    done = fit(
        load_scorer("builtin"),
        LABELS if kind == "bco" else PAIRS,
        make_objective(kind),
        output=tmp_path / "run",
        options=OPTIONS,
        cache=tmp_path / "cache",
    )
    losses = [line["loss"] for line in done.run.metrics]
    assert losses[-1] < losses[0]


def test_paired_methods_say_that_labels_are_not_enough(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="a label on a single response cannot give pairs"):
        fit(load_scorer("builtin"), LABELS, make_objective("nca"), output=tmp_path / "run", options=OPTIONS)
