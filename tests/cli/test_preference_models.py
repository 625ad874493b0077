"""What a user does from the command line with preference models: votes, follow-ups, contexts, style, benchmarks."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prefkit.assets import comparisons_path
from prefkit.cli import app
from prefkit.comparisons import Comparison, Winner, load_comparisons, write_comparisons
from prefkit.errors import OptionError, PrefkitError

runner = CliRunner()


def run(*arguments: object) -> Result:
    return runner.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def pair(number: int, rewards: list[float], winner: int = 0) -> Comparison:
    return Comparison((f"p{number}",), ("a", "b"), Winner(winner), extra={"rewards": rewards})


def test_strength_of_labels_and_flips(tmp_path: Path) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    write_comparisons([pair(0, [2.0, 0.0]), pair(1, [0.0, 1.0]), pair(2, [0.0, 3.0], winner=1)], files[0])
    write_comparisons([pair(0, [4.0, 0.0]), pair(1, [0.0, 3.0]), pair(2, [0.0, 1.0], winner=1)], files[1])
    output = tmp_path / "out.jsonl"
    done = run("data", "strength", *files, "--flip", "0.4", "--groups", "3", "--output", output)
    assert "33.3% of the labels have negative strength; 1 flipped" in done.stdout
    found = list(load_comparisons(str(output)))
    assert [c.judgement for c in found] == [Winner(0), Winner(1), Winner(1)]
    assert [c.extra["strength_mean"] for c in found] == [3.0, 2.0, 2.0]
    assert [c.extra["strength_std"] for c in found] == [1.0, 1.0, 1.0]
    assert [c.extra["rewards"] for c in found] == [[3.0, 0.0], [0.0, 2.0], [0.0, 2.0]]
    assert [c.extra["strength_group"] for c in found] == [2, 0, 1]
    assert [c.extra["flipped"] for c in found] == [False, True, False]


def test_files_of_a_vote_must_belong_together(tmp_path: Path) -> None:
    one, two, short = (tmp_path / name for name in ("one.jsonl", "two.jsonl", "short.jsonl"))
    write_comparisons([pair(0, [2.0, 0.0]), pair(1, [0.0, 1.0])], one)
    write_comparisons([pair(0, [2.0, 0.0]), pair(7, [0.0, 1.0])], two)
    write_comparisons([pair(0, [2.0, 0.0])], short)
    with pytest.raises(PrefkitError, match=r"two.jsonl:2: is another comparison than .*one.jsonl:2"):
        run("data", "strength", one, two, "--output", tmp_path / "out.jsonl")
    with pytest.raises(PrefkitError, match=r"one.jsonl:2 is not in all of them"):
        run("data", "strength", one, short, "--output", tmp_path / "out.jsonl")
    with pytest.raises(OptionError, match="is a file that is read"):
        run("data", "strength", one, "--output", one)


def test_candidates_are_rewarded_by_follow_ups_and_mined(tmp_path: Path) -> None:
    candidates, bank = tmp_path / "candidates.jsonl", tmp_path / "bank.json"
    rows = [{"prompt": "Once upon a time", "candidates": [" there was a cat.", " zxqv zxqv.", " a dog ran."]}]
    candidates.write_text("\n".join(map(json.dumps, rows)))
    bank.write_text(json.dumps({"story": {"positive": ["The end."], "negative": ["What?", "No."]}}))
    rewarded, pairs = tmp_path / "rewarded.jsonl", tmp_path / "pairs.jsonl"
    run(
        *("score", "builtin", candidates, "--followups", bank),
        *("--rewards-into", rewarded, "--output", tmp_path / "scores.jsonl"),
    )
    line = json.loads((tmp_path / "scores.jsonl").read_text())
    rewards = [response["reward"] for response in line["responses"]]
    assert rewards == [response["story"] for response in line["responses"]]
    assert "1 pairs" in run("data", "mine", rewarded, "--output", pairs).stdout
    (mined,) = load_comparisons(str(pairs))
    texts = rows[0]["candidates"]
    assert mined.responses == (texts[rewards.index(max(rewards))], texts[rewards.index(min(rewards))])
    assert mined.strength == pytest.approx(max(rewards) - min(rewards))
    assert "0 pairs" in run("data", "mine", rewarded, "--output", pairs, "--min-gap", "1000").stdout


def test_a_bank_that_is_none_is_refused(tmp_path: Path) -> None:
    bank = tmp_path / "bank.json"
    bank.write_text('{"c": {"positive": [], "negative": ["no"]}}')
    file = comparisons_path("test")
    with pytest.raises(OptionError, match=r"bank.json: the positive follow-ups of 'c' must be a list"):
        run("score", "builtin", file, "--followups", bank, "--output", tmp_path / "scores.jsonl")
    with pytest.raises(OptionError, match="--tokens does not apply"):
        run("score", "builtin", file, "--followups", "default", "--tokens", "--output", tmp_path / "s.jsonl")


def test_a_benchmark_by_likelihood_implicit_reward_judge_and_follow_ups(tmp_path: Path) -> None:
    file = tmp_path / "hhh.jsonl"
    texts = [(" there was a little cat.", " qq zz qq."), (" the dog was happy.", " xx xx xx.")]
    file.write_text(
        "\n".join(
            json.dumps({"id": n, "subset": "helpful", "prompt": "Once upon a time", "chosen": good, "rejected": bad})
            for n, (good, bad) in enumerate(texts)
        )
    )
    output = tmp_path / "out.json"
    done = run("evaluate", "builtin", file, "--benchmark", "hhh", "--output", output)
    assert "builtin (likelihood) on hhh" in done.stdout
    written = json.loads(output.read_text())
    assert written["subsets"]["helpful"]["accuracy"]["mean"] == 1.0
    equal = run("evaluate", "builtin", file, "--benchmark", "hhh", "--reference", "builtin", "--output", output)
    assert "(implicit)" in equal.stdout
    assert json.loads(output.read_text())["subsets"]["helpful"]["accuracy"]["mean"] == 0.5
    for how in ("judge", "followups"):
        more = ("--followups", "default") if how == "followups" else ()
        run("evaluate", "builtin", file, "--benchmark", "hhh", "--as", how, *more, "--output", output)
        assert json.loads(output.read_text())["subsets"]["helpful"]["items"] == 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--benchmark", "hhh", "--as", "reward"), "--as reward does not apply to a language model"),
        (("--benchmark", "hhh", "--as", "implicit"), "--as implicit needs --reference"),
        (("--benchmark", "hh"), "unknown benchmark 'hh'; did you mean 'hhh'"),
        (("--as", "judge"), "--as goes with --benchmark, --contexts or --style"),
        (("--style", "--contexts", "criterion"), "exclude one another"),
        (("--tie-margin", "1"), "--tie-margin goes with --benchmark"),
        (("--style", "--as", "judge"), "a judge gives no scores"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        run("evaluate", "builtin", comparisons_path("test"), *options)


def test_a_model_that_does_not_read_contexts_is_right_half_of_the_time(tmp_path: Path) -> None:
    file = tmp_path / "rpr.jsonl"
    row = {"prompt": "Tell me", "response_a": "a cat", "response_b": "the dog", "id": "r"}
    file.write_text(json.dumps({**row, "criteria_x": "short", "criteria_y": "long"}))
    chat = tmp_path / "plain.jsonl"
    plain = [
        Comparison(("Once",), (" upon a time.", " zzz."), Winner(side), criterion=context, source="f", line=1)
        for side, context in ((0, "happy"), (1, "sad"))
    ]
    write_comparisons(plain, chat)
    output = tmp_path / "out.json"
    done = run("evaluate", "builtin", chat, "--contexts", "criterion", "--output", output)
    assert "context ignored" in done.stdout
    figures = json.loads(output.read_text())["figures"]
    assert figures["no context"]["mean"] == 0.5
    assert json.loads(output.read_text())["reversals"] == 1
    assert [c.criterion for c in load_comparisons(str(file))] == ["short", "long"]
    assert [c.judgement for c in load_comparisons(str(file))] == [Winner(0), Winner(1)]


def test_style_is_taken_out_of_a_ranking(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    done = run("evaluate", "builtin", comparisons_path("test"), "--style", "--limit", "40", "--output", output)
    assert "weight of tokens" in done.stdout
    figures = json.loads(output.read_text())["figures"]
    assert figures["loss, style fitted too (nats)"] <= figures["loss, scale fitted (nats)"] + 1e-6
    assert -1 <= figures["phi of label and length"]["mean"] <= 1


def test_a_reward_on_features_is_fitted_scored_and_explained(tmp_path: Path) -> None:
    file, folder, rewarded = tmp_path / "pairs.jsonl", tmp_path / "reward", tmp_path / "rewarded.jsonl"
    rows = []
    for number in range(60):
        values = [{"relevance": (number * 7 + side * 3) % 6, "tone": (number * 5 + side) % 6} for side in (0, 1)]
        if values[0]["relevance"] == values[1]["relevance"]:
            continue
        winner = int(values[1]["relevance"] > values[0]["relevance"])
        extra = {"features": values}
        rows.append(Comparison((f"p{number}",), ("one two", "three"), Winner(winner), extra=extra))
    write_comparisons(rows, file)
    done = run("features", "fit", file, "--features", "relevance,tone,words:0:10", "--output", folder)
    assert "mean of the features" in done.stdout
    explained = run("features", "explain", folder).stdout
    assert explained.index("relevance") < explained.index("tone")
    run("features", "score", folder, file, "--output", rewarded)
    right = [
        c.extra["rewards"][c.judgement.index] > c.extra["rewards"][1 - c.judgement.index]
        for c in load_comparisons(str(rewarded))
    ]
    assert sum(right) >= 0.9 * len(right)
    hhh, output = tmp_path / "hhh.jsonl", tmp_path / "out.json"
    items = [
        {"prompt": "p", "chosen": "a b c", "rejected": "a", "subset": "x"},
        {"prompt": "q", "chosen": "", "rejected": "b"},
    ]
    hhh.write_text("\n".join(json.dumps({**item, "features": None}) for item in items))
    words = tmp_path / "words"
    length = [Comparison((f"p{n}",), ("a b c d", "a"), Winner(0)) for n in range(4)]
    write_comparisons(length, file)
    run("features", "fit", file, "--features", "words:0:10", "--output", words, "--held-out", "0")
    assert "1 items set aside" in " ".join(
        run("evaluate", words, hhh, "--benchmark", "hhh", "--output", output).stdout.split()
    )
    assert json.loads(output.read_text())["subsets"]["x"]["accuracy"]["mean"] == 1.0
    with pytest.raises(OptionError, match="a reward on features is measured with --benchmark"):
        run("evaluate", words, hhh)
    with pytest.raises(OptionError, match="a range is name:low:high, got 'words:0'"):
        run("features", "fit", file, "--features", "words:0", "--output", folder)
    with pytest.raises(OptionError, match="holds no domain reward"):
        run("features", "explain", tmp_path)


def test_missing_features_are_set_aside_with_place_and_name(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    good = [
        Comparison((f"p{n}",), ("a", "b"), Winner(0), extra={"features": [{"tone": 5}, {"tone": n % 4}]})
        for n in range(6)
    ]
    bad = Comparison(("q",), ("a", "b"), Winner(0), extra={"features": [{"tone": 9}, {"tone": 1}]})
    write_comparisons([*good, bad], file)
    done = run("features", "fit", file, "--features", "tone", "--output", tmp_path / "m", "--held-out", "0")
    said = " ".join(done.stdout.split())
    assert "1 comparisons set aside" in said
    assert "field 'tone': response 0: must lie in [0, 5], got 9" in said


@pytest.mark.slow
def test_a_scaling_study_trains_and_fits_laws(tmp_path: Path) -> None:
    config = tmp_path / "rm.yaml"
    config.write_text(
        f"model: {{kind: reward}}\ndata: {{path: '{comparisons_path('train')}'}}\noutput: {tmp_path / 'study'}\n"
        "training: {batch_size: 8, learning_rate: 1.0e-4}\nreport: {samples: 0}\n"
    )
    tests = tmp_path / "test.jsonl"
    write_comparisons(list(load_comparisons(str(comparisons_path("test")), limit=12)), tests)
    done = run("scaling", config, "--sizes", "8,16,24", "--test", f"own={tests}")
    assert "Power laws" in done.stdout
    written = json.loads((tmp_path / "study" / "result.json").read_text())
    assert written["sizes"] == [8, 16, 24]
    assert len(written["losses"]["own"]["builtin"]) == 3
    assert written["trends"]["own"] in ("scaling", "none")
    assert not list((tmp_path / "study").glob("model-*"))
    with pytest.raises(OptionError, match="at least 3 different sizes"):
        run("scaling", config, "--sizes", "8,16", "--test", f"own={tests}")
    with pytest.raises(OptionError, match="--test takes family=file"):
        run("scaling", config, "--sizes", "8,16,24", "--test", "own")
    with pytest.raises(OptionError, match=r"set model\.kind=reward"):
        run("scaling", config, "--sizes", "8,16,24", "--test", f"own={tests}", "--set", "model.kind=lm")
