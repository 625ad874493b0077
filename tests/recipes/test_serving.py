"""The server of rewards over real sockets: equal to direct scoring under load, and clear in what it refuses."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import uvicorn

from prefkit.comparisons import Comparison, Ratings, RecordError
from prefkit.diagnostics import Scored
from prefkit.errors import OptionError, PrefkitError
from prefkit.recipes.remote import RemoteReward
from prefkit.recipes.rewarding import load_rewards, scored_by
from prefkit.recipes.serving import Batcher, RewardServer, ServingOptions


@contextmanager
def served(scored: Scored, token: str | None = None, **options: Any) -> Iterator[tuple[str, RewardServer]]:
    """A server in a thread, on a free port."""
    server = RewardServer(scored, model="tested", options=ServingOptions(**options), token=token)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    web = uvicorn.Server(uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=web.run)
    thread.start()
    try:
        while not web.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}", server
    finally:
        web.should_exit = True
        thread.join()
        server.batcher.close()


def post(address: str, body: Any, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, data=data, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def get(address: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(address, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


class Lengths:
    """A model that rewards length, takes its time, cannot score questions and breaks on a word."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches, self.gate = seconds, [], threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def __call__(
        self, comparisons: Iterable[Comparison], skipped: list[RecordError]
    ) -> Iterator[tuple[Comparison, list[float]]]:
        batch = list(comparisons)
        self.batches.append(len(batch))
        self.gate.wait(20)
        time.sleep(self.seconds)
        for comparison in batch:
            if "break" in comparison.responses:
                raise ZeroDivisionError("the model broke")
            if any("?" in str(text) for text in comparison.responses):
                problem = "a question has no reward"
                skipped.append(RecordError(problem, field="responses", source=comparison.source, line=comparison.line))
                continue
            yield comparison, [math.inf if text == "infinite" else float(len(text)) for text in comparison.responses]


def record(*responses: str, prompt: str = "p") -> dict[str, Any]:
    return {"prompt": prompt, "responses": list(responses)}


def said(**message: Any) -> dict[str, Any]:
    return {"prompt": [message], "responses": ["a"]}


def test_every_shape_gives_the_models_rewards() -> None:
    with served(Lengths()) as (address, _):
        asked = {
            "records": [
                record("a", "bbb"),
                record("cc"),
                {"prompt": [{"role": "user", "content": "x"}], "responses": ["d"]},
            ]
        }
        assert post(f"{address}/rewards", asked) == (200, {"rewards": [[1.0, 3.0], [2.0], [1.0]], "model": "tested"})
        assert post(f"{address}/rewards", {"records": []}) == (200, {"rewards": [], "model": "tested"})
        openrlhf = {"query": ["p: a", "q: bb", "p: ccc"], "prompts": ["p: ", "q: ", "p: "], "labels": ["x", "y", "z"]}
        assert post(f"{address}/get_reward", openrlhf) == (200, {"rewards": [1.0, 2.0, 3.0]})
        for path in ("score", "v1/score"):
            status, found = post(f"{address}/{path}", {"text_1": "p", "text_2": ["a", "bb"], "model": "any"})
            assert status == 200
            assert found["data"] == [{"index": k, "object": "score", "score": k + 1.0} for k in range(2)]
        status, found = post(f"{address}/score", {"text_1": ["p", "q"], "text_2": ["a", "bb"]})
        assert [each["score"] for each in found["data"]] == [1.0, 2.0]
        assert get(f"{address}/health") == (200, {"status": "ok", "model": "tested", "waiting": 0})


def test_many_requests_at_once_are_those_of_direct_scoring_and_share_forward_passes() -> None:
    scored = load_rewards("builtin", reference="builtin", batch_size=16)
    rng = np.random.default_rng(0)
    words = ["rain", "sun", "because", "people", "think", "never", "law", "school", "money", "free"]

    def text() -> str:
        return " ".join(rng.choice(words, rng.integers(1, 12)))

    asked = [
        [record(*(text() for _ in range(rng.integers(1, 5))), prompt=text()) for _ in range(rng.integers(1, 4))]
        for _ in range(60)
    ]

    def direct(records: list[dict[str, Any]]) -> list[list[float]]:
        comparisons = [
            Comparison(
                (each["prompt"],), (*each["responses"], "one more"), Ratings((0.0,) * (len(each["responses"]) + 1))
            )
            for each in records
        ]
        return [list(rewards)[:-1] for _, rewards in scored(comparisons, [])]

    calls: list[int] = []

    def counted(comparisons: Iterable[Comparison], skipped: list[RecordError]) -> Iterator[Any]:
        batch = list(comparisons)
        calls.append(len(batch))
        return iter(list(scored(batch, skipped)))

    health = []
    with served(counted, waiting=100, wait=0.02) as (address, _), ThreadPoolExecutor(60) as pool:
        answers = [pool.submit(post, f"{address}/rewards", {"records": records}) for records in asked]
        health = [get(f"{address}/health")[0] for _ in range(5)]
        found = [answer.result() for answer in answers]
    assert health == [200] * 5
    assert sum(calls) == sum(map(len, asked))
    assert len(calls) < len(asked) / 2
    for records, (status, answer) in zip(asked, found, strict=True):
        assert status == 200
        for own, wanted in zip(answer["rewards"], direct(records), strict=True):
            assert own == pytest.approx(wanted, abs=2e-4)


