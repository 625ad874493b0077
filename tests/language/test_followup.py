"""Follow-ups and judges: log-probabilities against the model's own, spans in encoded chats, bad input."""

import math
from pathlib import Path

import pytest
import torch

from prefkit.comparisons import Comparison, Ranking, RecordError, Winner
from prefkit.errors import OptionError, PrefkitError
from prefkit.language import (
    BUILTIN,
    DEFAULT_BANK,
    FollowupBank,
    FollowupScorer,
    LanguageJudge,
    LanguageScorer,
    feedback_loss,
    flr_reward,
    followup_logps,
    load_scorer,
    mean_logps,
    official_code_score,
    span_logps,
    total_reward,
)
from prefkit.language.followup import context_turns, conversation

from .models import build, words

TEMPLATE = (
    "{% for m in messages %}{{ 'w90' if m['role'] == 'user' else 'w91' }} {{ m['content'] }} w92 {% endfor %}"
    "{% if add_generation_prompt %}w91 {% endif %}"
)


@pytest.fixture(scope="module")
def chat() -> LanguageScorer:
    tokenizer = words()
    tokenizer.chat_template = TEMPLATE
    return LanguageScorer(build("llama"), tokenizer).eval()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TURNS = (turn("user", "w5 w6"), turn("assistant", "w7"))


def test_tokens_of_a_follow_up_are_found_in_the_whole_chat(chat: LanguageScorer) -> None:
    span = chat.encoder.span(TURNS, "w8 w9")
    assert (span.before, span.tokens, span.rest) == ([90, 5, 6, 92, 91, 7, 92, 90], [8, 9], [92])
    text = chat.encoder.span("w5 w6 ", "w8")
    assert (text.tokens, text.rest) == ([8], [])


def test_log_probabilities_are_those_of_the_models_own_logits(chat: LanguageScorer) -> None:
    found = followup_logps(chat, TURNS, ["w8 w9", "w10"], include_end=True)
    for text, ids in (("w8 w9", [8, 9, 92]), ("w10", [10, 92])):
        row = torch.tensor([[90, 5, 6, 92, 91, 7, 92, 90, *ids]])
        with torch.no_grad():
            logits = chat.policy(input_ids=row).logits[0]
        torch.testing.assert_close(found[text], span_logps(logits, torch.tensor(ids), 8), atol=1e-4, rtol=1e-4)
    without = followup_logps(chat, TURNS, ["w8 w9"])["w8 w9"]
    torch.testing.assert_close(without, found["w8 w9"][:2], atol=1e-5, rtol=1e-5)


BANK = FollowupBank({"c": {"positive": ["w8", "w9 w10"], "negative": ["w11"]}})


def test_the_reward_of_a_comparison_is_that_of_its_parts(chat: LanguageScorer) -> None:
    record = Comparison((TURNS[:1],), ((turn("assistant", "w7"),), (turn("assistant", "w12"),)), Winner(0))
    for reduction in ("mean", "sum"):
        found = FollowupScorer(chat, BANK, reduction=reduction).rewards(record)
        for place, said in enumerate(("w7", "w12")):
            logps = followup_logps(chat, (TURNS[0], turn("assistant", said)), ["w8", "w9 w10", "w11"])
            own = [getattr(logps[text], reduction)() for text in ("w8", "w9 w10", "w11")]
            assert found.total[place] == pytest.approx(float((own[0] + own[1]) / 2 - own[2]), rel=1e-4)
        assert found.categories["c"] == found.total


