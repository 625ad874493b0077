"""A server of rewards: any saved preference model behind HTTP, in the shapes that trainers ask remote rewards in.

One thread owns the model. What arrives while it works waits, and is scored together with whatever else waits by then.
Limits are checked before anything reaches the model, and every refusal is JSON that says what was wrong and what is
allowed.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias, TypeVar

from pydantic import ConfigDict, Field, model_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefkit.comparisons import Comparison, Label, Ratings, Text
from prefkit.diagnostics import Scored
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.options import Options

logger = logging.getLogger("prefkit")

Rewards: TypeAlias = list[list[float]]
"""Of each record, a reward a response."""

Said: TypeAlias = str | list[dict[str, Any]]
"""A prompt or response of a request: text, or messages."""

Body = TypeVar("Body", bound=Options)


class ServingOptions(Options):
    """Limits of a server, and how it gathers requests."""

    batch_size: int = Field(16, ge=1, description="records a forward pass")
    wait: float = Field(0.005, ge=0, description="seconds that a request waits for others to be scored with")
    waiting: int = Field(64, ge=1, description="requests that may wait; further ones are answered with 503")
    timeout: float = Field(60.0, gt=0, description="seconds until a request is answered with 504")
    body: int = Field(8_000_000, ge=1, description="bytes of a request at most")
    records: int = Field(256, ge=1, description="records of a request at most")
    responses: int = Field(64, ge=1, description="responses of a record at most")
    characters: int = Field(100_000, ge=1, description="characters of a prompt or response at most")


class RefusedRecords(PrefkitError):
    """Records of one request that the model cannot score.

    Args:
        problems: of each, its place in the request and what is wrong.
    """

    def __init__(self, problems: Sequence[tuple[int, RecordError]]) -> None:
        self.problems = problems
        place, first = problems[0]
        more = f", and {len(problems) - 1} more records" if len(problems) > 1 else ""
        super().__init__(f"record {place}: {RecordError(first.problem, field=first.field)}{more}")


@dataclass(frozen=True)
class _Job:
    records: Sequence[Comparison]
    answer: Future[Rewards]

    @property
    def size(self) -> int:
        return len(self.records)


class Batcher:
    """The thread that owns a model, and the queue in front of it.

    Args:
        scored: scores records; only the thread calls it.
        batch_size: requests are gathered until they have so many records.
        wait: seconds that the first of them waits at most.
        waiting: requests that may wait.
    """

    def __init__(self, scored: Scored, *, batch_size: int = 16, wait: float = 0.005, waiting: int = 64) -> None:
        self._scored, self._batch_size, self._wait = scored, batch_size, wait
        self._jobs: queue.Queue[_Job | None] = queue.Queue(waiting)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rewards", daemon=True)
        self._thread.start()

    def submit(self, records: Sequence[Comparison]) -> Future[Rewards]:
        """Queue the records of a request.

        Raises:
            queue.Full: too many wait, or the server is closing.
        """
        if self._closing.is_set():
            raise queue.Full
        job = _Job(records, Future())
        self._jobs.put_nowait(job)
        return job.answer

    @property
    def waiting(self) -> int:
        """Requests that wait, about."""
        return self._jobs.qsize()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing.is_set()

    def close(self) -> None:
        """Answer what waits, take nothing more, and end the thread."""
        if not self._closing.is_set():
            self._closing.set()
            self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        open_ = True
        while open_ and (job := self._jobs.get()) is not None:
            batch, until = [job], time.monotonic() + self._wait
            while sum(each.size for each in batch) < self._batch_size:
                try:
                    following = self._jobs.get(timeout=max(until - time.monotonic(), 0))
                except queue.Empty:
                    break
                if following is None:
                    open_ = False
                    break
                batch.append(following)
            self._answer([each for each in batch if each.answer.set_running_or_notify_cancel()])

    def _answer(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        # Records are numbered through, so that scores and problems find their way back.
        numbered = [replace(record, source=None, line=None) for job in jobs for record in job.records]
        numbered = [replace(record, line=number) for number, record in enumerate(numbered)]
        problems: list[RecordError] = []
        try:
            found = {each.line: list(map(float, rewards)) for each, rewards in self._scored(numbered, problems)}
        except Exception as error:  # whatever it is, it is the answer, and the thread lives on
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:
                # One request must not spoil those that happened to be beside it.
                for job in jobs:
                    self._answer([job])
            return
        wrong = {problem.line: problem for problem in problems}
        begun = 0
        for job in jobs:
            places = range(begun, begun + job.size)
            begun += job.size
            refused = [(place - places.start, wrong[place]) for place in places if place in wrong]
            if refused:
                job.answer.set_exception(RefusedRecords(refused))
                continue
            rewards = [found.get(place, [math.nan]) for place in places]
            if not all(math.isfinite(reward) for each in rewards for reward in each):
                job.answer.set_exception(PrefkitError("the model gave no finite number for a response"))
            else:
                job.answer.set_result(rewards)


# -- what requests look like -------------------------------------------------------------------------------------------


class _Record(Options):
    prompt: Said
    responses: list[Said] = Field(min_length=1)
    annotator: str | None = None


class _Records(Options):
    """prefkit's own shape."""

    records: list[_Record]


