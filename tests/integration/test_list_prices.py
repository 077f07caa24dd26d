"""The price list by its real child process, and what is said when that cannot answer."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

import pytest

from exporter.config.prices import ApiModel, ApiPrices, ApiReference
from exporter.core.api_prices import ApiPrice, Rate, cost_nano_usd
from exporter.sources.list_prices import ListPriceError, api_prices, look_up, look_up_async

LIST = f"genai-prices {version('genai-prices')}"
MINI = ("openai", "gpt-4o-mini")
USD = 10**9

Shadow = Callable[..., Path]


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shadow:
    """Put a module in the place of genai_prices, for a child; returns the folder that it is in."""

    def put(source: str, name: str = "genai_prices") -> Path:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return tmp_path

    return put


@pytest.fixture
def hanging(shadow: Shadow) -> Path:
    """Where a child that never answers writes its process id."""
    return (
        shadow(
            "import os, pathlib, time\n"
            "here = pathlib.Path(__file__).parent\n"
            "(here / 'new').write_text(str(os.getpid()))\n"
            "(here / 'new').rename(here / 'pid')\n"
            "time.sleep(60)\n"
        )
        / "pid"
    )


def is_alive(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def own(model: str, provider: str | None = None) -> ApiModel:
    return ApiModel(
        model=model, provider=provider, input_usd_per_million=Decimal("0.15"), output_usd_per_million=Decimal("0.60")
    )


# The list


def test_the_list_knows_a_model_by_all_its_rules():
    prices = look_up([MINI, ("deepseek", "deepseek-chat"), ("google", "gemini-2.5-pro"), (None, "gpt-4o-mini")])
    mini, chat, pro, unnamed = prices.values()
    assert isinstance(mini, ApiPrice)
    assert isinstance(chat, ApiPrice)
    assert isinstance(pro, ApiPrice)
    assert isinstance(unnamed, ApiPrice)
    assert (mini.provider, mini.model, mini.source) == (*MINI, LIST)
    assert cost_nano_usd(mini, 1_790_000_000, 10**6, 0, 10**6) == 75 * USD // 100
    assert any(rule.daily for rule in chat.rules)
    assert pro.rules[-1].input.tiers
    assert (unnamed.provider, unnamed.source, unnamed.rules) == (None, f"{LIST} (openai gpt-4o-mini)", mini.rules)


async def test_an_unknown_model_hinders_no_other():
    unknown = [("openai", "gpt-0"), ("opnai", "gpt-4o"), (None, "in-house"), ("openai", "text-embedding-3-small")]
    prices = await look_up_async([*unknown, MINI])
    assert isinstance(prices[MINI], ApiPrice)
    first, *others = (prices[key] for key in unknown)
    assert isinstance(first, str)
    assert first.startswith(f"is not in the price list of {LIST} (similar: gpt-")
    assert others == [
        f"is not in the price list of {LIST}, which has no provider opnai (similar: openai)",
        f"is not in the price list of {LIST}",
        f"has no price for both input and output tokens in {LIST}",
    ]


def test_what_serve_imports_does_not_bring_the_list():
    code = "import exporter.sources.list_prices, sys; print(*{'genai_prices', 'pydantic', 'httpx2'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_child_knows_neither_secrets_nor_proxies_nor_the_working_directory(
    shadow: Shadow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = shadow("import json, os\nraise ImportError(json.dumps([sorted(os.environ), os.getcwd()]))")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    monkeypatch.setenv("TOKEN", "hunter2")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "exporter").mkdir(parents=True)
    (elsewhere / "exporter" / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ListPriceError) as caught:
        look_up([MINI])
    prefix, said = str(caught.value).split(": ", 1)
    names, directory = json.loads(said)
    assert (prefix, directory) == ("the package genai-prices cannot be used", str(elsewhere))
    assert {"PYTHONPATH", "PYDANTIC_DISABLE_PLUGINS"} <= {*names}
    assert not {"HTTPS_PROXY", "TOKEN"} & {*names}
    assert folder == tmp_path


# Trouble


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (
            "import sys; sys.modules['genai_prices'] = None",
            "sitecustomize",
            "the package genai-prices is not installed",
        ),
        (
            "import sys; sys.modules['pydantic'] = None",
            "sitecustomize",
            "the package genai-prices cannot be used: import of pydantic halted; None in sys.modules",
        ),
        (
            "__version__ = '9'",
            "genai_prices",
            "the package genai-prices cannot be used: No module named 'genai_prices.data_snapshot'; 'genai_prices' is "
            "not a package",
        ),
        ("raise RuntimeError('broken')", "genai_prices", "its process ended with 1: RuntimeError: broken"),
        ("import os; os._exit(3)", "genai_prices", "its process ended with 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "genai_prices", "its process was ended by SIGKILL"),
    ],
)
def test_a_list_that_cannot_be_read_is_said_in_words(source: str, name: str, message: str, shadow: Shadow):
    shadow(source, name)
    with pytest.raises(ListPriceError) as caught:
        look_up([MINI])
    assert str(caught.value) == message


def test_an_answer_that_is_none_is_said_in_words(shadow: Shadow):
    shadow("print('hello', flush=True)", "sitecustomize")
    with pytest.raises(ListPriceError, match=r"^its process gave an answer that is not understood: "):
        look_up([MINI])


async def test_a_child_that_hangs_is_ended_at_its_deadline(hanging: Path):
    with pytest.raises(ListPriceError, match=r"^no answer within 2 s$"):
        await look_up_async([MINI], deadline_seconds=2)
    assert not is_alive(hanging)


async def test_a_child_ends_with_whoever_waits_for_it(hanging: Path):
    asking = asyncio.create_task(look_up_async([MINI]))
    while not hanging.exists():
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not is_alive(hanging)


async def test_a_python_that_cannot_be_started_is_said_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ListPriceError, match=r"^no process can be started for it: No such file or directory$"):
        await look_up_async([MINI])


# What `serve` asks


async def test_prices_of_the_config_come_first_and_the_others_from_the_list():
    config = ApiPrices(
        compare_with=ApiReference(provider="anthropic", model="claude-sonnet-4-5"),
        models=(own("mine"), own("gpt-4o-mini", "openai"), ApiModel(model="gpt-4o", provider="openai")),
    )
    prices, problems = await api_prices(config)
    assert problems == []
    assert {key: price.source for key, price in prices.items()} == {
        (None, "mine"): "config",
        MINI: "config",
        ("openai", "gpt-4o"): LIST,
        ("anthropic", "claude-sonnet-4-5"): LIST,
    }


@pytest.mark.parametrize("provider", [None, "openai"])
async def test_a_comparison_uses_the_price_of_the_config_and_asks_nobody(provider: str | None, hanging: Path):
    config = ApiPrices(compare_with=ApiReference(provider=MINI[0], model=MINI[1]), models=(own(MINI[1], provider),))
    prices, problems = await api_prices(config)
    assert problems == []
    assert prices[MINI].source == "config"
    assert prices[MINI].rules[0].output == Rate(60 * USD // 100)
    assert not hanging.exists()


async def test_without_models_nobody_is_asked(hanging: Path):
    assert await api_prices(ApiPrices()) == ({}, [])
    assert not hanging.exists()


async def test_each_model_without_a_price_is_a_problem():
    config = ApiPrices(
        compare_with=ApiReference(provider="openai", model="zzz"),
        models=(own("mine"), ApiModel(model="gpt-4o"), ApiModel(model="zzz"), ApiModel(model="zzz", provider="openai")),
    )
    prices, problems = await api_prices(config)
    assert sorted(prices, key=str) == [(None, "gpt-4o"), (None, "mine")]
    unknown = f"is not in the price list of {LIST}"
    assert problems == [
        f"prices.api.models[2]: zzz {unknown}: its tokens are counted as unpriced",
        f"prices.api.models[3]: openai zzz {unknown}: its tokens are counted as unpriced",
        f"prices.api.compare_with: openai zzz {unknown}: nothing is compared with it",
    ]


@pytest.mark.usefixtures("hanging")
async def test_without_the_list_the_prices_of_the_config_still_hold():
    config = ApiPrices(models=(own("mine"), ApiModel(model="gpt-4o")))
    prices, problems = await api_prices(config, deadline_seconds=0.2)
    assert list(prices) == [(None, "mine")]
    assert problems == [
        "prices.api.models[1]: gpt-4o has no price, since the price list cannot be read: no answer within 0.2 s: "
        "its tokens are counted as unpriced"
    ]
