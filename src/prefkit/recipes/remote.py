"""Rewards from a server, such as `prefkit serve` starts one."""

from __future__ import annotations

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import IO, Any

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError, PrefkitError, RecordError

TOKEN = "PREFKIT_TOKEN"
"""Environment variable with the token that servers ask for and clients send."""


def is_address(model: str) -> bool:
    """Whether a model is named by the address of a server."""
    return model.startswith(("http://", "https://"))


class _Unmoved(urllib.request.HTTPRedirectHandler):
    """No redirects: the one that urllib follows would lose the records and take the token to another server."""

    def redirect_request(self, *_: Any) -> None:
        """Leave the answer as it is, an error."""


_OPENER = urllib.request.build_opener(_Unmoved)


class RemoteReward:
    """Rewards of comparisons from a server, as `prefkit.diagnostics.Scored` takes them.

    Args:
        address: of the server, such as `http://127.0.0.1:8000`.
        batch_size: comparisons a request.
        timeout: seconds of silence, or for the rest of an answer that has begun, until a request is given up.
        patience: seconds in which a server that is busy is asked again.
        token: that the server asks for; by default that of the environment variable `PREFKIT_TOKEN`, if there is one.

    Raises:
        OptionError: the address is none of HTTP, or the token cannot be sent.
    """

    def __init__(
        self,
        address: str,
        *,
        batch_size: int = 16,
        timeout: float = 60.0,
        patience: float = 60.0,
        token: str | None = None,
    ) -> None:
        if not is_address(address):
            raise OptionError(f"the address of a server must begin with http:// or https://, got '{address}'")
        if not _sound(address):
            raise OptionError(f"'{address}' is no address: it must read http://HOST or http://HOST:PORT")
        self.address, self.batch_size, self.timeout, self.patience = address.rstrip("/"), batch_size, timeout, patience
        self._token = token if token is not None else os.environ.get(TOKEN)
        if self._token and not (self._token.isascii() and self._token.isprintable()):
            raise OptionError(f"the token ({TOKEN}) must be printable ASCII on one line")

    def __call__(
        self, comparisons: Iterable[Comparison], skipped: list[RecordError]
    ) -> Iterator[tuple[Comparison, list[float]]]:
        """Each comparison with a reward a response; those that the server cannot score are set aside.

        Raises:
            PrefkitError: the server cannot be reached, or what it answers are no rewards.
        """
        rows = iter(comparisons)
        while taken := list(islice(rows, self.batch_size)):
            batch = []
            for comparison in taken:
                if comparison.joint:
                    problem = RecordError("a server scores responses to one prompt", field="prompts")
                    skipped.append(problem.at(comparison))
                else:
                    batch.append(comparison)
            answer = self._ask(batch) if batch else {"rewards": []}
            if "rewards" not in answer:
                problems = self._problems(answer, len(batch))
                skipped.extend(problem.at(batch[place]) for place, problem in sorted(problems.items()))
                batch = [each for place, each in enumerate(batch) if place not in problems]
                answer = self._ask(batch) if batch else {"rewards": []}
            rewards: Any = answer.get("rewards")
            if not _fit(rewards, batch):
                raise PrefkitError(f"{self.address} answered without one finite reward a response: {str(answer)[:200]}")
            yield from zip(batch, rewards, strict=True)

    def _problems(self, answer: dict[str, Any], count: int) -> dict[int, RecordError]:
        """What the server says of the records that it refuses, by their place in the request."""
        found: dict[int, RecordError] = {}
        for each in answer["problems"] if isinstance(answer.get("problems"), list) else []:
            match each:
                case {"record": int(place), "problem": str(problem), **more} if 0 <= place < count:
                    field = more.get("field")
                    found[place] = RecordError(problem, field=field if isinstance(field, str) else None)
        if not found:
            raise PrefkitError(f"{self.address} answered neither rewards nor what is wrong: {str(answer)[:200]}")
        return found

    def _ask(self, batch: list[Comparison]) -> dict[str, Any]:
        records: list[dict[str, Any]] = []
        for comparison in batch:
            person = {"annotator": comparison.annotator} if comparison.annotator is not None else {}
            records.append({"prompt": comparison.prompts[0], "responses": comparison.responses, **person})
        request = urllib.request.Request(
            f"{self.address}/rewards",
            data=json.dumps({"records": records}).encode(),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {self._token}"} if self._token else {}),
        )
        until = time.monotonic() + self.patience
        while True:
            status, reason, answer = self._answer(request)
            if status == 200 or (status == 422 and answer.get("problems")):
                return answer
            if status != 503 or time.monotonic() > until:
                raise PrefkitError(f"{self.address} answered {status}: {answer.get('error') or reason}")
            time.sleep(0.2)

    def _answer(self, request: urllib.request.Request) -> tuple[int, str, dict[str, Any]]:
        """Status, its name and what was answered, whatever the status."""
        try:
            try:
                with _OPENER.open(request, timeout=self.timeout) as response:
                    return response.status, response.reason, _object(self._read(response))
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.reason, _object(self._read(error))
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
            raise PrefkitError(f"{self.address} cannot be reached: {problem}") from error

    def _read(self, response: IO[bytes]) -> bytes:
        # The timeout of a socket begins anew with every byte, so that a server that trickles would never be given up.
        until, parts = time.monotonic() + self.timeout, []
        while part := response.read1(1 << 16):  # type: ignore[attr-defined]  # IO does not know it, responses do
            parts.append(part)
            if time.monotonic() > until:
                raise TimeoutError(f"the answer was not whole within {self.timeout:g} s")
        return b"".join(parts)


def _sound(address: str) -> bool:
    """Whether host and port can be read out of an address, and nothing is in it that a request cannot hold."""
    try:
        parts = urllib.parse.urlsplit(address)
        return bool(parts.hostname) and parts.port != 0 and address.isprintable() and " " not in address
    except ValueError:
        return False


def _fit(rewards: Any, batch: Sequence[Comparison]) -> bool:
    """Whether an answer holds one finite number a response."""
    return (
        isinstance(rewards, list)
        and len(rewards) == len(batch)
        and all(
            isinstance(own, list) and len(own) == len(each.responses) and all(map(_is_number, own))
            for own, each in zip(rewards, batch, strict=True)
        )
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"error": body[:200].decode(errors="replace")}