class _Peers(Options):
    # Other programs send further fields, which mean nothing here.
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Queries(_Peers):
    """The shape of OpenRLHF's remote reward models: whole texts, and the prompts that they begin with."""

    query: list[str]
    prompts: list[str] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.prompts is None:
            raise ValueError("prompts are needed: where a prompt ends, a whole text does not say")
        if len(self.prompts) != len(self.query):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.query)} queries: give one each")
        for place, (prompt, query) in enumerate(zip(self.prompts, self.query, strict=True)):
            if not query.startswith(prompt):
                raise ValueError(f"query {place} does not begin with its prompt")
        return self


class _Texts(_Peers):
    """The shape of vLLM's scores: one prompt or several, with one response each or several to the one."""

    text_1: str | list[str]
    text_2: str | list[str]
    model: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        prompts, responses = _listed(self.text_1), _listed(self.text_2)
        if len(prompts) not in (1, len(responses)):
            raise ValueError(f"{len(prompts)} in text_1 for {len(responses)} in text_2: give one, or one each")
        return self


def _listed(text: str | list[str]) -> list[str]:
    return [text] if isinstance(text, str) else text


def _text(said: Said, field: str) -> Text:
    if isinstance(said, str):
        return said
    for message in said:
        content = message.get("content")
        if not isinstance(message.get("role"), str):
            raise RecordError(f"a message needs a role, got {message.get('role')!r:.100}", field=field)
        parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
        if not (isinstance(content, str) or parts or (content is None and message.get("tool_calls"))):
            raise RecordError(f"a message needs content, text or a list of parts, got {content!r:.100}", field=field)
    return tuple({"content": None, **message} for message in said)


def _record(prompt: Said, responses: Sequence[Said], annotator: str | None = None) -> Comparison:
    alone = len(responses) == 1
    judgement = Label(True) if alone else Ratings((0.0,) * len(responses))
    texts = tuple(_text(response, "responses") for response in responses)
    return Comparison((_text(prompt, "prompt"),), texts, judgement, annotator=annotator)


class Refusal(Exception):
    """An answer that is no rewards.

    Args:
        status: of HTTP.
        message: what was wrong and what is allowed.
        more: further fields of the answer.
    """

    def __init__(self, status: int, message: str, **more: Any) -> None:
        self.status, self.message, self.more = status, message, more
        super().__init__(message)


