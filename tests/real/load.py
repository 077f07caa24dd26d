#!/usr/bin/env python3
"""Bounded load on an OpenAI-compatible server on this machine.

    load.py --url http://127.0.0.1:8000 --requests 60 --concurrency 24 --stream 0.7 --abort 0.1

Sends --requests completions, at most --concurrency at a time, never longer than --max-seconds, and prints one JSON
summary: what became of the requests, and the tokens that the clients were billed. --stream and --abort are fractions;
an aborted request is hung up on after --abort-after seconds. Only loopback addresses are accepted.
"""

import argparse
import asyncio
import collections
import json
import random
import sys
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field
from typing import Any

import aiohttp

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "tokens", "flow", "and", "costs")


@dataclass(slots=True)
class Result:
    """What the clients saw."""

    outcome: collections.Counter[str] = field(default_factory=collections.Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_error: str | None = None
    seconds: float = 0.0


def span(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="http://127.0.0.1:8000")
    p.add_argument("--model", default="tiny")
    p.add_argument("--requests", type=int, default=40)
    p.add_argument("--concurrency", type=int, default=8)
    p.add_argument("--prompt-words", type=span, default=(5, 200), metavar="LOW-HIGH")
    p.add_argument("--output-tokens", type=span, default=(5, 120), metavar="LOW-HIGH")
    p.add_argument("--stream", type=float, default=0.5)
    p.add_argument("--abort", type=float, default=0.0)
    p.add_argument("--abort-after", type=float, default=0.5)
    p.add_argument("--keep-eos", action="store_true", help="let the model stop by itself (default: ignore_eos)")
    p.add_argument("--max-seconds", type=float, default=120)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--usage-url", help="where a usage event of each answer is posted")
    p.add_argument("--feature", default="load", help="of the usage events")
    args = p.parse_args()
    if urllib.parse.urlsplit(args.url).hostname not in ("127.0.0.1", "localhost", "::1"):
        p.error("--url: only a loopback address")
    return args


def body(args: argparse.Namespace, rng: random.Random) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "model": args.model,
        "prompt": " ".join(rng.choices(WORDS, k=rng.randint(*args.prompt_words))),
        "max_tokens": rng.randint(*args.output_tokens),
        "temperature": 1,
        "ignore_eos": not args.keep_eos,
    }
    if rng.random() < args.stream:
        payload |= {"stream": True, "stream_options": {"include_usage": True}}
    return payload


def cached(usage: dict[str, Any]) -> int:
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def usage_of(reply: aiohttp.ClientResponse, *, stream: bool) -> dict[str, Any]:
    if not stream:
        return dict((await reply.json())["usage"])
    usage: dict[str, Any] = {}
    async for line in reply.content:
        if line.startswith(b"data: {"):
            usage = json.loads(line[6:]).get("usage") or usage
    return usage


async def one(
    session: aiohttp.ClientSession, args: argparse.Namespace, payload: dict[str, Any], abort: bool, result: Result
) -> None:
    url = args.url.rstrip("/") + "/v1/completions"
    deadline = args.abort_after if abort else args.max_seconds
    try:
        async with asyncio.timeout(deadline), session.post(url, json=payload) as reply:
            if reply.status != 200:
                result.outcome[f"http {reply.status}"] += 1
                result.first_error = result.first_error or (await reply.text())[:300]
                return
            usage = await usage_of(reply, stream="stream" in payload)
    except TimeoutError:
        result.outcome["aborted" if abort else "timeout"] += 1
    except aiohttp.ClientError as error:
        result.outcome[type(error).__name__] += 1
    else:
        result.outcome["ok"] += 1
        result.prompt_tokens += usage["prompt_tokens"]
        result.cached_tokens += cached(usage)
        result.completion_tokens += usage["completion_tokens"]
        if args.usage_url:
            await post_usage(session, args, usage)


async def post_usage(session: aiohttp.ClientSession, args: argparse.Namespace, usage: dict[str, Any]) -> None:
    event = {
        "id": str(uuid.uuid4()),
        "feature": args.feature,
        "model": args.model,
        "input_tokens": usage["prompt_tokens"],
        "cached_input_tokens": cached(usage),
        "output_tokens": usage["completion_tokens"],
    }
    async with session.post(args.usage_url, json=event) as reply:
        if reply.status != 202:
            raise SystemExit(f"{args.usage_url}: {reply.status} {await reply.text()}")


async def main() -> None:
    args = arguments()
    rng = random.Random(args.seed)
    jobs = iter([(body(args, rng), rng.random() < args.abort) for _ in range(args.requests)])
    result = Result()
    began = time.monotonic()
    # A connection each: uvicorn hangs up on one that was idle for 5 s, at times just as the next request goes out.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def worker() -> None:
            for payload, abort in jobs:
                await one(session, args, payload, abort, result)

        async with asyncio.timeout(args.max_seconds):
            await asyncio.gather(*(worker() for _ in range(args.concurrency)))
    result.seconds = round(time.monotonic() - began, 2)
    sys.stdout.write(json.dumps({name: getattr(result, name) for name in Result.__slots__}) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