def test_malformed_requests_among_good_ones_are_refused_and_the_good_ones_answered() -> None:
    bad: list[tuple[Any, str, int, str]] = [
        (b"{", "rewards", 400, "not JSON"),
        (b"\xff\xfe", "rewards", 400, "not JSON"),
        (b"[" * 100_000, "rewards", 400, "not JSON"),
        ([1], "rewards", 422, "must be an object with records"),
        ({}, "rewards", 422, "records is required"),
        ({"records": 3}, "rewards", 422, "records"),
        ({"records": [{"prompt": "p"}]}, "rewards", 422, "records.0.responses is required"),
        ({"records": [record()]}, "rewards", 422, "records.0.responses"),
        ({"records": [record("a", " ")]}, "rewards", 422, "record 0: field 'responses': response 1 is empty"),
        ({"records": [{"prompt": "p", "responses": ["a"], "answer": 1}]}, "rewards", 422, "unknown option"),
        (b'{"records": [{"prompt": NaN, "responses": ["a"]}]}', "rewards", 422, "records.0.prompt"),
        (b'{"records": [{"prompt": "\\ud800", "responses": ["a"]}]}', "rewards", 400, "surrogates not allowed"),
        (
            {"records": [record("a"), said(content="x")]},
            "rewards",
            422,
            "record 1: field 'prompt': a message needs a role",
        ),
        ({"records": [said(role="user")]}, "rewards", 422, "record 0: field 'prompt': a message needs content"),
        ({"records": [said(role="user", content=math.nan)]}, "rewards", 422, "text or a list of parts, got nan"),
        ({"records": [said(role="user", content=["x"])]}, "rewards", 422, "text or a list of parts, got ['x']"),
        ({"records": [record("a")] * 9}, "rewards", 422, "records must be at most 8, got 9"),
        ({"records": [record(*"abcdef")]}, "rewards", 422, "responses of record 0 must be at most 5, got 6"),
        ({"records": [record("a" * 301)]}, "rewards", 422, "characters of a text of record 0 must be at most 300"),
        ({"records": [record("a" * 300_000)]}, "rewards", 413, "may have 200000 bytes"),
        ({"records": [record("a"), record("why?")]}, "rewards", 422, "record 1: field 'responses': a question"),
        ({"records": [record("infinite")]}, "rewards", 500, "no finite number"),
        ({"records": [record("break")]}, "rewards", 500, "the model failed: ZeroDivisionError: the model broke"),
        ({"query": ["a"]}, "get_reward", 422, "prompts are needed"),
        ({"query": ["a", "b"], "prompts": ["a"]}, "get_reward", 422, "1 prompts for 2 queries"),
        ({"query": ["ab"], "prompts": ["b"]}, "get_reward", 422, "query 0 does not begin with its prompt"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "score", 422, "2 in text_1 for 1 in text_2"),
        ({"text_1": "a"}, "score", 422, "text_2 is required"),
        ({}, "nowhere", 404, "POST /nowhere is nothing here; there are GET /health"),
    ]
    limits = {"records": 8, "responses": 5, "characters": 300, "body": 200_000}
    with served(Lengths(0.001), **limits) as (address, _), ThreadPoolExecutor(30) as pool:
        good = [pool.submit(post, f"{address}/rewards", {"records": [record("a" * n)]}) for n in range(1, 40)]
        found = [pool.submit(post, f"{address}/{path}", body) for body, path, _, _ in bad]
        for (_, _, status, message), answer in zip(bad, found, strict=True):
            got, about = answer.result()
            assert (got, message in about["error"]) == (status, True), (message, got, about)
        for n, answer in enumerate(good, 1):
            assert answer.result() == (200, {"rewards": [[float(n)]], "model": "tested"})
        assert get(f"{address}/rewards")[0] == 405


