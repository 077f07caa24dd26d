"""The landing page in a real browser: figures, updates, accessibility, and nothing from elsewhere.

Pictures of it are left in `test-artifacts/`.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, Playwright, Route, ViewportSize, expect, sync_playwright

from tests.processes import REPOSITORY, Exporter, free_port, replayed, running
from tests.programs import program

ARTIFACTS = REPOSITORY / "test-artifacts"
DESKTOP, PHONE = ViewportSize(width=1280, height=900), ViewportSize(width=390, height=844)
CONFIG = """\
interval: 500ms
engines:
  - {{name: chat-8b, url: "{chat}", tier: fast, ttft_target: 500ms}}
  - {{name: summaries, url: "{summaries}", tier: balanced, workload: batch, gpus: 0.5, models: [balanced-model]}}
gpu: {{source: none}}
prices:
  gpu: {{usd_per_hour: 36}}
  storage: {{weights_gb: 14, usd_per_gb_month: 0.023}}
  api:
    compare_with: {{provider: elsewhere, model: big}}
    models:
      - {{model: api, input_usd_per_million: 0.15, output_usd_per_million: 0.60}}
      - {{model: big, provider: elsewhere, input_usd_per_million: 2, output_usd_per_million: 8}}
budgets:
  - {{name: inference, daily_usd: 25, monthly_usd: 600, cap: {{mode: shadow}}}}
  - {{name: trial, daily_usd: 0.01, hard_cap: true, match: {{category: api}}}}
features: {{known: [forecast], value_ratio: {{document_summary: 0.4, search: 0.05}}}}
cascades: [{{name: support, tiers: [fast, balanced], source: events}}]
usage: {{settle: 2s}}
"""
ATTRIBUTED = "llmcost_attributed_spend_usd_total"
SHARE = f"{ATTRIBUTED}{{engine=chat-8b,feature=document_summary,model=tiny-llama,team=docs,tier=fast}}"
PER_MILLION = "llmcost_usd_per_million_tokens{{engine={},tokens=output,window=5m}}".format
ENGINES = ("chat-8b", "summaries")
UP = "llmcost_source_up{{source=engine,target={}}}".format


def launched(playwright: Playwright, path: str) -> Browser:
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    return playwright.chromium.launch(executable_path=path, args=arguments)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = program("chromium")
    ARTIFACTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = launched(playwright, path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A config of two engines that are there for the whole module."""
    folder = tmp_path_factory.mktemp("landing")
    busy, calm = ("--speed=5", "--skip=165s"), ("--speed=5", "--skip=60s")
    with replayed(folder, *busy) as chat, replayed(folder, *calm) as summaries:
        path = folder / "config.yml"
        path.write_text(CONFIG.format(chat=chat, summaries=summaries))
        yield path


@pytest.fixture(scope="module")
def exporter(browser: Browser, config: Path) -> Iterator[Exporter]:
    """An exporter that has read its engines, and whose features have spent something."""
    del browser  # without one nothing need be started
    with running(config.parent, "serve", f"--config.file={config}", "--log.level=warn") as exporter:
        exporter.until("both engines at work", lambda page: all(PER_MILLION(name) in page for name in ENGINES))
        assert exporter.ask("/v1/usage", "POST", json.dumps(events()).encode()).status == 202
        exporter.until("shares", lambda page: page.get(SHARE, 0) > 0)
        yield exporter


def events() -> list[dict[str, Any]]:
    """Usage of two engines and an API, by four features, one of them with a name that would break a page."""
    own = {"model": "tiny-llama", "engine": "chat-8b", "tier": "fast", "cascade": "support"}
    api = {"model": "api", "input_tokens": 40_000, "output_tokens": 20_000}
    return [
        *({"feature": "document_summary", "team": "docs", "output_tokens": 400, **own} for _ in range(60)),
        *({"feature": "chat", "team": "support", **api} for _ in range(3)),
        {"feature": "search", "team": "web", **api},
        {"feature": "<img src=x onerror=alert(1)>", "team": '"&', **api},
    ]


@contextmanager
def opened(browser: Browser, exporter: Exporter, **settings: Any) -> Iterator[Page]:
    """Open the page, and let nothing that a browser complains of pass, nor any request to elsewhere."""
    wrong: list[str] = []
    own = f"http://127.0.0.1:{exporter.port}/"
    with browser.new_context(**{"viewport": DESKTOP, "locale": "en-GB", **settings}) as context:
        page = context.new_page()
        page.on("request", lambda request: wrong.append(request.url) if not is_own(request.url, own) else None)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(own)
        yield page
    assert wrong == []


def is_own(url: str, own: str) -> bool:
    return url.startswith((own, "data:image/svg+xml,"))


def same_beat(page: Page, exporter: Exporter) -> Any:
    """Load the page until it shows the beat of a snapshot, and return that."""
    for _ in range(20):
        found = exporter.snapshot()
        page.reload()
        if abs(as_of(page) - found["at"]) < 0.002:  # the page has milliseconds
            return found
    raise AssertionError("the page and the snapshot never came from the same beat")


