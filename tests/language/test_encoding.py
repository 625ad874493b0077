"""The boundary between prompt and response, truncation, and what is refused."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from prefkit.comparisons import Comparison, Winner
from prefkit.errors import OptionError, RecordError
from prefkit.language import Encoder, EncodingOptions
from tests.language.models import words

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def letters(begin: bool = False) -> PreTrainedTokenizerFast:
    """Single characters, but "ab" and "xy" are tokens of their own; optionally with a begin token."""
    signs = "abcdefghijklmnopqrstuvwxyz <>|\n?ABC"
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {sign: 3 + i for i, sign in enumerate(signs)}
    vocabulary |= {"ab": len(vocabulary), "xy": len(vocabulary) + 1}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("x", "y")]))
    backend.decoder = decoders.Fuse()
    if begin:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def texts(encoder: Encoder, encoded: dict[str, list[list[int]]]) -> tuple[list[str], list[str]]:
    decode = encoder.tokenizer.decode
    return [decode(ids) for ids in encoded["prompt_ids"]], [decode(ids) for ids in encoded["response_ids"]]


def test_a_clean_boundary_is_that_of_the_joint_text() -> None:
    encoder = Encoder(letters(), None)
    encoded = encoder.encode(Comparison.pair("xy c", " ab", " b"))
    assert texts(encoder, encoded) == (["xy c"], [" ab</s>", " b</s>"])
    assert encoded["response_ids"][0] == encoder.tokenizer(" ab")["input_ids"] + [2]
    assert encoder.merged_boundaries == 0


def test_a_token_never_straddles_the_boundary_unnoticed() -> None:
    encoder = Encoder(letters(), None)
    encoded = encoder.encode(Comparison.pair("ca", "bc", "cc"))
    # "ca" + "bc" would be read as c, ab, c; the prompt must stay the same for both responses.
    assert texts(encoder, encoded) == (["ca"], ["bc</s>", "cc</s>"])
    assert encoder.merged_boundaries == 1


def test_the_begin_token_belongs_to_the_prompt_and_comes_once() -> None:
    encoder = Encoder(letters(begin=True), None)
    encoded = encoder.encode(Comparison.pair("c", "d", "e"))
    assert encoded["prompt_ids"][0][0] == 1
    assert all(1 not in ids for ids in encoded["response_ids"])
    assert encoder.encode(Comparison.pair("", "d", "e"))["prompt_ids"] == [[1]]


def test_end_token_once_and_only_if_asked() -> None:
    pair = Comparison.pair("c", "d", "e</s>")
    assert [ids[-1:] for ids in Encoder(letters(), None).encode(pair)["response_ids"]] == [[2], [2]]
    assert [len(ids) for ids in Encoder(letters(), None).encode(pair)["response_ids"]] == [2, 2]
    bare = Encoder(letters(), None, EncodingOptions(append_eos=False))
    assert [len(ids) for ids in bare.encode(pair)["response_ids"]] == [1, 2]


def test_messages_go_through_the_template() -> None:
    encoder = Encoder(letters(), None, EncodingOptions(chat_template=TEMPLATE))
    prompt = ({"role": "user", "content": "c"},)
    answers = [({"role": "assistant", "content": text},) for text in ("d", "e")]
    encoded = encoder.encode(Comparison.pair(prompt, *answers))
    assert texts(encoder, encoded) == (["<|user|>c<|end|><|assistant|>"], ["d<|end|>", "e<|end|>"])
    mixed = encoder.encode(Comparison.pair(prompt, "d", "e"))
    assert mixed == encoded


def test_a_turn_that_was_begun_is_continued() -> None:
    encoder = Encoder(letters(), None, EncodingOptions(chat_template=TEMPLATE))
    prompt = ({"role": "user", "content": "c"}, {"role": "assistant", "content": "d"})
    assert texts(encoder, {"prompt_ids": [encoder.prompt_tokens(prompt)], "response_ids": []})[0] == [
        "<|user|>c<|end|><|assistant|>d"
    ]


def test_messages_without_a_template_are_refused() -> None:
    with pytest.raises(OptionError, match=r"no chat template; set encoding\.chat_template"):
        Encoder(letters(), None).encode(Comparison.pair(({"role": "user", "content": "c"},), "d", "e"))


def long_pair() -> Comparison:
    return Comparison.pair(" ".join(["w5"] * 10), "w6 w7 w8", "w9")


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (9, r"field 'prompt': the prompt has 10 tokens, the context holds 9"),
        (12, r"field 'responses': prompt \(10\) and response \(4\) exceed the context of 12 tokens"),
    ],
)
def test_too_long_is_set_aside_by_name(limit: int, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        Encoder(words(), limit).encode(long_pair())


def test_truncation_policies() -> None:
    cut = Encoder(words(), 12, EncodingOptions(too_long="truncate_prompt"))
    encoded = cut.encode(long_pair())
    assert [len(encoded["prompt_ids"][0]), *map(len, encoded["response_ids"])] == [8, 4, 2]
    assert cut.truncated == 1
    cut = Encoder(words(), 12, EncodingOptions(too_long="truncate_response"))
    encoded = cut.encode(long_pair())
    assert [len(encoded["prompt_ids"][0]), *map(len, encoded["response_ids"])] == [10, 2, 2]


def test_truncation_that_makes_responses_equal_is_refused() -> None:
    encoder = Encoder(words(), 12, EncodingOptions(too_long="truncate_response"))
    with pytest.raises(RecordError, match="equal after truncation"):
        encoder.encode(Comparison.pair(" ".join(["w5"] * 10), "w6 w7 w8", "w6 w7 w9"))


def test_no_tokens_is_refused() -> None:
    encoder = Encoder(letters(), None, EncodingOptions(append_eos=False))
    with pytest.raises(RecordError, match="response 1 encodes to no tokens"):
        encoder.encode(Comparison.pair("c", "d", "ü"))


def test_max_length_beyond_the_context_is_refused() -> None:
    with pytest.raises(OptionError, match="at most the model's context of 16 tokens, got 17"):
        Encoder(words(), 16, EncodingOptions(max_length=17))


def test_joint_comparisons_have_a_prompt_each() -> None:
    encoder = Encoder(words(), 16)
    encoded = encoder.encode(Comparison(("w5", "w6 w7"), ("w8", "w9"), Winner(1)))
    assert encoded["prompt_ids"] == [[5], [6, 7]]


def test_the_key_follows_everything_that_decides_the_tokens() -> None:
    keys = {
        Encoder(words(), 16).key(),
        Encoder(words(), 17).key(),
        Encoder(words(90), 16).key(),
        Encoder(words(), 16, EncodingOptions(append_eos=False)).key(),
        Encoder(words(), 16, EncodingOptions(chat_template=TEMPLATE)).key(),
    }
    assert len(keys) == 5
    assert Encoder(words(), 16).key() in keys


def steps_of(encoder: Encoder, prompt: str, *responses: tuple[str, ...] | None, text: str = "c") -> list[list[int]]:
    """The steps of the tokens of responses; one without steps is `text`."""
    record = Comparison(
        (prompt,), tuple("".join(own) if own else text for own in responses), Winner(0), steps=tuple(responses)
    )
    steps: list[list[int]] = encoder.encode(record, steps=True)["step_ids"]
    return steps


@pytest.mark.parametrize("begin", [False, True])
def test_a_token_belongs_to_the_step_in_which_its_text_begins(begin: bool) -> None:
    # The token "ab" begins in the first step and ends in the second; the end token ends the last step.
    steps = steps_of(Encoder(letters(begin), None), "q ", (" a", "bc", "d"), ("xy",), None)
    assert steps == [[0, 0, 1, 2, 2], [0, 0], [-1, -1]]


def test_steps_of_a_response_that_merges_with_the_prompt() -> None:
    encoder = Encoder(letters(), None)
    assert steps_of(encoder, "a", ("b", "c"), ("c", "ab")) == [[0, 1, 1], [0, 1, 1]]
    assert encoder.merged_boundaries == 1


def test_empty_steps_have_no_tokens() -> None:
    assert steps_of(Encoder(letters(), None), "q", ("c", "", "d"), ("c", "d")) == [[0, 2, 2], [0, 1, 1]]


def test_a_turn_ends_with_its_last_step() -> None:
    encoder = Encoder(
        letters(), None, EncodingOptions(chat_template=TEMPLATE.replace("{{ m.content }}", "?{{ m.content | trim }}"))
    )
    answer = ({"role": "assistant", "content": " c d"},)
    record = Comparison.pair(({"role": "user", "content": "q"},), answer, "c", steps=((" c ", "d"), None))
    first, second = encoder.encode(record, steps=True)["step_ids"]
    # The template puts a sign before the text, and strips the spaces around it.
    assert first[:5] == [-1, 0, 0, 1, 1]
    assert set(first[3:]) == {1}
    assert set(second) == {-1}


def test_steps_are_cut_with_their_response() -> None:
    encoder = Encoder(letters(), None, EncodingOptions(max_length=4, too_long="truncate_response"))
    assert steps_of(encoder, "q", ("c", "d", "ef"), ("d", "c")) == [[0, 1, 2], [0, 1, 1]]


def test_steps_that_are_not_the_response_are_refused() -> None:
    record = Comparison.pair("q", "cd", "c", steps=(("c", "x"), None))
    with pytest.raises(RecordError, match="the steps of response 0, one after the other, are not the response"):
        Encoder(letters(), None).encode(record, steps=True)
    assert "step_ids" not in Encoder(letters(), None).encode(record)