def test_sides_weights_and_the_released_scripts_score(chat: LanguageScorer) -> None:
    bank = FollowupBank({**BANK.categories, "d": {"positive": ["w20"], "negative": ["w21"]}})
    record = Comparison((TURNS[:1],), ((turn("assistant", "w7"),), (turn("assistant", "w12"),)), Winner(0))
    both, good, bad = (FollowupScorer(chat, bank, sides=s).rewards(record) for s in ("both", "positive", "negative"))
    assert both.total == pytest.approx([p + n for p, n in zip(good.total, bad.total, strict=True)], rel=1e-4)
    only = FollowupScorer(chat, bank, category_weights={"d": 0.0}).rewards(record)
    assert only.total == pytest.approx(both.categories["c"])
    released = FollowupScorer(chat, BANK, mode="official_code").rewards(record)
    row = torch.tensor([[90, 5, 6, 92, 91, 7, 92, 90, 8, 92]])
    with torch.no_grad():
        logits = chat.policy(input_ids=row).logits[0]
    ids = torch.tensor(chat.tokenizer("w8")["input_ids"])
    assert math.isfinite(released.total[0])
    assert float(official_code_score(logits, ids)) == pytest.approx(float(logits[len(logits) - len(ids)][ids].mean()))


def test_switched_roles_take_the_last_question_and_answer() -> None:
    turns, role = context_turns((*TURNS, turn("user", "w5"), turn("assistant", "w6")), "switched")
    assert role == "assistant"
    assert [t["content"] for t in turns][1:] == ["w5", "w6"]
    dropped, _ = context_turns((turn("assistant", "w4"), *TURNS), "user_followup")
    assert dropped == TURNS
    assert context_turns("text", "user_followup") == ("text\n\n", "user")


@pytest.mark.parametrize(
    ("prompt", "response", "problem"),
    [
        (TURNS[:1], (turn("user", "w7"),), "must end with the assistant's response"),
        ((TURNS[0], TURNS[0]), (TURNS[1],), "must take turns, got user before user"),
    ],
)
def test_conversations_that_are_none(prompt: object, response: object, problem: str) -> None:
    with pytest.raises(RecordError, match=problem):
        conversation(prompt, response)  # type: ignore[arg-type]


def test_the_default_bank_is_balanced_and_works_on_plain_text() -> None:
    assert list(DEFAULT_BANK.categories) == [
        "understanding",
        "relevance",
        "correctness",
        "engagingness",
        "informativeness",
        "following",
    ]
    for sides in DEFAULT_BANK.categories.values():
        assert len(sides["positive"]) == len(sides["negative"]) == 5
    assert len(DEFAULT_BANK.texts()) == 60
    scorer = FollowupScorer(load_scorer(BUILTIN), BANK)
    record = Comparison(("Once upon a time",), (" there was a cat.", " the end."), Winner(0), source="f", line=1)
    (found,) = scorer.annotate([record])
    assert len(found.extra["rewards"]) == 2
    assert found.extra["rewards"][0] != found.extra["rewards"][1]


def test_what_is_too_long_is_set_aside_with_its_place() -> None:
    scorer = FollowupScorer(load_scorer(BUILTIN), BANK)
    record = Comparison(("Once upon a time " * 300,), (" a", " b"), Winner(0), source="f", line=7)
    skipped: list[RecordError] = []
    assert list(scorer.annotate([record], skipped)) == []
    assert "f:7: field 'prompt': the conversation has" in str(skipped[0])
    with pytest.raises(RecordError, match="f:7"):
        list(scorer.annotate([record]))


