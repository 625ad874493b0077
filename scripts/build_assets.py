"""Build what `prefkit.assets` ships: a tokenizer, a small language model, and human comparisons to align it with.

    python scripts/build_assets.py --data ../shared/data --out src/prefkit/assets

Three steps: train a byte-level BPE tokenizer, cut the comparisons (UKPConvArg1: which of two arguments is more
convincing?), train a Llama-style model on dialogues, posts and arguments. A seed fixes the run; the weights also depend
on the processor and the number of threads. It takes about twenty minutes on one free core.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
VOCABULARY = 3072
CONTEXT = 512

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] + eos_token }}"
    "{% else %}{{ '\n\n' + message['role'] | capitalize + ': ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)

# What ships leaves out two debates that many would not like to meet in a demonstration, and arguments with coarse words
# or with words that these debaters use to insult.
EXCLUDED_DEBATES = {"Is porn wrong?", "Christianity or Atheism?"}
COARSE = re.compile(
    r"\b(ass(es|hole)?\b|bastard|bitch|crap|damn|dick|faggot|fuck|gay|idiot|lesbian|porn|rape|retard|sex|shit|slut|stupid"
    r"|whore)",
    re.IGNORECASE,
)

MIN_LEAD = 3  # votes, of five, by which the winner leads
MAX_TOKENS = 150
MAX_TOKEN_RATIO, MAX_CHARACTER_RATIO = 1.2, 1.3
ARGUMENT_REPEATS = 3  # arguments are 3 % of the text; repeated, the model learns the form of the prompts


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a gzip-compressed JSON lines or CSV file."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines)) if ".csv" in path.suffixes else [json.loads(line) for line in lines]


def clean(text: str) -> str:
    """The text on one line, with single spaces."""
    return " ".join(text.split())


def debate_prompt(argument: dict[str, Any]) -> str:
    """The prompt that an argument answers."""
    return f"Debate: {clean(argument['debate'])}\nSide: {clean(argument['stance'])}\nArgument:"


def split_debates(arguments: Iterable[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Names of the training and of the held-out debates: sorted by name, every third from the first is held out."""
    names = sorted({row["debate"] for row in arguments} - EXCLUDED_DEBATES, key=str.casefold)
    test = names[::3]
    return [name for name in names if name not in test], test


def cut_comparisons(data: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, list[dict[str, str]]]:
    """Pairs of similar length on which the voters agree; the one with more characters wins exactly half of them."""
    folder = data / "ukp_convarg"
    arguments = {(row["topic"], row["arg_id"]): row for row in rows(folder / "arguments.jsonl.gz")}
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows(folder / "votes.csv.gz"):
        votes[row["pair_id"]][row["choice"]] += 1
    longer_wins: dict[tuple[str, bool], list[dict[str, str]]] = defaultdict(list)
    train, _ = split_debates(arguments.values())
    seen: set[frozenset[str]] = set()
    for pair in rows(folder / "pairs.csv.gz"):
        count = votes[pair["pair_id"]]
        winner, loser = ("arg1", "arg2") if count["a1"] > count["a2"] else ("arg2", "arg1")
        ahead, behind = max(count["a1"], count["a2"]), min(count["a1"], count["a2"])
        if 2 * ahead <= count.total() or ahead - behind < MIN_LEAD:
            continue
        chosen, rejected = arguments[pair["topic"], pair[winner]], arguments[pair["topic"], pair[loser]]
        debate, texts = chosen["debate"], (clean(chosen["text"]), clean(rejected["text"]))
        shorter, longer = sorted(map(len, texts))
        fewer, more = sorted(len(tokenizer(" " + text, add_special_tokens=False).input_ids) for text in texts)
        if (
            debate in EXCLUDED_DEBATES
            or shorter == longer
            or longer > MAX_CHARACTER_RATIO * shorter
            or more > min(MAX_TOKENS, MAX_TOKEN_RATIO * fewer)
            or any(COARSE.search(text) for text in texts)
            or frozenset(texts) in seen
        ):
            continue
        seen.add(frozenset(texts))
        split = "train" if debate in train else "test"
        longer_wins[split, len(texts[0]) == longer].append(
            {"prompt": debate_prompt(chosen), "chosen": " " + texts[0], "rejected": " " + texts[1]}
        )
    generator, result = random.Random(seed), {}
    for split in ("train", "test"):
        halves = longer_wins[split, True], longer_wins[split, False]
        size = min(map(len, halves))
        result[split] = [row for half in halves for row in generator.sample(half, size)]
        generator.shuffle(result[split])
    return result