def test_a_body_that_grows_beyond_the_limit_is_cut_off() -> None:
    with served(Lengths(), body=1000) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(b"POST /rewards HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(3):
                line.sendall(b"1f4\r\n" + b"x" * 500 + b"\r\n")
            assert b"413" in line.recv(100)


def test_a_request_that_breaks_the_model_spoils_no_other() -> None:
    model = Lengths()
    batcher = Batcher(model, batch_size=10, wait=0.2)
    good, broken = Comparison.pair("p", "a", "bb"), Comparison.pair("p", "break", "bb")
    answers = [batcher.submit([each]) for each in (good, broken, good)]
    assert answers[0].result(5) == answers[2].result(5) == [[1.0, 2.0]]
    with pytest.raises(ZeroDivisionError):
        answers[1].result(5)
    assert model.batches == [3, 1, 1, 1]
    batcher.close()


def test_too_many_waiting_requests_and_late_answers() -> None:
    model = Lengths()
    model.gate.clear()
    with served(model, waiting=2, timeout=0.5, batch_size=1) as (address, server), ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(post, f"{address}/rewards", {"records": [record("a")]}) for _ in range(8)]
        found = sorted(answer.result()[0] for answer in answers)
        assert found == [503] * 5 + [504] * 3
        assert get(f"{address}/health")[0] == 200
        model.gate.set()
        while server.batcher.waiting:
            time.sleep(0.01)
        assert post(f"{address}/rewards", {"records": [record("ab")]})[1]["rewards"] == [[2.0]]
        # Requests that nobody waits for any more were not scored.
        assert len(model.batches) == 2


def test_what_was_taken_is_answered_when_the_server_closes() -> None:
    model = Lengths(0.05)
    with served(model, batch_size=1) as (address, server), ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(post, f"{address}/rewards", {"records": [record("a")]}) for _ in range(6)]
        while not model.batches:
            time.sleep(0.005)
        time.sleep(0.05)
        closing = pool.submit(server.batcher.close)
        assert [answer.result()[0] for answer in answers] == [200] * 6
        closing.result()
        assert get(f"{address}/health") == (503, {"status": "closing", "model": "tested", "waiting": 0})
        status, about = post(f"{address}/rewards", {"records": [record("a")]})
        assert (status, about["error"]) == (503, "the server is closing: try again")


def test_a_token_is_asked_for() -> None:
    with served(Lengths(), token="secret") as (address, _):
        asked = {"records": [record("a")]}
        for header in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            assert post(f"{address}/rewards", asked, header)[0] == 401
        assert post(f"{address}/rewards", asked, {"Authorization": "Bearer secret"})[0] == 200
        assert get(f"{address}/health")[0] == 200
        comparison = Comparison.pair("p", "a", "bb")
        assert list(RemoteReward(address, token="secret")([comparison], [])) == [(comparison, [1.0, 2.0])]
        with pytest.raises(PrefkitError, match="answered 401: the header 'Authorization"):
            list(RemoteReward(address)([comparison], []))


def test_the_client_gives_what_the_server_says_and_sets_aside_what_it_refuses() -> None:
    pairs = [
        Comparison.pair("p", "a" * n, "why?" if n % 5 == 0 else "b", source="f.jsonl", line=n) for n in range(1, 12)
    ]
    skipped: list[RecordError] = []
    with served(Lengths()) as (address, _):
        remote = RemoteReward(address, batch_size=4)
        found = list(scored_by(remote, "reward")(pairs, skipped))
        assert [(each.line, rewards) for each, rewards in found] == [(n, [n, 1.0]) for n in range(1, 12) if n % 5]
        assert [str(error) for error in skipped] == [
            f"f.jsonl:{n}: field 'responses': a question has no reward" for n in (5, 10)
        ]
    with pytest.raises(PrefkitError, match="cannot be reached"):
        list(remote(pairs, []))
    with pytest.raises(OptionError, match="must begin with http"):
        RemoteReward("localhost:8000")


