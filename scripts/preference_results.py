"""Preference models on real judgements: the figures of docs/preference-results.md.

    python scripts/preference_results.py ../shared/data

Arguments of web debates, compared by crowd workers (ukp_convarg), cross-validated over debates; and jokes compared by
crowd workers (humour_pairs), as named items.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer

from prefkit.diagnostics import bootstrap_interval, expected_calibration_error
from prefkit.preference import (
    BradleyTerry,
    GeneralPreference,
    IdealPoints,
    RewardNetwork,
    Thurstone,
    cyclicity,
)

FOLDS, WORDS = 4, 200
OUTCOME = {"a1": 1.0, "a2": 0.0, "equal": 0.5}


def rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def show(name: str, odds: np.ndarray, y: np.ndarray, clusters: np.ndarray, seconds: float) -> None:
    likelihood = -(y * np.logaddexp(0, -odds) + (1 - y) * np.logaddexp(0, odds))
    told = y != 0.5
    right = 0.5 + np.sign(odds) * (y - 0.5)
    turned = np.random.default_rng(0).random(len(y)) < 0.5
    p = 1 / (1 + np.exp(-np.where(turned, -odds, odds)))
    error = expected_calibration_error(p, np.where(turned, 1 - y, y))
    shown = bootstrap_interval(likelihood, clusters=clusters), bootstrap_interval(right[told], clusters=clusters[told])
    print(f"| {name} | {shown[0]} | {shown[1]} | {error:.3f} | {seconds:.0f} |", flush=True)


def arguments(folder: Path) -> None:
    with gzip.open(folder / "arguments.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    place = {(each["topic"], each["arg_id"]): number for number, each in enumerate(texts)}
    features = TfidfVectorizer(max_features=WORDS).fit_transform([each["text"] for each in texts]).toarray()
    length = np.log([len(each["text"]) for each in texts])
    features = np.column_stack([features, (length - length.mean()) / length.std()])
    pairs = {
        p["pair_id"]: (place[p["topic"], p["arg1"]], place[p["topic"], p["arg2"]])
        for p in rows(folder / "pairs.csv.gz")
    }
    votes = [v for v in rows(folder / "votes.csv.gz") if v["pair_id"] in pairs]
    codes = np.array([pairs[v["pair_id"]] for v in votes])
    y, people = np.array([OUTCOME[v["choice"]] for v in votes]), [v["worker"] for v in votes]
    debates, debate = np.unique([each["debate"] for each in texts], return_inverse=True)
    clusters = debate[codes[:, 0]]
    fold = (np.random.default_rng(0).permutation(len(debates)) % FOLDS)[clusters]
    X = features[codes]
    print(
        f"{len(votes)} votes of {len(set(people))} workers on {len(pairs)} pairs of {len(texts)} arguments, "
        f"{len(debates)} debates"
    )
    print("| model | log-likelihood | accuracy | calibration error | seconds |\n|---|---|---|---|---|")
    show("chance", np.zeros(len(y)), y, clusters, 0)
    models = {
        "longer one": None,
        "Bradley-Terry": BradleyTerry(ridge=10.0),
        "Thurstone": Thurstone(ridge=10.0),
        "reward network": RewardNetwork(steps=100, weight_decay=1.0, batch_size=2000),
        "general preference, dimension 6": GeneralPreference(tau=0.5, steps=100, weight_decay=1.0, batch_size=2000),
        **{
            f"ideal points, K = {k}": IdealPoints(prototypes=k, loss="logistic", steps=100, batch_size=4000, width=16)
            for k in (1, 2, 3)
        },
    }
    for name, model in models.items():
        start, odds = time.perf_counter(), np.zeros(len(y))
        for held in range(FOLDS):
            rest, test = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
            if model is None:
                column = X[:, 0, -1] - X[:, 1, -1]
                odds[test] = column[test] * BradleyTerry().fit(X[rest][:, :, -1:], y[rest]).coef_[0]
                continue
            own = {"annotators": [people[row] for row in rest]} if isinstance(model, IdealPoints) else {}
            fitted = clone(model).fit(X[rest], y[rest], **own)
            if not own:
                odds[test] = fitted.decision_function(X[test])
                continue
            known = set(own["annotators"])
            told = np.array([people[row] in known for row in test])
            odds[test[told]] = fitted.decision_function(X[test[told]], annotators=[people[row] for row in test[told]])
            odds[test[~told]] = fitted.decision_function(X[test[~told]])
        show(name, odds, y, clusters, time.perf_counter() - start)
    total, count = defaultdict(float), defaultdict(int)
    for vote, outcome in zip(votes, y, strict=True):
        total[vote["pair_id"]] += outcome
        count[vote["pair_id"]] += 1
    others = np.array([(total[v["pair_id"]] - o) / (count[v["pair_id"]] - 1) for v, o in zip(votes, y, strict=True)])
    show("the other workers' majority", np.clip(np.log((others + 0.1) / (1.1 - others)), -5, 5), y, clusters, 0)
    found = cyclicity(codes, y, samples=100)
    print(found.table().csv(), found.cycles_table(most=5).csv())


def jokes(folder: Path) -> None:
    table = np.array(
        [[int(r[name]) for name in ("item_a", "item_b", "votes_a", "votes_b")] for r in rows(folder / "pairs.csv.gz")]
    )
    X = np.repeat(table[:, :2], table[:, 2] + table[:, 3], axis=0)
    y = np.concatenate([np.repeat([1.0, 0.0], [a, b]) for a, b in table[:, 2:]])
    pair = np.repeat(np.arange(len(table)), table[:, 2] + table[:, 3])
    fold = np.random.default_rng(0).integers(5, size=len(table))[pair]
    print(f"\n{len(y)} votes on {len(table)} pairs of {len(np.unique(X))} jokes")
    print("| model | log-likelihood | accuracy | calibration error | seconds |\n|---|---|---|---|---|")
    show("chance", np.zeros(len(y)), y, pair, 0)
    for name, model in {
        "Bradley-Terry": BradleyTerry(ridge=0.1),
        "Bradley-Terry, ridge 1": BradleyTerry(ridge=1.0),
        "Thurstone": Thurstone(ridge=0.3),
    }.items():
        start, odds = time.perf_counter(), np.zeros(len(y))
        for held in range(5):
            fitted = clone(model).fit(X[fold != held], y[fold != held])
            known = np.isin(X, fitted.items_).all(axis=1) & (fold == held)
            log_p = fitted.predict_log_proba(X[known])
            odds[known] = log_p[:, 1] - log_p[:, 0]
        show(name, odds, y, pair, time.perf_counter() - start)


if __name__ == "__main__":
    data = Path(sys.argv[1])
    arguments(data / "ukp_convarg")
    jokes(data / "humour_pairs")
