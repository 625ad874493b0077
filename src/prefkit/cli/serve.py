"""`prefkit serve`: rewards of a saved model over HTTP."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from prefkit.errors import OptionError


def serve(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a reward or preference model, or a policy.")],
    reference: Annotated[
        str | None,
        typer.Option(help="Reference of a policy, whose log-ratio is the reward; an adapter brings its own."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is a free one.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Records a forward pass.")] = 16,
    wait: Annotated[float, typer.Option(min=0, help="Milliseconds a request waits for others.")] = 5.0,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; further ones get 503.")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds until a request gets 504.")] = 60.0,
    max_body: Annotated[float, typer.Option(help="Megabytes of a request at most.")] = 8.0,
    max_records: Annotated[int, typer.Option(min=1, help="Records of a request at most.")] = 256,
    max_responses: Annotated[int, typer.Option(min=1, help="Responses of a record at most.")] = 64,
    max_characters: Annotated[int, typer.Option(min=1, help="Characters of a text at most.")] = 100_000,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of prompt and response.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 for mixed precision.")] = "fp32",
) -> None:
    """Give rewards of responses over HTTP: POST /rewards, in OpenRLHF's shape /get_reward, in vLLM's /score.

    GET /health says whether the server takes requests. With the environment variable PREFKIT_TOKEN set, requests must
    bear it. Ctrl-C or SIGTERM ends the server after what it has taken is answered.

    Examples:

        prefkit serve runs/rm/model --port 8000

        curl localhost:8000/rewards -d '{"records": [{"prompt": "Hi!", "responses": ["Hello.", "Go away."]}]}'

        prefkit score http://localhost:8000 pairs.jsonl --rewards-into rewarded.jsonl
    """
    try:
        import uvicorn

        from prefkit.recipes.serving import RewardServer, ServingOptions
    except ImportError as error:
        raise OptionError(f"serving needs further packages: pip install 'prefkit[serve]' ({error})") from error
    from prefkit.recipes.remote import TOKEN
    from prefkit.recipes.rewarding import load_rewards

    options = ServingOptions.parse(
        {
            **{"batch_size": batch_size, "wait": wait / 1000, "waiting": waiting, "timeout": timeout},
            **{"body": int(max_body * 1_000_000), "records": max_records, "responses": max_responses},
            "characters": max_characters,
        }
    )
    scored = load_rewards(model, reference=reference, max_length=max_length, precision=precision, batch_size=batch_size)
    token = os.environ.get(TOKEN) or None
    server = RewardServer(scored, model=model, options=options, token=token)
    guard = "bearer token asked for" if token else f"open to all who reach it; {TOKEN} sets a token"
    Console().print(f"rewards of {model} on http://{host}:{port} ({guard})", highlight=False, soft_wrap=True)
    try:
        uvicorn.run(server.app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=int(timeout) + 1)
    finally:
        server.batcher.close()
