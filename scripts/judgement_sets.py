"""Sets of real judgements as comparisons of features, with the people and criteria kept; used by preference_results.py.

Judgements are read in three ways. Choices between two texts are pairs as they are. Ratings of several texts under one
prompt become a pair for each two texts that one person rated differently on one criterion (equal ratings are ties). A
yes-or-no answer about one text is a comparison of the text with a point of indifference, an option whose features are
all 0: the text wins if the answer is yes; a last feature that is 1 for texts alone holds how readily people say yes.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer

from prefkit.comparisons import Comparison, Label
from prefkit.diagnostics import count_style
from prefkit.diagnostics.surface import FEATURES as STYLE
from prefkit.language import BUILTIN, EncodingOptions, load_reward, response_states
from prefkit.preference import FEATURE_FUNCTIONS
from prefkit.training.progress import counting

WORDS, DIMENSIONS = 200, 48
NEUTRAL = -1
HALF = 0.5
MOST_DIALOGUES = 1000
"""Pairs of each criterion of HH-RLHF, for the time that it takes."""


class Said(NamedTuple):
    """One judgement: places of the two texts (`NEUTRAL` for the point of indifference) and what was said."""

    first: int
    second: int
    outcome: float
    group: str
    person: str | None = None
    criterion: str | None = None
    count: int = 1


@dataclass
class JudgedSet:
    """Texts, each with its prompt, and judgements of them.

    Args:
        name: of the set's folder, or its part.
        about: what was judged, in the words of the page.
        unit: what is held out together, and what intervals are over.
        texts: prompt and response.
        said: the judgements.
    """

    name: str
    about: str
    unit: str
    texts: list[tuple[str, str]] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)


Row = dict[str, Any]


def jsonl(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def table(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def drawn(keys: Iterable[str], most: int) -> set[str]:
    """At most so many names, the first by their SHA-1: the same ones on every machine, whatever the order."""
    return set(sorted(dict.fromkeys(keys), key=lambda key: hashlib.sha1(key.encode()).hexdigest())[:most])


def rated(prompt_of: Mapping[str, list[int]], scores: Mapping[tuple[int, str, str], float]) -> Iterator[Said]:
    """Pairs of the texts of one prompt, from one person's ratings on one criterion; equal ratings are ties.

    Args:
        prompt_of: places of the texts of each prompt.
        scores: by text, person and criterion; higher is better.
    """
    by: dict[tuple[str, str], dict[int, float]] = {}
    for (place, person, criterion), score in scores.items():
        by.setdefault((person, criterion), {})[place] = score
    for group, places in prompt_of.items():
        for (person, criterion), own in by.items():
            for one, two in combinations([place for place in places if place in own], 2):
                outcome = HALF + HALF * float(np.sign(own[one] - own[two]))
                yield Said(one, two, outcome, group, person, criterion)


# -- the sets -------------------------------------------------------------------------------------------------------


def arguments(data: Path) -> JudgedSet:
    folder = data / "ukp_convarg"
    made = JudgedSet("ukp_convarg", "which of two arguments of one side of a debate is more convincing", "debates")
    place, debate = {}, []
    for row in jsonl(folder / "arguments.jsonl.gz"):
        place[row["topic"], row["arg_id"]] = len(made.texts)
        made.texts.append((row["debate"], row["text"]))
        debate.append(row["debate"])
    pairs = {
        row["pair_id"]: (place[row["topic"], row["arg1"]], place[row["topic"], row["arg2"]])
        for row in table(folder / "pairs.csv.gz")
    }
    outcome = {"a1": 1.0, "a2": 0.0, "equal": HALF}
    for row in table(folder / "votes.csv.gz"):
        one, two = pairs[row["pair_id"]]
        made.said.append(Said(one, two, outcome[row["choice"]], debate[one], row["worker"]))
    return made


def jokes(data: Path) -> JudgedSet:
    folder = data / "humour_pairs"
    made = JudgedSet("humour_pairs", "which of two short texts is funnier", "pairs")
    place = {}
    for row in jsonl(folder / "items.jsonl.gz"):
        place[str(row["item"])] = len(made.texts)
        made.texts.append(("", row["text"]))
    for row in table(folder / "pairs.csv.gz"):
        one, two = place[row["item_a"]], place[row["item_b"]]
        for outcome, votes in ((1.0, int(row["votes_a"])), (0.0, int(row["votes_b"]))):
            if votes:
                made.said.append(Said(one, two, outcome, f"{one}-{two}", count=votes))
    return made


def safety(data: Path) -> JudgedSet:
    made = JudgedSet("dices", "is the last reply of a conversation unsafe (every rater judged every one)", "replies")
    answer = {"1": 1.0, "0": 0.0, "u": HALF}
    for row in jsonl(data / "dices" / "dices_350.jsonl.gz"):
        place = len(made.texts)
        made.texts.append((row["context"], row["response"]))
        for rater, given in enumerate(row["ratings"]):
            made.said.append(Said(place, NEUTRAL, answer[given], str(row["item"]), f"rater {rater}"))
    return made


def irony(data: Path) -> JudgedSet:
    made = JudgedSet("multipico", "is a reply on social media ironic (the English part)", "replies")
    for row in jsonl(data / "multipico" / "items.jsonl.gz"):
        if row["lang"] != "en":
            continue
        place = len(made.texts)
        made.texts.append((row["post"], row["reply"]))
        for person, given in row["ironic"].items():
            made.said.append(Said(place, NEUTRAL, float(given), row["item"], person))
    return made


def answers(data: Path) -> JudgedSet:
    made = JudgedSet("pandalm", "which of two models' answers to an instruction is better", "instructions")
    outcome = {1: 1.0, 2: 0.0, 0: HALF}
    for row in jsonl(data / "pandalm" / "pandalm.jsonl.gz"):
        prompt = f"{row['instruction']}\n{row['input'] or ''}".strip()
        one = len(made.texts)
        made.texts += [(prompt, row["response1"]), (prompt, row["response2"])]
        for person in ("annotator1", "annotator2", "annotator3"):
            made.said.append(Said(one, one + 1, outcome[row[person]], prompt, person))
    return made


def summaries(data: Path) -> JudgedSet:
    folder = data / "newsroom"
    made = JudgedSet("newsroom", "which of two summaries of an article has more of a quality", "articles")
    articles = {row["article"]: row["text"] for row in jsonl(folder / "articles.jsonl.gz")}
    prompts: dict[str, list[int]] = {}
    scores = {}
    for row in jsonl(folder / "summaries.jsonl.gz"):
        place = len(made.texts)
        made.texts.append((articles[row["article"]], row["summary"]))
        prompts.setdefault(str(row["article"]), []).append(place)
        for quality in ("informativeness", "relevance", "fluency", "coherence"):
            for worker, score in enumerate(row[quality]):
                scores[place, f"worker {worker}", quality] = float(score)
    made.said = list(rated(prompts, scores))
    return made


def translations(data: Path) -> JudgedSet:
    folder = data / "wmt_mqm"
    made = JudgedSet("wmt_mqm", "which of two English translations of a sentence has fewer and lighter errors", "texts")
    source = {}
    for row in jsonl(folder / "sxs2023_sources.jsonl.gz"):
        source[row["lp"], row["doc"], str(row["seg"])] = row["source"]
    place: dict[tuple[str, str, str], int] = {}
    sentences: dict[tuple[str, str], list[int]] = {}
    for row in jsonl(folder / "sxs2023_outputs.jsonl.gz"):
        if row["lp"] == "zhen":
            place[row["doc"], str(row["seg"]), row["system"]] = len(made.texts)
            sentences.setdefault((row["doc"], str(row["seg"])), []).append(len(made.texts))
            made.texts.append((source["zhen", row["doc"], str(row["seg"])], row["target"]))
    scores = {
        (place[row["doc"], row["seg"], row["system"]], row["rater"], ""): -float(row["mqm"])
        for row in table(folder / "sxs2023_scores.csv.gz")
        if row["lp"] == "zhen"
    }
    prompts = {json.dumps(key): own for key, own in sentences.items()}
    every = [each._replace(group=json.loads(each.group)[0], criterion=None) for each in rated(prompts, scores)]
    # A third of the pairs of each sentence, the same for all raters: 45 pairs of 10 systems say much the same.
    kept = drawn((f"{each.first}-{each.second}" for each in every), len(place) * 9 // 2 // 3)
    made.said = [each for each in every if f"{each.first}-{each.second}" in kept]
    return made


def dialogues(data: Path) -> JudgedSet:
    made = JudgedSet("hh_rlhf", "which of two replies is more helpful, or more harmless", "opening prompts")
    for criterion, name in (("helpful", "helpful-base"), ("harmless", "harmless-base")):
        rows = list(jsonl(data / "hh_rlhf" / f"{name}.jsonl.gz"))
        kept = drawn((row["chosen"] for row in rows), MOST_DIALOGUES)
        for row in rows:
            if row["chosen"] not in kept:
                continue
            (prompt, chosen), (other, rejected) = (
                dialogue.rsplit("\n\nAssistant:", 1) for dialogue in (row["chosen"], row["rejected"])
            )
            if prompt != other or chosen.strip() == rejected.strip():
                continue
            one = len(made.texts)
            made.texts += [(prompt, chosen), (prompt, rejected)]
            opening = prompt.split("\n\nAssistant:")[0].strip()
            made.said.append(Said(one, one + 1, 1.0, opening, None, criterion))
    return made


SETS: Mapping[str, Callable[[Path], JudgedSet]] = {
    "ukp_convarg": arguments,
    "humour_pairs": jokes,
    "pandalm": answers,
    "newsroom": summaries,
    "wmt_mqm": translations,
    "hh_rlhf": dialogues,
    "dices": safety,
    "multipico": irony,
}


# -- features -------------------------------------------------------------------------------------------------------


def named_features(prompt: str, text: str) -> list[float]:
    """Named features, the first of which is the length: what the domain-specific reward reads."""
    counts = [math.log1p(count) for count in count_style(text)]
    own = [FEATURE_FUNCTIONS[name](prompt, text) for name in ("word-variety", "prompt-overlap")]
    return [math.log1p(len(text)), *counts, *own]


NAMES = ("log characters", *STYLE, "word variety", "overlap with the prompt")


class Features(NamedTuple):
    """Features of the texts of a set.

    Args:
        values: `[texts, d]`, standardised.
        blocks: the columns of each kind.
    """

    values: np.ndarray
    blocks: dict[str, list[int]]


def features_of(judged: JudgedSet, cache: Path, embedder: Path | None) -> Features:
    """Named features, TF-IDF, states of the built-in model, and embeddings of a user's encoder; kept in the cache.

    Words of TF-IDF and principal components are chosen on all texts of the set; no judgement has a part in that.
    """
    raw = {"named": np.array([named_features(*each) for each in judged.texts])}
    words = TfidfVectorizer(max_features=WORDS, sublinear_tf=True)
    raw["words"] = words.fit_transform([text for _, text in judged.texts]).toarray()
    raw["states"] = _cached(cache, judged, "states", lambda: _states(judged))
    if embedder is not None:
        found = _cached(cache, judged, "embeddings", lambda: _embeddings(judged, embedder))
        raw["embeddings"] = PCA(DIMENSIONS, random_state=0).fit_transform(found)
    blocks, columns, size = {}, [], 0
    for name, values in raw.items():
        values = values[:, values.std(0) > 1e-8]
        scale = values.std(0) if name in ("named", "states") else values.std()
        columns.append((values - values.mean(0)) / scale)
        blocks[name] = list(range(size, size + values.shape[1]))
        size += values.shape[1]
    return Features(np.concatenate(columns, axis=1), blocks)


def _cached(cache: Path, judged: JudgedSet, kind: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    key = hashlib.sha1(json.dumps(judged.texts).encode()).hexdigest()[:16]
    path = cache / f"{judged.name}-{kind}-{key}.npy"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, make(), allow_pickle=False)
        partial.replace(path)
    return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)


def _states(judged: JudgedSet) -> np.ndarray:
    encoding = EncodingOptions(too_long="truncate_both", max_prompt_length=128)
    scorer = load_reward(BUILTIN, encoding).eval()
    rows = []
    for prompt, text in counting(judged.texts, f"{judged.name}: states", len(judged.texts), True):
        # An empty answer has no state of its own: it is read as a full stop.
        one = Comparison((prompt or "\n",), (text if text.strip() else ".",), Label(True))
        rows.append(response_states(scorer, one)[0].astype(np.float32))
    return np.array(rows)


def _embeddings(judged: JudgedSet, folder: Path) -> np.ndarray:
    """Mean of the encoder's last states over the first 128 tokens of a response; the prompt is not read."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(judged.texts)), key=lambda place: len(judged.texts[place][1]))
    found: list[np.ndarray | None] = [None] * len(order)
    batches = [order[start : start + 32] for start in range(0, len(order), 32)]
    for batch in counting(batches, f"{judged.name}: embeddings", len(batches), True):
        inputs = tokenizer(
            [judged.texts[place][1] for place in batch],
            padding=True,
            truncation=True,
            max_length=128,
            return_tensors="pt",
        )
        with torch.no_grad():
            states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        for place, mean in zip(batch, (states * mask).sum(1) / mask.sum(1), strict=True):
            found[place] = mean.numpy()
    return np.array(found)
