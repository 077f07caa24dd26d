"""Virtual keys of a LiteLLM proxy without a database: a key names its alias, and all are of one team.

That of the alias `two-at-once` may make no more calls at a time.
"""

from litellm.proxy._types import UserAPIKeyAuth


async def user_api_key_auth(request, api_key: str) -> UserAPIKeyAuth:  # noqa: ARG001 - as LiteLLM calls it
    alias = api_key.removeprefix("sk-")
    limit = 2 if alias == "two-at-once" else None
    return UserAPIKeyAuth(
        api_key=api_key, key_alias=alias, team_id="t1", team_alias="docs", max_parallel_requests=limit
    )
