from __future__ import annotations

import gzip
import importlib.util
import json
import math
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import prefkit.assets
from prefkit.assets import comparisons_path, model_path

REPOSITORY = Path(__file__).parents[2]
SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")

# Written for this test, so it is in no training text.
UNSEEN = (
    " I think the library should stay open until midnight. Many students work in the afternoon and can only read in"
    " the evening, and the building is heated anyway. It would cost a little more for the staff, but a town that"
    " wants people to learn has to give them a place to do it."
)


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(model_path(), local_files_only=True)


@cache
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(model_path(), local_files_only=True).eval()


@cache
def comparisons(split: Literal["train", "test"]) -> list[dict[str, str]]:
    with gzip.open(comparisons_path(split), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def data() -> Path:
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the source data sets are not at {folder}")
    return folder


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_assets", REPOSITORY / "scripts" / "build_assets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_ships_is_small() -> None:
    folder = Path(prefkit.assets.__file__).parent
    shipped = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in shipped} <= {".py", ".md", ".json", ".jinja", ".safetensors", ".gz"}
    assert sum(path.stat().st_size for path in shipped) < 8e6


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_any_text_decodes_to_itself(text: str) -> None:
    assert tokenizer().decode(tokenizer()(text, add_special_tokens=False).input_ids) == text


def test_a_text_begins_with_the_begin_token() -> None:
    assert tokenizer()("Yes").input_ids[0] == tokenizer().bos_token_id
    special = {tokenizer().bos_token_id, tokenizer().eos_token_id, tokenizer().pad_token_id}
    assert special == {0, 1, 2}


def test_chat_template() -> None:
    question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    prompt = tokenizer().apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|begin|>\n\nSystem: Be brief.\n\nHuman: 2+2?\n\nAssistant:"
    answered = [*question, {"role": "assistant", "content": "4"}]
    assert tokenizer().apply_chat_template(answered, tokenize=False) == prompt + " 4<|end|>"
    again = [*answered, {"role": "user", "content": "Sure?"}]
    assert tokenizer().apply_chat_template(again, tokenize=False) == prompt + " 4<|end|>\n\nHuman: Sure?"


def test_weights_are_stored_in_half_and_load_in_single_precision() -> None:
    with safe_open(model_path() / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118 - not a dict
    assert {weight.dtype for weight in model().parameters()} == {torch.float32}
    assert 1e6 <= sum(weight.numel() for weight in model().parameters()) <= 3e6


@torch.no_grad()
def test_the_model_has_learned_english() -> None:
    prompt = tokenizer()("Debate: Should the library stay open at night?\nSide: Yes\nArgument:").input_ids
    response = tokenizer()(UNSEEN, add_special_tokens=False).input_ids
    logits = model()(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item()
    assert math.log(len(tokenizer())) > 8  # nats a token of a model that knows nothing
    assert loss < 4.5


@torch.no_grad()
def test_the_model_ends_an_argument_only_after_a_sentence() -> None:
    texts = [tokenizer()(text).input_ids for text in (UNSEEN, UNSEEN.removesuffix(" place to do it."))]
    ended, cut = (model()(input_ids=torch.tensor([text])).logits[0, -1].log_softmax(-1)[1] for text in texts)
    assert ended - cut > math.log(10)


@pytest.mark.parametrize("split", SPLITS)
def test_comparisons_are_valid(split: Literal["train", "test"]) -> None:
    rows = comparisons(split)
    assert 150 <= len(rows) <= 2000
    for row in rows:
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert all(text.strip() for text in row.values())
        assert row["chosen"].strip() != row["rejected"].strip()
        longest = max(row["chosen"], row["rejected"], key=len)
        assert len(tokenizer()(row["prompt"] + longest).input_ids) < tokenizer().model_max_length


def test_no_prompt_and_no_response_is_in_both_splits() -> None:
    train, test = comparisons("train"), comparisons("test")
    for fields in (("prompt",), ("chosen", "rejected")):
        assert not {row[field] for row in train for field in fields} & {row[field] for row in test for field in fields}


@pytest.mark.parametrize("split", SPLITS)
def test_length_says_nothing_about_the_winner(split: Literal["train", "test"]) -> None:
    longer = [len(row["chosen"]) > len(row["rejected"]) for row in comparisons(split)]
    assert 2 * sum(longer) == len(longer)


def test_the_comparisons_can_be_cut_again(builder: ModuleType, data: Path) -> None:
    assert builder.cut_comparisons(data, tokenizer(), seed=0) == {split: comparisons(split) for split in SPLITS}


def test_no_held_out_argument_is_in_the_training_text(builder: ModuleType, data: Path) -> None:
    held_out = {row[field].strip() for row in comparisons("test") for field in ("chosen", "rejected")}
    text = "\n".join(" ".join(document.split()) for document in builder.documents(data))
    assert not [argument for argument in held_out if argument in text]
    trained = {row["chosen"].strip() for row in comparisons("train")}
    assert all(argument in text for argument in trained)  # the search finds what is there