def test_comparisons_of_several_prompts_are_set_aside_and_the_others_scored() -> None:
    joint = Comparison(("p", "q"), ("a", "bb"), Ratings((0.0, 1.0)), source="f.jsonl", line=1)
    pair = Comparison.pair("p", "a", "bb", source="f.jsonl", line=2)
    skipped: list[RecordError] = []
    with served(Lengths()) as (address, _):
        assert list(RemoteReward(address)([joint, pair], skipped)) == [(pair, [1.0, 2.0])]
        assert list(RemoteReward(address)([joint], skipped)) == []
    assert [str(error) for error in skipped] == [
        "f.jsonl:1: field 'prompts': a server scores responses to one prompt"
    ] * 2


@contextmanager
def answering(*parts: bytes, pause: float = 0.0) -> Iterator[str]:
    """A server that answers one request with these bytes, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            line, _ = server.accept()
            with line, suppress(OSError):
                asked = b""
                while b"responses" not in asked:
                    asked += line.recv(65536)
                for part in parts:
                    line.sendall(part)
                    time.sleep(pause)
                line.shutdown(socket.SHUT_WR)
                line.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def http(status: str, body: bytes, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (http("200 OK", b'{"rewards": [1.0]}'), "without one finite reward a response"),
        (http("200 OK", b'{"rewards": [[1.0]]}'), "without one finite reward a response"),
        (http("200 OK", b'{"rewards": [["a", "b"]]}'), "without one finite reward a response"),
        (http("200 OK", b'{"rewards": [[null, 1]]}'), "without one finite reward a response"),
        (http("200 OK", b'{"rewards": [[NaN, 1]]}'), "without one finite reward a response"),
        (http("200 OK", b'{"rewards": [[true, 1]]}'), "without one finite reward a response"),
        (http("200 OK", b"<html>"), "neither rewards nor what is wrong: .*<html>"),
        (http("422 No", b'{"problems": ["x"]}'), "neither rewards nor what is wrong"),
        (http("422 No", b'{"problems": [{"record": 1, "problem": "x"}]}'), "neither rewards nor what is wrong"),
        (http("500 Broken", b""), "answered 500"),
        (b"garbage\r\n\r\n", "cannot be reached: garbage"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"rew', 'what is wrong: .*"rew'),
    ],
)
def test_answers_that_are_no_rewards_are_errors(answer: bytes, message: str) -> None:
    with answering(answer) as address, pytest.raises(PrefkitError, match=message):
        list(RemoteReward(address, timeout=5)([Comparison.pair("p", "a", "bb")], []))


def test_a_token_does_not_follow_a_redirect() -> None:
    moved = http("302 Found", b"", "Location: http://127.0.0.1:1/rewards")
    with answering(moved) as address, pytest.raises(PrefkitError, match="answered 302: Found"):
        list(RemoteReward(address, token="secret")([Comparison.pair("p", "a", "bb")], []))


def test_an_answer_that_trickles_is_given_up() -> None:
    slow = [http("200 OK", b" " * 40)[:-40], *[b" "] * 40]
    with answering(*slow, pause=0.05) as address, pytest.raises(PrefkitError, match="the answer was not whole"):
        list(RemoteReward(address, timeout=0.2)([Comparison.pair("p", "a", "bb")], []))


@pytest.mark.parametrize("address", ["http://", "http://host:port", "http://host:0", "http://ho st", "http://[::1"])
def test_addresses_that_name_no_server_are_refused(address: str) -> None:
    with pytest.raises(OptionError, match="is no address"):
        RemoteReward(address)


def test_a_token_that_no_header_can_hold_is_refused() -> None:
    with pytest.raises(OptionError, match="printable ASCII"):
        RemoteReward("http://host", token="a\nb")


def test_a_busy_server_is_asked_again() -> None:
    model = Lengths(0.1)
    pairs = [Comparison.pair("p", "a", "bb")]
    with served(model, waiting=1, batch_size=1) as (address, _), ThreadPoolExecutor(8) as pool:

        def ask(patience: float) -> Callable[[], Any]:
            return lambda: list(RemoteReward(address, patience=patience)(pairs, []))

        found = [pool.submit(ask(20)) for _ in range(8)]
        assert all(answer.result() == [(pairs[0], [1.0, 2.0])] for answer in found)
        model.gate.clear()
        busy = [pool.submit(ask(20)) for _ in range(4)]
        time.sleep(0.3)
        with pytest.raises(PrefkitError, match="answered 503: 1 requests wait already"):
            ask(0)()
        model.gate.set()
        assert all(answer.result() for answer in busy)


def test_a_language_model_without_a_reference_gives_no_rewards() -> None:
    with pytest.raises(OptionError, match="builtin is a language model, whose log-likelihood is no reward"):
        load_rewards("builtin")