def documents(data: Path) -> Iterator[str]:
    """The training text. Held-out debates are no part of it. An answer of an assistant ends in the end token."""
    for name in ("helpful-base", "helpful-online", "helpful-rejection-sampled"):
        for row in rows(data / "hh_rlhf" / f"{name}.jsonl.gz"):
            yield row["chosen"].rstrip().replace("\n\nHuman:", EOS + "\n\nHuman:").removeprefix(EOS)
    posts = {row["post_id"]: row for row in rows(data / "tldr_comparisons" / "comparisons.jsonl.gz")}
    for row in posts.values():
        yield f"{row['title']}\n\n{row['post'].strip()}"
    arguments = rows(data / "ukp_convarg" / "arguments.jsonl.gz")
    train, _ = split_debates(arguments)
    for row in arguments:
        if row["debate"] in train and not COARSE.search(row["text"]):
            yield from [f"{debate_prompt(row)} {clean(row['text'])}"] * ARGUMENT_REPEATS


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be encoded, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 2.1 million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=5,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(tokens: Tensor, rows_a_batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of CONTEXT + 1 tokens, each row of the text once an epoch, in random order."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < rows_a_batch:
            # A new offset each epoch, so that rows do not break at the same places.
            offset = int(torch.randint(CONTEXT, (), generator=generator))
            count = (len(tokens) - offset - 1) // CONTEXT
            order = torch.randperm(count, generator=generator) * CONTEXT + offset
        starts, order = order[:rows_a_batch], order[rows_a_batch:]
        yield torch.stack([tokens[start : start + CONTEXT + 1] for start in starts.tolist()])


def train_model(
    model: LlamaForCausalLM, tokens: Tensor, *, steps: int, rows_a_batch: int, peak: float, generator: torch.Generator
) -> Iterator[tuple[int, float]]:
    """Fit the model to packed text; yields the step and its loss (nats a token)."""
    hidden = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "embed" in name]
    # For the matrices Muon gets further than AdamW in so few steps.
    optimizers = [
        torch.optim.Muon(hidden, lr=peak, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    warmup = min(50, steps // 10 + 1)
    for step, batch in enumerate(batches(tokens, rows_a_batch, steps, generator), start=1):
        decay = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = peak * min(step / warmup, 0.05 + 0.95 * decay)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield step, loss.item()


@torch.no_grad()
def loss_on(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]) -> float:
    """Mean loss, in nats a token, of responses and their end after their prompts."""
    total, count = 0.0, 0
    for prompt, response in texts:
        start = tokenizer(prompt).input_ids
        end = tokenizer(response + EOS, add_special_tokens=False).input_ids
        logits = model(input_ids=torch.tensor([start + end])).logits[0, len(start) - 1 : -1]
        total += cross_entropy(logits, torch.tensor(end), reduction="sum").item()
        count += len(end)
    return total / count


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model: weights in bfloat16, which halves the file, with a configuration that loads them as float32."""
    half = deepcopy(model).to(torch.bfloat16)
    half.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    half.save_pretrained(folder)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors files are otherwise for their owner only, also after an installation


def write_comparisons(path: Path, comparisons: list[dict[str, str]]) -> None:
    """Write gzip-compressed JSON lines, the same bytes for the same rows."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in comparisons)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the source data sets")
    parser.add_argument("--out", type=Path, default=Path("src/prefkit/assets"), help="where the assets go")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--rows", type=int, default=8, help=f"rows of {CONTEXT} tokens a step")
    parser.add_argument("--peak", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100, help="steps between two saved models")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    texts = list(documents(options.data))
    random.Random(options.seed).shuffle(texts)
    tokenizer = train_tokenizer(texts)
    comparisons = cut_comparisons(options.data, tokenizer, options.seed)
    for split, pairs in comparisons.items():
        write_comparisons(options.out / f"{split}.jsonl.gz", pairs)
        print(f"{split}: {len(pairs)} comparisons, {len({row['prompt'] for row in pairs})} prompts", flush=True)

    tokens = torch.tensor([token for text in texts for token in tokenizer(text + EOS, verbose=False).input_ids])
    size = sum(len(text.encode()) for text in texts)
    print(f"text: {len(texts)} documents, {size / 1e6:.2f} MB, {len(tokens)} tokens", flush=True)

    torch.manual_seed(options.seed)
    model = new_model(tokenizer)
    print(f"model: {sum(weight.numel() for weight in model.parameters())} parameters", flush=True)
    held_out = sorted({(row["prompt"], row["chosen"]) for row in comparisons["test"]})
    generator = torch.Generator().manual_seed(options.seed)
    started = time.monotonic()
    for step, loss in train_model(
        model, tokens, steps=options.steps, rows_a_batch=options.rows, peak=options.peak, generator=generator
    ):
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.3f}, {time.monotonic() - started:.0f} s", flush=True)
        if step % options.save_every == 0 or step == options.steps:
            save(model, tokenizer, options.out / "model")
            print(f"step {step}: held-out arguments {loss_on(model, tokenizer, held_out):.3f} nats a token", flush=True)


if __name__ == "__main__":
    main()