def as_of(page: Page) -> float:
    script = "() => new Date(document.querySelector('.as-of time').dateTime).getTime() / 1000"
    return float(page.evaluate(script))


def fact(page: Page, within: str, name: str) -> str:
    """The value beside a name."""
    found = page.locator(within).locator("dl > div", has=page.get_by_text(name, exact=True)).locator("dd").first
    return found.inner_text()


def dollars(amount: float) -> re.Pattern[str]:
    """An amount as a page may round it: to a cent or to three digits."""
    return re.compile(re.escape(f"${amount:,.2f}") if amount >= 1 else rf"\${amount:.3g}(\.00|0)?(?!\d)")


def cells(page: Page, section: str, row: str) -> list[str]:
    found = page.locator(f"#{section} tbody tr", has=page.get_by_role("rowheader", name=row, exact=True))
    return [text.strip() for text in found.locator("th, td").all_inner_texts()]


def card(page: Page, section: str, name: str) -> Any:
    return page.locator(f"#{section} article", has=page.get_by_role("heading", level=3, name=name))


def test_every_figure_is_that_of_the_snapshot(browser: Browser, exporter: Exporter):
    with opened(browser, exporter) as page:
        found = same_beat(page, exporter)
        hourly = sum(engine["spend_usd_per_hour"] for engine in found["engines"])
        assert fact(page, "#main", "Cost now") == f"${hourly:,.2f}/h"
        assert page.title() == f"${hourly:,.2f}/h – llm-cost-exporter"  # noqa: RUF001 - a dash
        for engine in found["engines"]:
            about_engine(page, engine)
        for budget in found["budgets"]:
            about_budget(page, budget)
        about_features(page, found)
        for source in found["sources"]:
            row = page.locator("#sources tbody tr", has_text=source["target"] or source["source"]).first.inner_text()
            assert ("up" if source["up"] else "down") in row


def about_engine(page: Page, engine: Any) -> None:
    shown = card(page, "engines", engine["name"])
    text = shown.inner_text()
    assert engine["state"] in shown.get_by_role("heading", level=3).inner_text()
    assert f"${engine['spend_usd_per_hour']:,.2f}/h" in text
    per_million = engine["windows"]["5m"]["usd_per_million_output_tokens"]
    cell = shown.locator("tbody tr").first.locator("td").first.inner_text()
    assert dollars(per_million).fullmatch(cell) if per_million is not None else "not known" in cell
    models = engine["models"].values()
    for name, key in (("Running", "running"), ("Waiting", "waiting")):
        value = shown.locator("dl > div", has_text=name).locator("dd").inner_text()
        assert value == str(sum(model[key] for model in models))
    signal = engine["signals"]["queue_depth"]
    said = "scale up" if signal["value"] > signal["up"] else "low" if signal["value"] < signal["down"] else "ok"
    row = shown.locator("li", has_text="Requests waiting")
    assert re.sub(r"\s+", " ", row.inner_text()) == f"Requests waiting {signal['value']} / {signal['up']:.0f} {said}"


NAMES = {"day": "Today", "month": "This month"}


def about_budget(page: Page, budget: Any) -> None:
    words = {"ok": "ok", "warn": "warning", "over": "over the limit", "unknown": "not known"}
    for name, period in budget["periods"].items():
        shown = card(page, "budgets", budget["name"]).locator(".period", has_text=NAMES[name])
        spent, ratio = shown.locator(".spent strong").inner_text(), shown.locator(".spent span").last.inner_text()
        assert dollars(period["spent_usd"]).match(spent)
        assert dollars(period["limit_usd"]).fullmatch(spent.partition(" of ")[2])
        assert float(ratio.split()[-2].replace(",", "")) == pytest.approx(100 * period["consumed_ratio"], abs=0.51)
        assert shown.get_by_role("heading").inner_text() == f"{NAMES[name]} {words[period['state']]}"
        assert shown.get_by_role("meter").get_attribute("aria-valuenow") == f"{min(period['consumed_ratio'], 1):.4g}"


def about_features(page: Page, found: Any) -> None:
    spent: dict[str, int] = {}
    for total in found["totals"]:
        if total["kind"] == "attributed":
            feature = total["labels"]["feature"]
            spent[feature] = spent.get(feature, 0) + total["amount"]
    assert {"document_summary", "chat", "search", "unattributed", "<img src=x onerror=alert(1)>"} <= spent.keys()
    for feature, nano in spent.items():
        row = cells(page, "features", feature)
        assert dollars(nano / 1e9).fullmatch(row[2])
        assert float(row[3].split()[-2]) == pytest.approx(100 * nano / sum(spent.values()), abs=0.51)
    assert cells(page, "features", "chat")[4] == "3"
    assert cells(page, "features", "document_summary")[5] == "40 %"
    names = page.locator("#features tbody th").all_inner_texts()
    assert names == [*sorted(names[:-1], key=lambda name: (-spent[name], name)), "unattributed"]