@pytest.mark.parametrize(
    ("bank", "problem"),
    [
        ({}, "at least one category"),
        ({"c": {"positive": ["a"]}}, "needs the sets 'positive' and 'negative'"),
        ({"c": {"positive": ["a"], "negative": []}}, "the negative follow-ups of 'c' must be a list"),
        ({"c": {"positive": "a", "negative": ["b"]}}, "the positive follow-ups of 'c' must be a list"),
        ({"c": {"positive": [" "], "negative": ["b"]}}, "positive follow-up 0 of 'c' must be a text"),
    ],
)
def test_bad_banks(bank: dict[str, object], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        FollowupBank(bank)  # type: ignore[arg-type]


def test_banks_from_files(tmp_path: Path) -> None:
    file = tmp_path / "bank.json"
    file.write_text('{"c": {"positive": ["a"], "negative": ["b"]}}')
    assert FollowupBank.read(file).texts() == ["a", "b"]
    file.write_text("{")
    with pytest.raises(OptionError, match="is no JSON"):
        FollowupBank.read(file)
    with pytest.raises(OptionError, match="No such file"):
        FollowupBank.read(tmp_path / "nowhere.json")


LOGPS, MASK = torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: mean_logps(LOGPS, torch.zeros(1, 2)), "follow-up 0 has no token"),
        (lambda: mean_logps(-LOGPS, MASK), "token 0 of follow-up 0 must have a finite log-probability of at most 0"),
        (lambda: mean_logps(LOGPS * math.inf, MASK), "finite log-probability"),
        (lambda: mean_logps(LOGPS, MASK[:, :1]), "of one shape"),
        (lambda: mean_logps(LOGPS, MASK, "median"), "unknown reduction"),  # type: ignore[arg-type]
        (lambda: flr_reward(LOGPS[:0], MASK[:0], LOGPS, MASK), "there is no positive follow-up"),
        (lambda: flr_reward(LOGPS, MASK, LOGPS, MASK, sides="none"), "unknown sides"),  # type: ignore[arg-type]
        (lambda: total_reward(torch.zeros(2, 0)), r"rewards must be \[responses, categories\]"),
        (lambda: total_reward(torch.zeros(2, 1), torch.zeros(1)), "not all of them 0"),
        (lambda: span_logps(torch.zeros(3, 4), torch.tensor([1]), 0), "do not lie in a sequence of 3"),
        (lambda: span_logps(torch.zeros(3, 4), torch.tensor([1, 1]), 2), "do not lie in a sequence of 3"),
        (lambda: official_code_score(torch.zeros(1, 4), torch.tensor([1, 1])), "must have 1 to 1 tokens"),
        (lambda: feedback_loss(LOGPS, 0 * MASK), "a mask of one shape with a token in it"),
    ],
)
def test_bad_numbers(call: object, problem: str) -> None:
    with pytest.raises(PrefkitError, match=problem):
        call()  # type: ignore[operator]


def test_bad_options(chat: LanguageScorer) -> None:
    for options, problem in (
        ({"role_format": "x"}, "unknown role_format"),
        ({"mode": "x"}, "unknown mode"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"category_weights": {"x": 1.0}}, "unknown category 'x'"),
    ):
        with pytest.raises(OptionError, match=problem):
            FollowupScorer(chat, BANK, **options)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="the switched format needs messages"):
        context_turns("text", "switched")
    with pytest.raises(RecordError, match="needs a question and its answer"):
        context_turns(TURNS[1:], "switched")


def test_a_judge_is_asked_in_both_orders(chat: LanguageScorer) -> None:
    judge = LanguageJudge(chat, "w30 {prompt} w31 {first} w32 {second}")
    record = Comparison((TURNS[:1],), ((turn("assistant", "w7"),), (turn("assistant", "w12"),)), Winner(0))
    (ranked,) = judge([record], [])
    # A and B are unknown words of this tokenizer, so the judge cannot tell them apart.
    assert ranked.margins.shape == (2, 2, 2)
    assert abs(ranked.margins).max() == 0
    asked = judge._asked(record, 1, 0)
    assert asked.prompts[0][0]["content"] == "w30 w5 w6 w31 w12 w32 w7"


def test_a_judge_of_plain_text_prefers_antisymmetrically() -> None:
    judge = LanguageJudge(load_scorer(BUILTIN))
    record = Comparison(("{first} Once",), (" a cat {second}", " zzz", " dog"), Ranking((0, 1, 1)))
    (ranked,) = judge([record], [])
    margins = ranked.margins
    assert margins[0, 1, 0] == -margins[1, 0, 1]
    assert margins[0, 1, 1] == -margins[1, 0, 0]
    assert (margins[1, 2] == 0).all()
    assert margins[0, 1, 0] != 0
    with pytest.raises(OptionError, match=r"must hold \{second\} once"):
        LanguageJudge(load_scorer(BUILTIN), "{prompt} {first}")
