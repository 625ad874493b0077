from __future__ import annotations

from dataclasses import replace

import pytest

from prefkit.comparisons import (
    Comparison,
    Ranking,
    RecordError,
    generate_rationales,
    rationale_companions,
    rationale_prompt,
)
from prefkit.errors import OptionError

PLAIN = Comparison.pair("What is 2 + 2?", " Four.", " Five.", rationale=" It is right. ", source="a.jsonl", line=3)
CHAT = Comparison.pair(
    ({"role": "user", "content": "What is 2 + 2?"},),
    ({"role": "assistant", "content": "Four."},),
    ({"role": "assistant", "content": "Five."},),
    rationale="It is right.",
)


def test_the_prompt_shows_the_chosen_response_first_and_the_response_is_the_rationale() -> None:
    (companion,) = rationale_companions(PLAIN, 0, 1)
    assert companion.response == "It is right."
    assert isinstance(companion.prompt, str)
    assert companion.prompt.index("What is 2 + 2?") < companion.prompt.index("Four.") < companion.prompt.index("Five.")
    assert "was preferred" not in companion.prompt


def test_messages_stay_messages() -> None:
    (companion,) = rationale_companions(CHAT, 0, 1)
    (message,) = companion.prompt
    assert message["role"] == "user"
    assert message["content"] == rationale_companions(PLAIN, 0, 1)[0].prompt.removesuffix("\n\nRationale: ")


def test_a_random_order_is_fair_fixed_and_said_in_the_prompt() -> None:
    first = 0
    for number in range(200):
        record = replace(PLAIN, prompts=(f"Question {number}",))
        (companion,) = rationale_companions(record, 0, 1, order="random")
        assert companion == rationale_companions(record, 0, 1, order="random")[0]
        above = companion.prompt.index("Four.") < companion.prompt.index("Five.")
        assert f"The response {'above' if above else 'below'} was preferred." in companion.prompt
        first += above
    assert 70 < first < 130


def test_a_template_of_ones_own() -> None:
    def template(query: str, chosen: str, rejected: str, *, chosen_first: bool, marked: bool) -> str:
        return f"{query}|{chosen}|{rejected}|{chosen_first}"

    assert rationale_companions(PLAIN, 0, 1, template=template)[0].prompt == "What is 2 + 2?| Four.| Five.|True"


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_comparison_without_a_rationale_is_named(missing: str | None) -> None:
    with pytest.raises(RecordError, match=r"field 'rationale': .*give a rationale"):
        rationale_companions(replace(PLAIN, rationale=missing), 0, 1)


def test_rationales_are_written_where_there_are_none() -> None:
    asked: list[str] = []

    def generate(prompt: str) -> str:
        asked.append(prompt)
        return " Because. "

    bare = replace(PLAIN, rationale=None)
    assert [r.rationale for r in generate_rationales([bare, PLAIN], generate)] == ["Because.", PLAIN.rationale]
    assert len(asked) == 1
    assert asked[0].index("Response 1: Four.") < asked[0].index("Response 2: Five.")
    next(generate_rationales([bare], generate, style="specific"))
    assert "in detail" in asked[1]
    next(generate_rationales([bare], generate, prompt_builder=lambda query, chosen, rejected, style: chosen))
    assert asked[2] == " Four."


def test_the_generator_is_held_to_its_task() -> None:
    bare = replace(PLAIN, rationale=None)
    with pytest.raises(RecordError, match=r"a.jsonl:3: field 'rationale': the generator wrote no rationale"):
        list(generate_rationales([bare], lambda prompt: "  "))
    with pytest.raises(RecordError, match=r"a.jsonl:3: no response is preferred"):
        list(generate_rationales([replace(bare, judgement=Ranking((0, 0)))], lambda prompt: "x"))
    with pytest.raises(OptionError, match="unknown style of rationales 'specifc'; did you mean 'specific'"):
        list(generate_rationales([bare], lambda prompt: "x", style="specifc"))  # type: ignore[arg-type]


def test_the_template_quotes_a_conversation_with_its_roles() -> None:
    chat = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "2 + 2"},
    )
    (message,) = rationale_prompt(chat, "Four.", "Five.", chosen_first=False, marked=False)
    assert message["content"].startswith("user: Hi\n\nassistant: Yes?\n\nuser: 2 + 2\n\nWhich")
    assert message["content"].index("Five.") < message["content"].index("Four.")