def test_it_updates_by_itself_and_leaves_focus_and_scrolling_alone(browser: Browser, exporter: Exporter):
    with opened(browser, exporter) as page:
        page.evaluate("() => { window.same = document.querySelector('#features tbody th'); }")
        region = page.locator("#features-table")
        region.focus()
        page.evaluate("() => window.scrollTo(0, 120)")
        before, spent = as_of(page), fact(page, "#main", "Spent today")
        page.wait_for_function(
            f"() => Date.parse(document.querySelector('.as-of time').dateTime) / 1000 > {before} + 1"
        )
        assert fact(page, "#main", "Spent today") != spent
        assert page.evaluate("() => [window.same.isConnected, window.scrollY]") == [True, 120]
        expect(region).to_be_focused()
        expect(page.get_by_role("status")).to_have_text("Live")


def test_without_javascript_everything_is_there(browser: Browser, exporter: Exporter):
    with opened(browser, exporter, java_script_enabled=False) as page:
        assert fact(page, "#main", "Cost now").startswith("$54.")
        for name in ("Budgets", "Engines", "Features by cost", "Cascades", "Sources"):
            expect(page.get_by_role("heading", level=2, name=name)).to_be_visible()
        expect(page.get_by_text("Without JavaScript: load the page again")).to_be_visible()


def test_it_says_so_when_the_exporter_is_gone_and_goes_on_when_it_is_back(browser: Browser, config: Path):
    port = free_port()
    flags = "serve", f"--config.file={config}", "--log.level=warn"
    with browser.new_context(viewport=DESKTOP) as context:
        page = context.new_page()
        status = page.get_by_role("status")
        with running(config.parent, *flags, port=port) as first:
            first.until("a beat", lambda metrics: UP("chat-8b") in metrics)
            page.goto(f"http://127.0.0.1:{port}/")
            first.end()
        expect(status).to_have_text(re.compile(r"^Not updating since \d\d:\d\d:\d\d \(no answer\)$"))
        page.screenshot(path=ARTIFACTS / "gone.png")
        with running(config.parent, *flags, port=port):
            expect(status).to_have_text("Live", timeout=10_000)


def test_an_answer_that_is_no_page_is_told_by_its_status(browser: Browser, exporter: Exporter):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{exporter.port}/")
        page.route("**/", lambda route: route.fulfill(status=503, body="overloaded"))
        expect(page.get_by_role("status")).to_have_text(re.compile("it answers 503"))
        page.unroute("**/")
        expect(page.get_by_role("status")).to_have_text("Live")


def test_a_page_of_another_edition_is_loaded_anew(browser: Browser, exporter: Exporter):
    """After an upgrade of the exporter an open page would go on with a style and a script of yesterday."""

    def other(route: Route) -> None:
        text = exporter.ask("/").text
        route.fulfill(content_type="text/html", body=re.sub(r'data-edition="\w+"', 'data-edition="other"', text))

    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{exporter.port}/")
        page.route(lambda _: True, other, times=1)
        with page.expect_navigation():
            pass
        expect(page.get_by_role("status")).to_have_text("Live")


def test_a_hidden_page_asks_for_nothing(browser: Browser, exporter: Exporter):
    asked: list[str] = []
    with opened(browser, exporter) as page:
        page.on("request", lambda request: asked.append(request.url))
        show(page, hidden=True)
        page.wait_for_timeout(1300)
        assert asked == []
        with page.expect_request("**/"):
            show(page, hidden=False)


def show(page: Page, *, hidden: bool) -> None:
    script = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(script, hidden)


LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {
        "color_scheme": "light",
        "viewport": PHONE,
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
    "phone-dark": {"color_scheme": "dark", "viewport": PHONE, "device_scale_factor": 2},
}


@pytest.mark.parametrize("look", LOOKS)
def test_it_is_accessible_and_fits_in_every_look(browser: Browser, exporter: Exporter, look: str):
    with opened(browser, exporter, **LOOKS[look]) as page:
        page.screenshot(path=ARTIFACTS / f"landing-{look}.png", full_page=True)
        width = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width[0] <= width[1]
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_the_keyboard_reaches_everything(browser: Browser, exporter: Exporter):
    with opened(browser, exporter, viewport=PHONE) as page:
        page.keyboard.press("Tab")
        skip = page.get_by_role("link", name="Skip to the figures")
        expect(skip).to_be_focused()
        expect(skip).to_be_in_viewport()
        page.keyboard.press("Enter")
        expect(page.get_by_role("main")).to_be_focused()
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("() => document.activeElement.id"))
            outlined = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
            assert reached[-1] == "" or outlined == "solid"
        assert {"engine-0-table", "engine-1-table", "features-table", "sources-table"} <= set(reached)
