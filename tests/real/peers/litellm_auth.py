"""Virtual keys of a LiteLLM proxy without a database: a key names its alias, and all are of one team."""

from litellm.proxy._types import UserAPIKeyAuth


async def user_api_key_auth(request, api_key: str) -> UserAPIKeyAuth:  # noqa: ARG001 - as LiteLLM calls it
    return UserAPIKeyAuth(api_key=api_key, key_alias=api_key.removeprefix("sk-"), team_id="t1", team_alias="docs")