class RewardServer:
    """The application around a model.

    Args:
        scored: scores records; called by one thread only.
        model: name that answers bear.
        options: limits.
        token: what requests must bear in `Authorization: Bearer`; None asks for nothing.
    """

    def __init__(
        self, scored: Scored, *, model: str, options: ServingOptions | None = None, token: str | None = None
    ) -> None:
        self.options, self._model, self._token = options or ServingOptions(), model, token
        how = self.options
        self.batcher = Batcher(scored, batch_size=how.batch_size, wait=how.wait, waiting=how.waiting)
        self.app = Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/rewards", self._handled(self._records), methods=["POST"]),
                Route("/get_reward", self._handled(self._queries), methods=["POST"]),
                Route("/score", self._handled(self._scores), methods=["POST"]),
                Route("/v1/score", self._handled(self._scores), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _no_such_thing},
        )

    # -- addresses --------------------------------------------------------------------------------------------------

    async def _health(self, request: Request) -> Response:
        ready = self.batcher.ready
        about = {"status": "ok" if ready else "closing", "model": self._model, "waiting": self.batcher.waiting}
        return JSONResponse(about, 200 if ready else 503)

    async def _records(self, body: bytes) -> dict[str, Any]:
        asked = _parsed(_Records, body)
        rewards = await self._rewards([(r.prompt, r.responses, r.annotator) for r in asked.records])
        return {"rewards": rewards, "model": self._model}

    async def _queries(self, body: bytes) -> dict[str, Any]:
        asked = _parsed(_Queries, body)
        prompts = asked.prompts or []
        responses = [query.removeprefix(prompt) for query, prompt in zip(asked.query, prompts, strict=True)]
        return {"rewards": await self._singly(prompts, responses)}

    async def _scores(self, body: bytes) -> dict[str, Any]:
        asked = _parsed(_Texts, body)
        prompts, responses = _listed(asked.text_1), _listed(asked.text_2)
        if len(prompts) == 1:
            prompts = prompts * len(responses)
        found = await self._singly(prompts, responses)
        return {
            **{"id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": self._model},
            "data": [{"index": place, "object": "score", "score": reward} for place, reward in enumerate(found)],
        }

    async def _singly(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Rewards of responses, those to one prompt scored together: it is read once, and some models compare."""
        groups: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(place)
        found = await self._rewards([(prompt, [responses[k] for k in own], None) for prompt, own in groups.items()])
        rewards = {
            place: reward
            for own, each in zip(groups.values(), found, strict=True)
            for place, reward in zip(own, each, strict=True)
        }
        return [rewards[place] for place in range(len(responses))]

    async def _rewards(self, asked: Sequence[tuple[Said, Sequence[Said], str | None]]) -> Rewards:
        limits = self.options
        _check("records", len(asked), limits.records)
        records, wrong = [], []
        for place, (prompt, responses, annotator) in enumerate(asked):
            _check(f"responses of record {place}", len(responses), limits.responses)
            for text in (prompt, *responses):
                size = len(text) if isinstance(text, str) else len(json.dumps(text))
                _check(f"characters of a text of record {place}", size, limits.characters)
            try:
                records.append(_record(prompt, responses, annotator))
            except RecordError as error:
                wrong.append((place, error))
        if wrong:
            raise _refused(RefusedRecords(wrong))
        if not records:
            return []
        try:
            answer = self.batcher.submit(records)
        except queue.Full:
            problem = f"{limits.waiting} requests wait already" if self.batcher.ready else "the server is closing"
            raise Refusal(503, f"{problem}: try again", limit=limits.waiting) from None
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), limits.timeout)
        except TimeoutError:
            raise Refusal(504, f"no answer within {limits.timeout:g} s", limit=limits.timeout) from None
        except RefusedRecords as error:
            raise _refused(error) from error
        except PrefkitError as error:
            raise Refusal(500, str(error)) from error
        except Exception as error:
            logger.exception("the model failed")
            raise Refusal(500, f"the model failed: {type(error).__name__}: {error}") from error

    # -- around them ------------------------------------------------------------------------------------------------

    def _handled(
        self, answer: Callable[[bytes], Awaitable[dict[str, Any]]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                self._admit(request)
                return JSONResponse(await answer(await self._body(request)))
            except Refusal as refusal:
                headers = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(refusal.status)
                return JSONResponse({"error": refusal.message, **refusal.more}, refusal.status, headers)

        return endpoint

    def _admit(self, request: Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise Refusal(401, "the header 'Authorization: Bearer TOKEN' is missing, or its token is another one")

    async def _body(self, request: Request) -> bytes:
        limit = self.options.body
        too_large = Refusal(413, f"a request may have {limit} bytes", limit=limit)
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        read = bytearray()
        async for part in request.stream():
            read += part
            if len(read) > limit:
                raise too_large
        return bytes(read)


def _parsed(shape: type[Body], body: bytes) -> Body:
    try:
        values = json.loads(body)
        # Half of a surrogate pair passes for JSON but is no text: no tokenizer takes it, and no answer could name it.
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the request is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise Refusal(422, f"the request must be an object with {', '.join(shape.model_fields)}")
    try:
        return shape.parse(values)
    except OptionError as error:
        raise Refusal(422, str(error)) from error


def _check(what: str, given: int, limit: int) -> None:
    if given > limit:
        raise Refusal(422, f"{what} must be at most {limit}, got {given}", limit=limit)


def _refused(error: RefusedRecords) -> Refusal:
    problems = [
        {"record": place, "field": problem.field, "problem": problem.problem} for place, problem in error.problems
    ]
    return Refusal(422, str(error), problems=problems)


async def _no_such_thing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "GET /health, POST /rewards, /get_reward, /score, /v1/score"
    return JSONResponse(
        {"error": f"{request.method} {request.url.path} is nothing here; there are {known}"}, error.status_code
    )
