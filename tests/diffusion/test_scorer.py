from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from prefkit import diffusion as d
from prefkit.comparisons import Comparison
from prefkit.comparisons.formats.images import image
from prefkit.comparisons.rows import user
from prefkit.diagnostics import evaluate
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import DrawsNoise, Scorer, make_objective
from prefkit.training import Run, TrainingOptions, fit
from tests.diffusion import digits

FAST = {"batch_size": 32, "learning_rate": 3e-4, "progress": False, "save_every": 0}


def inputs(scorer: d.DiffusionScorer, count: int = 4) -> dict[str, Any]:
    return scorer.collate([scorer.encode(each) for each in digits.comparisons(count)])


def trained(scorer: d.DiffusionScorer, objective: Any, folder: Path, data: Any = None, **more: Any) -> Any:
    options = TrainingOptions(**{**FAST, "epochs": 3, **more.pop("options", {})})
    data = digits.comparisons(192) if data is None else data
    return fit(
        scorer, data, make_objective(objective), output=folder / "run", options=options, cache=folder / "c", **more
    )


def test_it_is_a_scorer_that_draws() -> None:
    scorer = digits.scorer()
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, DrawsNoise)


def test_scores_are_halved_negative_errors_of_one_draw_for_both() -> None:
    scorer = digits.scorer({"empty_prompts": 0.0})
    scorer.use_reference(True)
    scorer.train()
    batch = inputs(scorer)
    seen: list[tuple[torch.Tensor, ...]] = []

    def model(x_t: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append((x_t, t, cond["caption"]))
        return torch.zeros_like(x_t)

    scorer.denoiser.forward = model
    scores = scorer(batch)
    x_t, t, caption = seen[0]
    assert t.reshape(4, 2).diff().abs().sum() == 0
    assert torch.equal(caption, batch["cond caption"][batch["owner"]])
    alpha, sigma = digits.SCHEDULE.levels(t, x_t)
    noise = (x_t - alpha * batch["x0"]) / sigma
    torch.testing.assert_close(noise[0::2], noise[1::2], atol=1e-3, rtol=0)
    torch.testing.assert_close(scores.policy_logps, -0.5 * noise.square().flatten(1).mean(1), atol=1e-3, rtol=0)
    assert scores.ref_logps is not None


def test_policy_and_reference_agree_before_training() -> None:
    scorer = digits.scorer()
    scorer.use_reference(True)
    scores = scorer(inputs(scorer))
    torch.testing.assert_close(scores.policy_logps, scores.ref_logps)
    assert scores.policy_logps.requires_grad
    assert not scores.ref_logps.requires_grad


def test_draws_follow_from_the_update_and_the_pair_alone() -> None:
    scorer = digits.scorer().train()
    data = [scorer.encode(each) for each in digits.comparisons(4)]

    def scores(*places: int) -> torch.Tensor:
        return scorer(scorer.collate([data[place] for place in places])).policy_logps.detach()

    scorer.begin(3)
    together = scores(0, 1, 2, 3)
    torch.testing.assert_close(scores(2, 0), together[[4, 5, 0, 1]])
    scorer.begin(4)
    assert not torch.allclose(scores(0, 1, 2, 3), together)
    scorer.begin(3)
    torch.testing.assert_close(scores(0, 1, 2, 3), together)


def test_evaluation_draws_the_same_whatever_the_update() -> None:
    scorer = digits.scorer().eval()
    batch = inputs(scorer)
    first = scorer(batch).policy_logps
    scorer.begin(9)
    torch.testing.assert_close(scorer(batch).policy_logps, first)
    torch.testing.assert_close(scorer.reference(batch).policy_logps, first)


def test_prompts_are_left_out_in_training_only() -> None:
    seen: list[torch.Tensor] = []
    scorer = digits.scorer({"empty_prompts": 1.0})
    plain = scorer.denoiser.forward

    def spy(x_t: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(cond["caption"])
        return plain(x_t, t, cond)

    scorer.denoiser.forward = spy
    scorer.train()(inputs(scorer))
    scorer.eval()(inputs(scorer))
    assert (seen[0] == 10).all()
    assert (seen[1] < 10).all()


@pytest.mark.parametrize(
    "options",
    [
        {"latents": "ddim", "inversion": {"steps": 3, "eta": 0.1}, "inversion_guidance": 2.0},
        {"latents": "ddim", "inversion": {"steps": 5, "grid": "released"}},
        {"latents": "renoise", "inversion": {"steps": 3}, "inverter": "reference"},
        {"shared_noise": False, "noise_offset": 0.1, "input_perturbation": 0.1},
        {"weighting": "min_snr", "convention": "paper", "first_step": 5, "last_step": 20},
        {"weighting": "snr", "convention": "diffusers", "times": "refiner"},
    ],
)
def test_every_way_of_scoring_has_gradients_and_draws_again_the_same(options: dict[str, Any]) -> None:
    scorer = digits.scorer(options).train()
    scorer.use_reference(True)
    batch = inputs(scorer)
    scores = scorer(batch)
    scores.policy_logps.sum().backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in scorer.parameters())
    torch.testing.assert_close(scorer(batch).policy_logps, scores.policy_logps)


def test_conventions_scale_scores() -> None:
    found = {}
    for convention in ("released", "diffusers", "paper"):
        scorer = digits.scorer({"convention": convention}).eval()
        scores = scorer(inputs(scorer))
        found[convention] = scores.policy_logps
        assert scores.lengths.unique().tolist() == [64 if convention == "paper" else 1]
    torch.testing.assert_close(found["diffusers"], 2 * found["released"])
    torch.testing.assert_close(found["paper"], 50 * 64 * found["diffusers"])


OBJECTIVES: list[dict[str, Any]] = [
    {"kind": "dpo", "beta": 2000.0},
    {"kind": "ipo", "beta": 20.0},
    {"kind": "rdpo", "beta": 2000.0, "flip_rate": 0.1},
    {"kind": "lcpo", "beta": 2000.0},
    {"kind": "madpo", "beta": 2000.0},
    {"kind": "smpo", "beta": 2000.0},
    {"kind": "kto", "beta": 1000.0},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o["kind"])
def test_objectives_for_text_align_images(objective: dict[str, Any], tmp_path: Path) -> None:
    scorer = digits.scorer()
    data = [replace(each, extra={"rewards": [1.0, 0.0]}) for each in digits.comparisons(192)]
    result = trained(scorer, objective, tmp_path, data)
    assert result.steps == 18
    held_out = evaluate(scorer, digits.comparisons(64, seed=5), reference=True)
    assert held_out.summary["reward_accuracy"].mean > 0.65
    weights = load_file(result.run.model / "denoiser.safetensors")
    assert set(weights) == set(scorer.denoiser.state_dict())


def test_aligned_digits_have_more_ink(tmp_path: Path) -> None:
    scorer = digits.scorer()
    before = digits.drawn(scorer.denoiser, 100).mean()
    trained(scorer, {"kind": "dpo", "beta": 2000.0}, tmp_path)
    assert digits.drawn(scorer.denoiser, 100).mean() > before + 0.05


def test_a_resumed_run_has_the_same_numbers(tmp_path: Path) -> None:
    how: dict[str, Any] = {"options": {"save_every": 4}}
    whole = digits.scorer()
    trained(whole, "dpo", tmp_path / "whole", **how)
    first = digits.scorer()
    trained(first, "dpo", tmp_path / "cut", **how)
    run = Run(tmp_path / "cut" / "run")
    for folder in sorted(run.checkpoints.glob("checkpoint-*"))[-1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = digits.scorer()
    trained(again, "dpo", tmp_path / "cut", resume=True, **how)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_an_adapter_is_its_own_reference(tmp_path: Path) -> None:
    base = copy.deepcopy(digits.pretrained())
    policy = get_peft_model(base, LoraConfig(r=4, target_modules=["first", "second", "last"]))
    scorer = d.DiffusionScorer(policy, digits.SCHEDULE, d.PixelCodec((8, 8), 1, digits.CAPTIONS))
    batch = inputs(scorer)
    before = scorer.eval().reference(batch).policy_logps
    trained(scorer, {"kind": "dpo", "beta": 2000.0}, tmp_path, options={"learning_rate": 1e-3})
    scorer.eval()
    torch.testing.assert_close(scorer.reference(batch).policy_logps, before)
    assert not torch.allclose(scorer(batch).policy_logps, before)


def test_the_reference_has_no_dropout_of_the_adapter() -> None:
    config = LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False, target_modules=["first", "second", "last"])
    policy = get_peft_model(copy.deepcopy(digits.pretrained()), config)
    scorer = d.DiffusionScorer(policy, digits.SCHEDULE, d.PixelCodec((8, 8), 1, digits.CAPTIONS)).train()
    plain = digits.scorer({"draws": 4}).train()
    batch = inputs(scorer)
    torch.testing.assert_close(scorer.reference(batch).policy_logps, plain.reference(batch).policy_logps)
    assert scorer.denoiser.training
    assert all(weight.requires_grad for name, weight in policy.named_parameters() if "lora" in name)
    assert not torch.allclose(scorer(batch).policy_logps, scorer(batch).policy_logps)


def test_a_reference_that_was_trained_is_refused() -> None:
    scorer = digits.scorer()
    batch = inputs(scorer)
    key = scorer.reference_key()
    with torch.no_grad():
        next(scorer.denoiser.parameters()).add_(1.0)
    with pytest.raises(PrefkitError, match="has been trained since it was loaded"):
        scorer.reference(batch)
    scorer.refresh_reference()
    assert scorer.reference_key() != key
    with pytest.raises(OptionError, match="must not require gradients"):
        d.DiffusionScorer(digits.pretrained(), digits.SCHEDULE, scorer.codec, digits.scorer().denoiser)


def pair(prompt: Any, *contents: Any, **more: Any) -> Comparison:
    return Comparison.pair(prompt, *(image(each) for each in contents), **more)


def good(**size: int) -> bytes:
    return digits.png(torch.zeros(1, size.get("height", 8), size.get("width", 8)))


CUT = digits.png(digits.digits()[0][0])[:70]
BAD = [
    (pair(user("the digit 1"), good(), b"no image"), r"field 'responses\[1\]': is no image that can be read"),
    (pair(user("the digit 1"), CUT, good()), r"field 'responses\[0\]': the image is damaged or cut off"),
    (pair(user("the digit 1"), good(), "none.png"), r"there is no image .*none\.png"),
    (pair(user("the digit 1"), good(), "http://x.org/a.png"), "images are not fetched"),
    (pair(user("the digit 1"), good(), "data:image/png;base64,@"), "is no image in base64"),
    (pair(user("the digit 1"), good(), 7), "must be the bytes or the path of an image, got int"),
    (pair(user("the digit 1"), good(), good(width=9)), "different sizes, 8 x 8 and 9 x 8"),
    (pair(user("the digit x"), good(), good()), "the model knows no 'the digit x'; it knows the digit 0, "),
    (pair(user(" "), good(), good()), "field 'prompt': the caption is missing"),
    (Comparison.pair("the digit 1", "words", "others"), r"field 'responses\[0\]': must be one image, got none"),
    (
        Comparison((user("a"), user("b")), (image(good()), image(good())), Comparison.pair("a", "b", "c").judgement),
        "images are compared for one caption",
    ),
]


@pytest.mark.parametrize(("comparison", "message"), BAD)
def test_bad_comparisons(comparison: Comparison, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        digits.scorer().encode(comparison)


def test_bad_rows_are_set_aside_and_the_others_train(tmp_path: Path) -> None:
    data = [*digits.comparisons(64), replace(BAD[1][0], source="digits.parquet", line=65)]
    result = trained(digits.scorer(), "dpo", tmp_path, data)
    assert (result.rows, result.skipped) == (64, 1)
    (listed,) = result.run.skipped
    assert (listed["source"], listed["line"], listed["field"]) == ("digits.parquet", 65, "responses[0]")
    assert "damaged or cut off" in listed["problem"]


def test_paths_are_relative_to_the_file_of_the_comparison(tmp_path: Path) -> None:
    names = [digits.saved(tmp_path, torch.full((1, 8, 8), value), f"{value}.png") for value in (-1.0, 1.0)]
    scorer = digits.scorer()
    encoded = scorer.encode(pair(user("the digit 1"), *names, source=str(tmp_path / "pairs.jsonl")))
    assert scorer.collate([encoded])["x0"].mean((1, 2, 3)).tolist() == [-1.0, 1.0]


def test_images_are_scaled_and_cut_to_the_centre() -> None:
    wide = torch.full((1, 16, 48), -1.0)
    wide[:, :, 16:32] = 1.0
    found = d.to_tensor(d.read_image(digits.png(wide)), (8, 8), 1)
    assert found.shape == (1, 8, 8)
    assert found[:, :, 2:6].min() == 1.0
    colours = d.to_tensor(d.read_image(digits.png(wide)), (8, 8), 3)
    assert torch.equal(colours[0], colours[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_step": 30, "last_step": 20}, "first_step and last_step must lie within 0 and 49, got 30 and 20"),
        ({"last_step": 50}, "must lie within 0 and 49, got 0 and 50"),
        ({"latents": "ddim", "first_step": 0}, "latents: ddim needs first_step of at least 1"),
        ({"times": "few_step"}, "made for 1000 steps, this schedule has 50"),
        ({"latents": "inverted"}, "latents: input should be 'forward', 'ddim' or 'renoise'"),
        ({"draw": 3}, "unknown option 'draw'; did you mean 'draws'"),
        ({"empty_prompts": 1.5}, "empty_prompts must be at most 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        digits.scorer(options)


def test_inversion_needs_a_schedule_that_preserves_variance() -> None:
    flow = d.Schedule.flow_matching(50)
    options = d.ScoreOptions(latents="ddim")
    with pytest.raises(OptionError, match="variance-preserving"):
        d.DiffusionScorer(digits.pretrained(), flow, digits.scorer().codec, options=options)


@pytest.mark.parametrize("objective", ["tdpo1", "reward_model"])
def test_objectives_on_tokens_and_rewards_do_not_apply(objective: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="scores of images have no"):
        trained(digits.scorer(), objective, tmp_path)


def test_mixed_precision_is_close_and_has_gradients() -> None:
    exact, mixed = digits.scorer(), digits.scorer(precision="bf16")
    scores = mixed.train()(inputs(mixed)).policy_logps
    torch.testing.assert_close(scores, exact.train()(inputs(exact)).policy_logps, atol=0.02, rtol=0.02)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in mixed.parameters() if weight.grad is not None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("latents", ["forward", "ddim", "renoise"])
def test_a_device_gives_the_same_scores(latents: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        scorer = digits.scorer({"latents": latents, "inversion": {"steps": 3}}).to(device)
        scorer.use_reference(True)
        scores = scorer.train()({name: each.to(device) for name, each in inputs(scorer).items()})
        scores.policy_logps.sum().backward()
        found.append(scores.policy_logps.detach().cpu())
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
