from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from prefkit.comparisons import (
    Comparison,
    InstructionFunction,
    RecordError,
    add_instructions,
    build_inter_pairs,
    build_intra_pairs,
    inter_order,
    intra_valid,
)
from prefkit.comparisons.instructions import FUNCTIONS, inter_companions, intra_companions
from prefkit.errors import OptionError

RESPONSES = [
    "Paris is the capital of France.",
    "no idea, sorry",
    "- one\n- two\n\nAnd then? Nothing, I think!",
    '{"answer": 4}',
    "Ça va très bien.",
    "4",
]
PAIRS = [("What is it?", one, two) for one in RESPONSES for two in RESPONSES if one != two]


def asked(prompt: Any) -> list[str]:
    """The instructions that were added to `What is it?`."""
    return prompt.split("\n")[1:-1]


def function(text: str) -> InstructionFunction:
    """The function that made an instruction, found by building all of them again."""
    found = [
        f
        for f in FUNCTIONS
        for y in RESPONSES
        for flag in (True, False)
        for s in range(20)
        if f.build(y, flag, random.Random(s)) == text
    ]
    return found[0]


@pytest.mark.parametrize("each", FUNCTIONS, ids=lambda each: each.name)
def test_both_forms_of_an_instruction_are_what_they_claim(each: InstructionFunction) -> None:
    built = 0
    for response in RESPONSES:
        for satisfied in (True, False):
            for seed in range(8):
                text = each.build(response, satisfied, random.Random(seed))
                if text is not None:
                    assert each.check(text, response) is satisfied, (text, response)
                    built += 1
    assert built >= 40


@pytest.mark.parametrize(
    ("name", "text", "response", "obeyed"),
    [
        ("words", "Use at most 3 words.", "one two three", True),
        ("words", "Use at least 4 words.", "one two three", False),
        ("sentences", "Use at least 2 sentences.", "Is 3.14 pi? Nearly.", True),
        ("sentences", "Use at most 1 sentences.", "Is 3.14 pi? Nearly.", False),
        ("paragraphs", "Use at least 2 paragraphs.", "a\nb\n\nc", True),
        ("paragraphs", "Use at least 3 paragraphs.", "a\nb\n\nc", False),
        ("bullets", "Use at least 2 bullet points.", "- a\n* b", True),
        ("keyword", 'Use the word "france".', "Paris, France", True),
        ("keyword", 'Do not use the word "france".', "Paris, France", False),
        ("start", 'Start with "Paris,".', "Paris, France", True),
        ("end", 'Do not end with "France".', "Paris, France", False),
        ("json", "Answer in JSON.", "[1, 2]", True),
        ("json", "Do not answer in JSON.", "no", True),
    ],
)
def test_instructions_by_hand(name: str, text: str, response: str, obeyed: bool) -> None:
    (each,) = (f for f in FUNCTIONS if f.name == name)
    assert each.check(text, response) is obeyed


def test_a_response_obeys_all_of_the_better_prompt_and_breaks_some_of_the_worse() -> None:
    found = build_intra_pairs(PAIRS, FUNCTIONS, rng=random.Random(1))
    assert len(found) == 2 * len(PAIRS)
    sizes = Counter()
    for better, worse, response in found[:40]:
        obeys = [[function(text).check(text, str(response)) for text in asked(prompt)] for prompt in (better, worse)]
        assert all(obeys[0])
        assert not all(obeys[1])
        kinds = [function(text).name for text in asked(better)]
        assert len(set(kinds)) == len(kinds) == len(asked(worse))
        sizes[len(kinds)] += 1
    assert set(sizes) == {1, 2, 3, 4}


def test_the_stronger_prompt_has_the_larger_margin() -> None:
    found = build_inter_pairs(PAIRS, FUNCTIONS, rng=random.Random(1))
    new_is_strong = [pair.weak == "What is it?" for pair in found]
    assert 0 < sum(new_is_strong) < len(found) < len(PAIRS)
    for pair, strong in zip(found[:30], new_is_strong, strict=False):
        texts = asked(pair.strong if strong else pair.weak)
        chosen, rejected = (
            sum(function(text).check(text, str(y)) for text in texts) for y in (pair.chosen, pair.rejected)
        )
        assert (chosen > rejected) is strong
        assert chosen != rejected
    kept = build_inter_pairs(PAIRS, FUNCTIONS, rng=random.Random(1), keep_order=True)
    assert all(pair.weak == "What is it?" for pair in kept)


def test_rules_by_hand() -> None:
    satisfied = [True, False, True]
    assert intra_valid(satisfied, [0, 2], [0, 1]) == (True, False)
    assert intra_valid(satisfied, [0, 1], [1]) == (False, True)
    assert intra_valid(satisfied, [1], [0]) == (False, False)
    assert inter_order((2, 0), (1, 1)) == (2, 1)
    assert inter_order((0, 2), (0, 0)) == (-2, -1)
    assert inter_order((1, 1), (0, 0)) == (0, 0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", "Hi\nBe brief.\n"),
        ("Human: Hi\n\nAssistant:", "Human: Hi\nBe brief.\n\nAssistant:"),
        (({"role": "user", "content": "Hi"},), ({"role": "user", "content": "Hi\nBe brief."},)),
    ],
)
def test_instructions_stand_at_the_end_of_the_question(prompt: Any, expected: Any) -> None:
    assert add_instructions(prompt, ["Be brief."]) == expected


def test_a_prompt_without_a_user_is_named() -> None:
    with pytest.raises(RecordError, match="field 'prompt': instructions are added to a user turn"):
        add_instructions(({"role": "system", "content": "Hi"},), ["Be brief."])


NEVER = InstructionFunction("never", lambda response, satisfied, rng: None, lambda text, response: True)
WRONG = InstructionFunction("wrong", lambda response, satisfied, rng: "x", lambda text, response: True)


@pytest.mark.parametrize(
    ("functions", "k_range", "message"),
    [
        (FUNCTIONS[:2], (1, 3), "3 instructions a prompt need as many functions, got 2"),
        (FUNCTIONS, (0, 3), "1 <= least <= most"),
        (FUNCTIONS[:1] * 2, (1, 2), "must have different names"),
        ((NEVER,), (1, 1), "0 instruction functions apply to a response, 1 are needed"),
        ((WRONG,), (1, 1), "0 instruction functions apply to a response, 1 are needed"),
    ],
)
def test_what_cannot_be_built_is_explained(functions: Any, k_range: Any, message: str) -> None:
    with pytest.raises((OptionError, RecordError), match=message):
        build_intra_pairs(PAIRS, functions, k_range)


RECORD = Comparison.pair("What is it?", RESPONSES[0], RESPONSES[1])


def test_companions_are_the_same_each_time_and_carry_their_side() -> None:
    found = intra_companions(RECORD, 0, 1)
    assert found == intra_companions(RECORD, 0, 1)
    assert [(c.response, c.label) for c in found] == [(RESPONSES[y], 2 * y + side) for y in (0, 1) for side in (0, 1)]
    labels = set()
    for number in range(30):
        record = replace(RECORD, prompts=(f"What is {number}?",))
        made = inter_companions(record, 0, 1)
        assert [c.label for c in made] in ([], [0, 1], [2, 3])
        labels.update(c.label for c in made)
        assert [c.label for c in inter_companions(record, 0, 1, inter_mode="pairwise")] in ([], [0, 1])
    assert labels == {0, 1, 2, 3}


def test_functions_of_ones_own() -> None:
    with pytest.raises(RecordError, match="field 'responses': 0 instruction functions apply"):
        intra_companions(RECORD, 0, 1, functions=(NEVER,), instructions=1)
