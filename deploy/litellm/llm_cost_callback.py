"""Tells llm-cost-exporter what calls used: a callback of a LiteLLM proxy, to lie beside its config.yaml.

`LLM_COST_URL` says where to, `LLM_COST_TOKEN_FILE` which token. Nothing of prompts, answers and keys is posted.

Records wait here until the exporter has them, and nothing waits for them. With LiteLLM's own `generic_api` (1.86.0)
either the callbacks behind it wait while a post is tried again, or those records are lost that come meanwhile. What
waits when the proxy itself ends is lost.
"""

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from contextvars import Context
from pathlib import Path
from typing import Any, Final

import aiohttp
from litellm.integrations.custom_logger import CustomLogger

log = logging.getLogger("llm_cost")

# What the exporter reads of a record, and of its metadata.
OF_A_CALL: Final = (
    "status", "model", "call_type", "id", "litellm_call_id", "custom_llm_provider", "model_group", "api_base",
    "cache_hit", "prompt_tokens", "completion_tokens", "response_cost", "endTime",
)  # fmt: skip
OF_ITS_METADATA: Final = (
    "user_api_key_alias", "user_api_key_team_alias", "user_api_key_team_id", "user_api_key_user_id",
)  # fmt: skip
OF_THE_CALLER: Final = ("requester_metadata", "spend_logs_metadata")
_MOST_OF_THE_CALLER: Final = 50  # tags, and keys of its metadata
_LONGEST_OF_THE_CALLER: Final = 256  # characters; the exporter takes names of 128, or as its config says
_MOST_WAITING_BYTES: Final = 64 * 2**20  # some 50 000 records
_MOST_POSTED_BYTES: Final = 2**20
_GATHERING_SECONDS: Final = 0.1
_PAUSE_SECONDS: Final = 1.0  # before a post is tried again; then twice as long each time
_LONGEST_PAUSE_SECONDS: Final = 30.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)
_TAKEN: Final = 202
_REFUSED: Final = (400, 413)  # what is said again is refused again
_LATER: Final = 429  # which may be at midnight
_SOON_SECONDS: Final = 600


class Records(CustomLogger):  # type: ignore[misc]
    """Records that wait, and one task that posts them in their order."""

    def __init__(self, url: str, token_file: str | None) -> None:
        super().__init__()
        self._url, self._token_file = url, token_file
        self._waiting: deque[bytes] = deque()
        self._size = self._lost = self._told = 0
        self._posting: asyncio.Task[None] | None = None

    async def async_log_success_event(self, kwargs: Mapping[str, Any], **_: object) -> None:
        """Take a record; LiteLLM calls this for each call that was answered."""
        record = kwargs.get("standard_logging_object")
        if not record:
            return
        line = _line(record)
        if self._size + len(line) > _MOST_WAITING_BYTES:
            self._lost += 1  # which is told with the next post
            return
        self._waiting.append(line)
        self._size += len(line)
        if self._posting is None or self._posting.done():
            self._posting = Context().run(asyncio.create_task, self._post_all())  # in the trace of no call

    async def _post_all(self) -> None:
        pause = _PAUSE_SECONDS
        while self._waiting:
            await asyncio.sleep(_GATHERING_SECONDS)
            if await self._post():
                pause = _PAUSE_SECONDS
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _post(self) -> bool:
        """Post what waits longest; return whether it need not be posted again."""
        batch = self._batch()
        if self._lost > self._told:
            self._tell_lost(0, "too many wait")
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT) as session,
                session.post(
                    self._url, data=b"\n".join(batch), headers=self._headers(), allow_redirects=False
                ) as reply,
            ):
                status, said, after = reply.status, (await reply.text())[:500], reply.headers.get("Retry-After", "0")
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:  # noqa: UP041 - Python 3.10
            status, said, after = 0, str(error) or type(error).__name__, "0"
        is_refused = status in _REFUSED or (status == _LATER and after.isdecimal() and int(after) > _SOON_SECONDS)
        if status != _TAKEN and not is_refused:
            log.warning("llm-cost-exporter: %d records wait, %d are lost so far: %s %s", len(self._waiting), self._lost,
                        status or "no answer:", said)  # fmt: skip
            return False
        if is_refused:
            self._tell_lost(len(batch), f"{status} {said}")
        for line in batch:
            self._waiting.popleft()
            self._size -= len(line)
        return True

    def _batch(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        for line in self._waiting:
            size += len(line)
            if batch and size > _MOST_POSTED_BYTES:
                break
            batch.append(line)
        return batch

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/x-ndjson"}
        if self._token_file:
            token = Path(self._token_file).read_text(encoding="utf-8").strip()
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _tell_lost(self, more: int, why: str) -> None:
        self._lost += more
        log.error("llm-cost-exporter: %d records are lost, %d so far: %s", self._lost - self._told, self._lost, why)
        self._told = self._lost


def _line(record: Mapping[str, Any]) -> bytes:
    """Return a record as it is posted; of what a caller wrote only short texts, which may name a feature."""
    metadata = _mapping(record.get("metadata"))
    said = {key: record.get(key) for key in OF_A_CALL}
    said["response_cost_failure_debug_info"] = bool(record.get("response_cost_failure_debug_info")) or None
    said["end_user"] = next(iter(_short([record.get("end_user")])), None)
    tags = record.get("request_tags")
    said["request_tags"] = _short(tags if isinstance(tags, (list, tuple)) else ())
    said["metadata"] = {
        **{key: metadata.get(key) for key in OF_ITS_METADATA},
        **{key: _short_values(_mapping(metadata.get(key))) for key in OF_THE_CALLER},
        "usage_object": _cached(_mapping(metadata.get("usage_object"))),
    }
    return json.dumps(said, ensure_ascii=False, default=str).encode(errors="replace")


def _short(texts: Any) -> list[str]:
    found = [text for text in texts if isinstance(text, str) and len(text) <= _LONGEST_OF_THE_CALLER]
    return found[:_MOST_OF_THE_CALLER]


def _short_values(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {key: metadata[key] for key in _short(metadata) if _short([metadata[key]])}


def _cached(usage: Mapping[str, Any]) -> dict[str, Any]:
    details = _mapping(usage.get("prompt_tokens_details"))
    return {"prompt_tokens_details": {"cached_tokens": details.get("cached_tokens")}}


def _mapping(said: Any) -> Mapping[str, Any]:
    return said if isinstance(said, Mapping) else {}


records = Records(
    os.environ.get("LLM_COST_URL", "http://llm-cost-exporter:9409/v1/usage/litellm"),
    os.environ.get("LLM_COST_TOKEN_FILE"),
)
