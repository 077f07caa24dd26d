"""Bad configs: the id is the rule that is broken, the lines are the whole message."""

import pytest

from exporter.config.load import parse
from exporter.config.nodes import ConfigError

TOP = (
    "role, hub_url, interval, max_gap, min_tokens, engines, gpu, prices, budgets, budget_api, features, cascades, "
    "scaling, alerts, usage, limits"
)
ENGINE = (
    "a mapping with name, url, kind, models, addresses, tier, workload, min_replicas, ttft_target, "
    "max_output_tokens_per_second, gpus, disaggregation, token_file, ca_file, timeout"
)
URL = "expected an address like http://127.0.0.1:8000, without user, password or query, found something else"
DURATION = "expected a duration like 30s, 500ms or 1h30m, found"
MONEY = "expected an amount in US dollars, 0 or more, found"
COUNT = "expected a number of GPUs like 1, 0.5 or 3/7, found"
FORMS = "usd_per_hour, by_name, instance, owned or timeline"
DATED_FORMS = "usd_per_hour, by_name, instance or owned"
DEVICE = "a UUID as the driver spells it, GPU-… or MIG-…"
NAME = "a name of 1 to 128 printable characters"

# The good lines that most of the configs below begin with.
GOOD = 'engines: [{url: "http://a:8000"}]\nprices: {gpu: {usd_per_hour: 1}}\n'
PRICES = "prices: {gpu: {usd_per_hour: 1}}\n"
TWO = 'engines:\n- {name: a, url: "http://a:8000"}\n- {name: b, url: "http://b:8000"}\n'
TIERS = 'engines:\n- {name: b, url: "http://b:8000", tier: slow}\n- {name: a, url: "http://a:8000", tier: fast}\n'
NO_ZONES = ("right/UTC", "posix/UTC", "tzdata.zi", "Europe", "x" * 128, "é", "/etc")


def budgets(*rests: str) -> str:
    """Return budgets, each with what else it says."""
    return "budgets:\n" + "".join(f"- {{name: b{index}, daily_usd: 1, {rest}}}\n" for index, rest in enumerate(rests))


def gpus(*forms: str) -> str:
    """Return a config with one engine for each form of `gpus`."""
    engines = (f'- {{name: e{index}, url: "http://e{index}:1", gpus: {form}}}\n' for index, form in enumerate(forms))
    return "engines:\n" + "".join(engines) + PRICES


def url(text: str) -> str:
    return f"engines: [{{url: '{text}'}}]\n{PRICES}"


def price(form: str) -> str:
    return f'engines: [{{url: "http://a:8000"}}]\nprices:\n  gpu: {form}\n'


def api(*models: str) -> str:
    """Return a config with API models, each as what else it says, beside an engine that lists two models."""
    lines = "".join(f"   - {{{model}}}\n" for model in models)
    engines = 'engines: [{url: "http://a:8000", models: [llama, alias], gpus: 0}]\n'
    return f"{engines}prices:\n  api:\n   models:\n{lines}"


def bad(rule: str, content: str | bytes, *lines: str) -> object:
    return pytest.param(content.encode() if isinstance(content, str) else content, lines, id=rule)


SYNTAX = (
    bad("an empty file", "", "config.yml: expected a config, found an empty file"),
    bad("only comments", "# nothing\n", "config.yml: expected a config, found an empty file"),
    bad("not UTF-8", b"role: \xff\n", "config.yml: expected YAML in UTF-8, found bytes that are not UTF-8"),
    bad(
        "a control character",
        b"role: \x01\n",
        "config.yml: expected YAML in UTF-8, found characters that YAML does not allow",
    ),
    bad(
        "a bracket left open",
        "role: lone\nengines: [\n",
        "config.yml:3: expected YAML, found at column 1: expected the node content, but found '<stream end>'",
    ),
    bad(
        "a colon too many",
        "role: lone: sidecar\n",
        "config.yml:1: expected YAML, found at column 11: mapping values are not allowed here",
    ),
    bad(
        "a tab as indent",
        "engines:\n\t- x\n",
        "config.yml:2: expected YAML, found at column 1: found character '\\t' that cannot start any token",
    ),
    bad(
        "two documents",
        "role: lone\n---\nrole: lone\n",
        "config.yml:2: expected YAML, found at column 1: but found another document",
    ),
    bad(
        "an alias without its anchor",
        "role: *nowhere\n",
        "config.yml:1: expected YAML, found at column 7: found undefined alias 'nowhere'",
    ),
    bad("a million brackets", "[" * 10**6, "config.yml: expected YAML in UTF-8, found nesting that is too deep"),
    bad(
        "an alias of itself",
        "&all {engines: *all}\n",
        f"config.yml:1: engines: expected a list, each item {ENGINE}, found a mapping",
    ),
    bad(
        "aliases that multiply",
        "engines:\n- &e {url: 'http://a:1', models: [" + "m," * 5000 + "]}\n" + "- *e\n" * 5000,
        "config.yml: expected at most 10000 values, aliases included, found more",
    ),
    bad(
        "more unknown keys than anyone reads",
        "".join(f"key{number}: 1\n" for number in range(10001)),
        "config.yml: expected at most 10000 values, aliases included, found more",
    ),
)

KEYS = (
    bad(
        "a gap that every beat is longer than",
        GOOD + "interval: 2s\nmax_gap: 7s\n",
        "config.yml:4: max_gap: expected at least four beats, 8 s, found 7 s",
    ),
    bad(
        "an engine with no device in its list",
        GOOD.replace("url:", "gpus: [], url:"),
        "config.yml:1: engines[0].gpus: expected at least one device or a number, found an empty list",
    ),
    bad(
        "a host with a backslash",
        "engines: [{url: 'http://a\\b:1'}]\nprices: {gpu: {usd_per_hour: 1}}\n",
        f"config.yml:1: engines[0].url: {URL}",
    ),
    bad(
        "a denial that is no error",
        GOOD + "budgets: [{name: a, daily_usd: 1, cap: {deny_status: 200}}]\n",
        "config.yml:3: budgets[0].cap.deny_status: expected an HTTP status from 400 to 599, found '200'",
    ),
    bad(
        "an unknown key that is nearly a known one",
        GOOD + "intervall: 5s\n",
        "config.yml:3: intervall: expected a known key (did you mean interval?), found an unknown one",
    ),
    bad(
        "an unknown key that is like none",
        GOOD + "zzz: 1\n",
        f"config.yml:3: zzz: expected a known key (known keys: {TOP}), found an unknown one",
    ),
    bad(
        "an unknown key deep down",
        GOOD + "scaling:\n  ttft:\n    up: 2\n    down: 1\n    upp: 3\n",
        "config.yml:7: scaling.ttft.upp: expected a known key (did you mean up?), found an unknown one",
    ),
    bad(
        "a misspelt price",
        price("{usd_per_huor: 1}"),
        "config.yml:3: prices.gpu.usd_per_huor: expected a known key (did you mean usd_per_hour?), "
        "found an unknown one",
    ),
    bad(
        "a key that stands twice",
        GOOD + "interval: 5s\ninterval: 6s\n",
        "config.yml:4: interval: expected each key once, found it again",
    ),
    bad(
        "a name that stands twice, written in two ways",
        price('{by_name: {"caf\\u00e9": 1, "cafe\\u0301": 2}}'),
        "config.yml:3: prices.gpu.by_name.café: expected each key once, found it again",
    ),
    bad("a list as a key", GOOD + "[role]: lone\n", f"config.yml:3: (file): expected {NAME} as a key, found a list"),
    bad(
        "a mapping as a key among names",
        price("{by_name: {{a: b}: 1}}"),
        f"config.yml:3: prices.gpu.by_name: expected {NAME} as a key, found a mapping",
    ),
    bad(
        "a key of two lines",
        GOOD + '"role\\nrole": lone\n',
        f"config.yml:3: (file): expected {NAME} as a key, found 'role\\nrole'",
    ),
    bad(
        "a number as a key",
        GOOD + "5: lone\n",
        f"config.yml:3: 5: expected a known key (known keys: {TOP}), found an unknown one",
    ),
)

SHAPES = (
    bad("a list as the file", "- role\n", f"config.yml:1: (file): expected a mapping with {TOP}, found a list"),
    bad("a word as the file", "lone\n", f"config.yml:1: (file): expected a mapping with {TOP}, found a single value"),
    bad(
        "a mapping where a list belongs",
        "engines: {}\n" + PRICES,
        f"config.yml:1: engines: expected a list, each item {ENGINE}, found a mapping",
    ),
    bad(
        "a word where a mapping belongs, not printed since it may be a secret",
        'engines: ["http://me:hunter2@a:8000"]\n' + PRICES,
        f"config.yml:1: engines[0]: expected {ENGINE}, found a single value",
    ),
    bad("a list where a duration belongs", GOOD + "interval: [5s]\n", f"config.yml:3: interval: {DURATION} a list"),
    bad(
        "a mapping where a role belongs",
        GOOD + "role: {}\n",
        "config.yml:3: role: expected one of lone, sidecar, found a mapping",
    ),
    bad(
        "ten lists in one another",
        GOOD + "budgets: " + "[" * 10 + "]" * 10 + "\n",
        "config.yml:3: budgets[0]: expected a mapping with name, daily_usd, monthly_usd, timezone, warn_ratio, "
        "hard_cap, cap, match, found a list",
    ),
)

SCALARS = (
    bad("a duration without a unit", GOOD + "interval: 5\n", f"config.yml:3: interval: {DURATION} '5'"),
    bad("a duration with an octal look", GOOD + "interval: 010\n", f"config.yml:3: interval: {DURATION} '010'"),
    bad("a duration with a space", GOOD + "interval: 5 s\n", f"config.yml:3: interval: {DURATION} '5 s'"),
    bad("a duration of nothing", GOOD + "max_gap: 0s\n", f"config.yml:3: max_gap: {DURATION} '0s'"),
    bad("a duration in foreign digits", GOOD + "max_gap: ٣s\n", f"config.yml:3: max_gap: {DURATION} '٣s'"),
    bad("a duration below zero", GOOD + "max_gap: -5s\n", f"config.yml:3: max_gap: {DURATION} '-5s'"),
    bad(
        "a duration beyond every clock",
        GOOD + f"max_gap: {'9' * 400}s\n",
        f"config.yml:3: max_gap: {DURATION} '{'9' * 40}…'",
    ),
    bad("yes as a number", price("{usd_per_hour: yes}"), f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} 'yes'"),
    bad("an underscore", price("{usd_per_hour: 1_000}"), f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} '1_000'"),
    bad("infinity", price("{usd_per_hour: .inf}"), f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} '.inf'"),
    bad(
        "infinity as Python has it",
        price("{usd_per_hour: inf}"),
        f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} 'inf'",
    ),
    bad("not a number", price("{usd_per_hour: .nan}"), f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} '.nan'"),
    bad("a sexagesimal", price("{usd_per_hour: 1:30}"), f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} '1:30'"),
    bad("a hexadecimal", price("{usd_per_hour: 0x10}"), f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} '0x10'"),
    bad("a price below zero", price("{usd_per_hour: -1}"), f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} '-1'"),
    bad(
        "a price beyond sense", price("{usd_per_hour: 1e19}"), f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} '1e19'"
    ),
    bad("a price in euros", price("{usd_per_hour: 1€}"), f"config.yml:3: prices.gpu.usd_per_hour: {MONEY} '1€'"),
    bad(
        "a price by name below zero",
        price('{by_name: {"NVIDIA A10G": -0.5}}'),
        f"config.yml:3: prices.gpu.by_name.NVIDIA A10G: {MONEY} '-0.5'",
    ),
    bad(
        "a whole number with an exponent",
        GOOD + "min_tokens: 1e3\n",
        "config.yml:3: min_tokens: expected a whole number, 1 or more, found '1e3'",
    ),
    bad(
        "a size in an unknown unit",
        GOOD + "limits: {body_bytes: 1MB/s}\n",
        "config.yml:3: limits.body_bytes: expected a size like 1MiB, found '1MB/s'",
    ),
    bad(
        "a ratio above one",
        GOOD + "alerts: {escalation_ratio: {warning: 30}}\n",
        "config.yml:3: alerts.escalation_ratio.warning: expected a ratio from 0 to 1, found '30'",
    ),
    bad(
        "yes as a flag",
        GOOD + "budgets: [{name: all, daily_usd: 1, hard_cap: yes}]\n",
        "config.yml:3: budgets[0].hard_cap: expected true or false, found 'yes'",
    ),
    bad(
        "an unknown GPU source",
        GOOD + "gpu: {source: rocm}\n",
        "config.yml:3: gpu.source: expected one of auto, nvml, dcgm, none, found 'rocm'",
    ),
    bad(
        "DCGM without an address",
        GOOD + "gpu: {source: dcgm}\n",
        "config.yml:3: gpu.dcgm_url: expected the address of a dcgm-exporter, since gpu.source is dcgm, found nothing",
    ),
    bad(
        "a variable that is not one",
        GOOD + "gpu: {dcgm_url: 'http://${node}:9400'}\n",
        "config.yml:3: gpu.dcgm_url: expected an address like http://127.0.0.1:9400 or http://${NODE_IP}:9400, without "
        "user, password or query, found something else",
    ),
    bad(
        "no GPU selected",
        GOOD + "gpu: {select: []}\n",
        "config.yml:3: gpu.select: expected own, all or at least one UUID, found an empty list",
    ),
    bad(
        "a budget whose address is taken",
        GOOD + "budgets: [{name: check, daily_usd: 1}]\n",
        "config.yml:3: budgets[0].name: expected another name, since /v1/budgets/check is the check, found 'check'",
    ),
    bad(
        "a device that is none",
        GOOD.replace('"}]', '", gpus: [mig-aaaa]}]'),
        f"config.yml:1: engines[0].gpus[0]: expected {DEVICE}, found 'mig-aaaa'",
    ),
    bad(
        "one GPU selected without a list",
        GOOD + "gpu: {select: GPU-1}\n",
        f"config.yml:3: gpu.select: expected one of own, all or a list, each item {DEVICE}, found 'GPU-1'",
    ),
    bad(
        "an unknown way to end",
        GOOD + "gpu: {on_fatal: panic}\n",
        "config.yml:3: gpu.on_fatal: expected one of exit, degrade, found 'panic'",
    ),
    bad("a name of spaces", GOOD + "gpu: {name: '  '}\n", f"config.yml:3: gpu.name: expected {NAME}, found '  '"),
    bad(
        "a role that is not built yet",
        GOOD + "role: hub\n",
        "config.yml:3: role: expected one of lone, sidecar, found 'hub'",
    ),
    bad("a role in capitals", GOOD + "role: LONE\n", "config.yml:3: role: expected one of lone, sidecar, found 'LONE'"),
)

ENGINES = (
    bad("no engines", PRICES, f"config.yml:1: engines: expected a list, each item {ENGINE}, found nothing"),
    bad(
        "engines left empty",
        "engines:\n" + PRICES,
        f"config.yml:1: engines: expected a list, each item {ENGINE}, found nothing",
    ),
    bad(
        "a list of no engines",
        "engines: []\n" + PRICES,
        "config.yml:1: engines: expected at least one engine, or role lone with usage.tokens for the spend of APIs "
        "alone, found neither",
    ),
    bad(
        "a sidecar of no engines",
        "role: sidecar\nengines: []\nusage: {tokens: [{file: /run/t}]}\n",
        "config.yml:2: engines: expected at least one engine, or role lone with usage.tokens for the spend of APIs "
        "alone, found neither",
    ),
    *(
        bad(
            f"{name} that no engine pays",
            f"engines: []\nusage: {{tokens: [{{file: /run/t}}]}}\nprices:\n  {name}: {value}\n",
            f"config.yml:4: prices.{name}: expected none without engines, which pay for it, found some",
        )
        for name, value in {
            "storage": "{weights_gb: 100, usd_per_gb_month: 0.1}",
            "network": "{usd_per_gb: 0.09}",
            "other": "[{name: lb, usd_per_hour: 0.1}]",
        }.items()
    ),
    *(
        bad(
            f"an address that is {what}",
            f"engines: [{{name: a, url: 'http://a:8000', addresses: ['a:80', '{text}']}}]\n" + PRICES,
            f"config.yml:1: engines[0].addresses[1]: expected HOST:PORT, found '{text}'",
        )
        for what, text in {"none": "chat", "a url": "http://chat:8000", "of a name": "chat:http"}.items()
    ),
    bad(
        "an engine without an address",
        "engines: [{name: a}]\n" + PRICES,
        "config.yml:1: engines[0].url: expected an address like http://127.0.0.1:8000, without user, password or "
        "query, found nothing",
    ),
    bad("an address without a scheme", url("a:8000"), f"config.yml:1: engines[0].url: {URL}"),
    bad("an address of another scheme", url("ftp://a"), f"config.yml:1: engines[0].url: {URL}"),
    bad("an address with a password", url("http://me:hunter2@a:8000"), f"config.yml:1: engines[0].url: {URL}"),
    bad("an address with a token", url("http://a:8000/metrics?token=hunter2"), f"config.yml:1: engines[0].url: {URL}"),
    bad("an address without a host", url("http://"), f"config.yml:1: engines[0].url: {URL}"),
    bad("an address with an impossible port", url("http://a:99999"), f"config.yml:1: engines[0].url: {URL}"),
    bad("an address with half a bracket", url("http://[::1"), f"config.yml:1: engines[0].url: {URL}"),
    bad("a hub with a password", GOOD + "hub_url: http://me:hunter2@hub\n", f"config.yml:3: hub_url: {URL}"),
    bad(
        "several engines, one without a name",
        'engines:\n- {name: a, url: "http://a:1"}\n- {url: "http://b:1"}\n' + PRICES,
        "config.yml:3: engines[1].name: expected a name, since there are several engines, found only the default",
    ),
    bad(
        "one name for two engines",
        'engines:\n- {name: a, url: "http://a:1"}\n- {name: a, url: "http://b:1"}\n' + PRICES,
        "config.yml:3: engines[1].name: expected one that no other has, found 'a' again",
    ),
    bad(
        "one address for two engines",
        'engines:\n- {name: a, url: "http://a:1"}\n- {name: b, url: "http://a:1/"}\n' + PRICES,
        "config.yml:3: engines[1].url: expected one that no other has, found the same again",
    ),
    bad(
        "a timeout longer than the interval",
        'interval: 2s\nengines: [{url: "http://a:1", timeout: 3s}]\n' + PRICES,
        "config.yml:2: engines[0].timeout: expected at most the interval, 2 s, found 3 s",
    ),
    bad(
        "an interval too short to read in",
        GOOD + "interval: 50ms\n",
        "config.yml:3: interval: expected 0.1 s or more, found 0.05 s",
    ),
)

GPUS = (
    bad("a word of GPUs", gpus("many"), f"config.yml:2: engines[0].gpus: {COUNT} 'many'"),
    bad("GPUs below zero", gpus("-1"), f"config.yml:2: engines[0].gpus: {COUNT} '-1'"),
    bad("more GPUs than an engine has", gpus("1025"), f"config.yml:2: engines[0].gpus: {COUNT} '1025'"),
    bad("a fraction of nothing", gpus("3/0"), f"config.yml:2: engines[0].gpus: {COUNT} '3/0'"),
    bad(
        "a mapping of GPUs",
        gpus("{uuid: GPU-1}"),
        f"config.yml:2: engines[0].gpus: expected a number of GPUs like 1, 0.5 or 3/7 or a list, each item {DEVICE} or "
        "a mapping with uuid, share, slices, found a mapping",
    ),
    bad(
        "a MIG instance without slices",
        gpus("[MIG-1]"),
        "config.yml:2: engines[0].gpus[0]: expected {uuid: MIG-…, slices: 1 to 7} for a MIG instance, found no slices",
    ),
    bad(
        "a share of a MIG instance",
        gpus("[{uuid: MIG-1, share: 0.5}]"),
        "config.yml:2: engines[0].gpus[0]: expected {uuid: MIG-…, slices: 1 to 7} for a MIG instance, found no slices",
    ),
    bad(
        "eight slices of seven",
        gpus("[{uuid: MIG-1, slices: 8}]"),
        "config.yml:2: engines[0].gpus[0].slices: expected a number of compute slices from 1 to 7, found '8'",
    ),
    bad(
        "a share above one",
        gpus("[{uuid: GPU-1, share: 1.5}]"),
        "config.yml:2: engines[0].gpus[0].share: expected a share of one GPU above 0, up to 1, found '1.5'",
    ),
    bad(
        "a share and slices",
        gpus("[{uuid: GPU-1, share: 0.5, slices: 3}]"),
        "config.yml:2: engines[0].gpus[0]: expected share or slices, found both",
    ),
    bad(
        "a device listed twice",
        gpus("[GPU-1, GPU-1]"),
        "config.yml:2: engines[0].gpus[1]: expected shares of one GPU that sum to at most 1, found 2",
    ),
    bad(
        "shares over one across engines",
        gpus("[{uuid: GPU-1, share: 0.75}]", "[GPU-2, {uuid: GPU-1, share: 0.5}]"),
        "config.yml:3: engines[1].gpus[1]: expected shares of one GPU that sum to at most 1, found 1.25",
    ),
    bad(
        "one MIG instance for two engines",
        gpus("[{uuid: MIG-1, slices: 1}]", "[{uuid: MIG-1, slices: 1}]"),
        "config.yml:3: engines[1].gpus[0]: expected shares of one GPU that sum to at most 1, found 2",
    ),
)

MONEYS = (
    bad(
        "no price",
        'engines: [{url: "http://a:8000"}]\n',
        f"config.yml:1: prices.gpu: expected {FORMS}, since engines are charged for GPUs, found nothing",
    ),
    bad(
        "a price without a form", price("{}"), f"config.yml:3: prices.gpu: expected exactly one of {FORMS}, found none"
    ),
    bad(
        "two forms of a price",
        price("{usd_per_hour: 1, by_name: {A10G: 1}}"),
        f"config.yml:3: prices.gpu: expected exactly one of {FORMS}, found 2",
    ),
    bad(
        "an instance of no GPUs",
        price("{instance: {usd_per_hour: 12, gpus: 0}}"),
        "config.yml:3: prices.gpu.instance.gpus: expected a whole number, 1 or more, found '0'",
    ),
    bad(
        "owned hardware beside a rent",
        price("{usd_per_hour: 1, owned: {purchase_usd: 1, lifetime: 1y}}"),
        f"config.yml:3: prices.gpu: expected exactly one of {FORMS}, found 2",
    ),
    bad(
        "owned hardware without its price and lifetime",
        price("{owned: {}}"),
        f"config.yml:3: prices.gpu.owned.lifetime: {DURATION} nothing",
        f"config.yml:3: prices.gpu.owned.purchase_usd: {MONEY} nothing",
    ),
    bad(
        "a lifetime in bare years",
        price("{owned: {purchase_usd: 1, lifetime: 4}}"),
        f"config.yml:3: prices.gpu.owned.lifetime: {DURATION} '4'",
    ),
    bad(
        "a lifetime below a day",
        price("{owned: {purchase_usd: 1, lifetime: 4h}}"),
        "config.yml:3: prices.gpu.owned.lifetime: expected a day or more, found 14400 s",
    ),
    bad(
        "a purchase of no GPUs",
        price("{owned: {purchase_usd: 1, lifetime: 1y, gpus: 0}}"),
        "config.yml:3: prices.gpu.owned.gpus: expected a whole number, 1 or more, found '0'",
    ),
    bad(
        "a maintenance below zero",
        price("{owned: {purchase_usd: 1, lifetime: 1y, maintenance_usd_per_year: -1}}"),
        f"config.yml:3: prices.gpu.owned.maintenance_usd_per_year: {MONEY} '-1'",
    ),
    bad(
        "a power usage effectiveness below one",
        price("{owned: {purchase_usd: 1, lifetime: 1y, usd_per_kwh: 0.2, pue: 0.9}}"),
        "config.yml:3: prices.gpu.owned.pue: expected a number, 1 or more, found '0.9'",
    ),
    bad(
        "power without a price of energy",
        price("{timeline: [{from: 2026-12-01, owned: {purchase_usd: 1, lifetime: 1h, pue: 1.2, watts: 300}}]}"),
        "config.yml:3: prices.gpu.timeline[0].owned: expected usd_per_kwh beside pue, found none",
        "config.yml:3: prices.gpu.timeline[0].owned: expected usd_per_kwh beside watts, found none",
        "config.yml:3: prices.gpu.timeline[0].owned.lifetime: expected a day or more, found 3600 s",
    ),
    bad(
        "a price of energy that is none, said once",
        price("{owned: {purchase_usd: 1, lifetime: 1y, usd_per_kwh: cheap, watts: 300}}"),
        f"config.yml:3: prices.gpu.owned.usd_per_kwh: {MONEY} 'cheap'",
    ),
    bad(
        "bytes to ourselves",
        GOOD.replace("{gpu:", "{network: {usd_per_gb: 1, interfaces: [eth0, lo]}, gpu:"),
        "config.yml:2: prices.network.interfaces[1]: expected an interface to elsewhere, found the loopback",
    ),
    bad(
        "one interface where a list belongs",
        GOOD.replace("{gpu:", "{network: {usd_per_gb: 1, interfaces: eth0}, gpu:"),
        f"config.yml:2: prices.network.interfaces: expected a list, each item {NAME}, found a single value",
    ),
    bad(
        "a timeline out of order",
        price("{timeline: [{from: 2026-12-02, usd_per_hour: 1},\n  {from: 2026-12-01, usd_per_hour: 2}]}"),
        "config.yml:4: prices.gpu.timeline[1].from: expected instants in rising order, found one that is not later "
        "than the one before",
    ),
    bad(
        "a timeline that repeats an instant in another zone",
        price(
            '{timeline: [{from: "2026-12-01T00:00:00Z", usd_per_hour: 1},\n'
            '  {from: "2026-12-01T01:00:00+01:00", usd_per_hour: 2}]}'
        ),
        "config.yml:4: prices.gpu.timeline[1].from: expected instants in rising order, found one that is not later "
        "than the one before",
    ),
    bad(
        "a timeline without a form",
        price("{timeline: [{from: 2026-12-01}]}"),
        f"config.yml:3: prices.gpu.timeline[0]: expected exactly one of {DATED_FORMS}, found none",
    ),
    bad(
        "a timeline with two forms",
        price("{timeline: [{from: 2026-12-01, usd_per_hour: 1, by_name: {A10G: 1}}]}"),
        f"config.yml:3: prices.gpu.timeline[0]: expected exactly one of {DATED_FORMS}, found 2",
    ),
    bad(
        "a day that no calendar has",
        price("{timeline: [{from: 2026-02-30, usd_per_hour: 1}]}"),
        "config.yml:3: prices.gpu.timeline[0].from: expected a date or time like 2026-11-01 or 2026-11-01T00:00:00Z, "
        "found '2026-02-30'",
    ),
    bad(
        "a cost of an unknown engine",
        TWO + "prices:\n  gpu: {usd_per_hour: 1}\n  other:\n  - {name: disk, usd_per_hour: 1, engine: c}\n",
        "config.yml:7: prices.other[0].engine: expected one of a, b, found 'c'",
    ),
    bad(
        "one name for two costs",
        TWO
        + "prices:\n  gpu: {usd_per_hour: 1}\n  other:\n"
        + "  - {name: disk, usd_per_hour: 1}\n  - {name: disk, usd_per_hour: 2}\n",
        "config.yml:8: prices.other[1].name: expected one that no other has, found 'disk' again",
    ),
)

PAIR = "expected both input_usd_per_million and output_usd_per_million, or neither for the list price"
SERVED = "expected one, since an engine lists"
BOTH = "input_usd_per_million: 1, output_usd_per_million: 1"
APIS = (
    bad(
        "one of two API prices",
        api("model: a, input_usd_per_million: 1", "model: b, output_usd_per_million: 0"),
        f"config.yml:5: prices.api.models[0]: {PAIR}, found only input_usd_per_million",
        f"config.yml:6: prices.api.models[1]: {PAIR}, found only output_usd_per_million",
    ),
    bad(
        "an API price for cached tokens alone",
        api("model: a, cached_input_usd_per_million: 1"),
        "config.yml:5: prices.api.models[0]: expected input_usd_per_million and output_usd_per_million beside "
        "cached_input_usd_per_million, found neither",
    ),
    bad(
        "one API model twice",
        api("model: a", "model: a, provider: p", f"model: a, {BOTH}", f"model: a, provider: p, {BOTH}", "model: b"),
        "config.yml:7: prices.api.models[2].model: expected one that no other of its provider has, found 'a' again",
        "config.yml:8: prices.api.models[3].model: expected one that no other of its provider has, found 'a' again",
    ),
    bad(
        "an API model that an engine serves",
        api("model: alias", "model: llama, provider: p", f"model: llama, {BOTH}"),
        f"config.yml:5: prices.api.models[0].provider: {SERVED} 'alias' in models, found nothing",
        f"config.yml:7: prices.api.models[2].provider: {SERVED} 'llama' in models, found nothing",
    ),
    bad(
        "an API price below zero",
        api("model: a, input_usd_per_million: -1, output_usd_per_million: 1"),
        f"config.yml:5: prices.api.models[0].input_usd_per_million: {MONEY} '-1'",
    ),
)

SHOWBACK = (
    bad(
        "a wait for events that is too short or too long",
        GOOD + "usage: {settle: 500ms}\n",
        "config.yml:3: usage.settle: expected 1 s to 3600 s, found 0.5 s",
    ),
    bad(
        "features that are labels of ours, or named twice",
        GOOD + "features:\n  known: [a, other,\n    a]\n",
        "config.yml:4: features.known[1]: expected another name, since 'other' is a label of ours, found it",
        "config.yml:5: features.known[2]: expected each feature once, found 'a' again",
    ),
    bad(
        "value that is more than all",
        GOOD + "features: {value_ratio: {a: 0.7, b: 0.4}}\n",
        "config.yml:3: features.value_ratio: expected shares that sum to at most 1, found 1.1",
    ),
    bad(
        "cascades that lead nowhere",
        GOOD + "cascades:\n- {name: a, tiers: [b]}\n- {name: a, tiers: [b, c, b]}\n",
        "config.yml:4: cascades[0].tiers: expected at least two, found 1",
        "config.yml:5: cascades[1].name: expected one that no other has, found 'a' again",
        "config.yml:5: cascades[1].tiers[2]: expected each tier once, found 'b' again",
    ),
    bad(
        "a cascade of engines that are not there",
        GOOD + "cascades: [{name: a, tiers: [b, c], source: engines}]\n",
        "config.yml:3: cascades[0].tiers[0]: expected the tier of an engine, since source is engines, found 'b'",
        "config.yml:3: cascades[0].tiers[1]: expected the tier of an engine, since source is engines, found 'c'",
    ),
    bad(
        "a budget of a feature's storage",
        GOOD + "budgets: [{name: a, daily_usd: 1, match: {feature: f, category: storage}}]\n",
        "config.yml:3: budgets[0].match.category: expected one of api, compute, compute_busy beside a feature or a "
        "team, found 'storage'",
    ),
)

THRESHOLDS = (
    bad(
        "a budget without a limit",
        GOOD + "budgets: [{name: all}]\n",
        "config.yml:3: budgets[0]: expected daily_usd or monthly_usd, found neither",
    ),
    bad(
        "a budget of nothing",
        GOOD + "budgets: [{name: all, daily_usd: 0}]\n",
        "config.yml:3: budgets[0].daily_usd: expected an amount in US dollars above 0, found '0'",
    ),
    bad(
        "a time zone that is none",
        GOOD + "budgets: [{name: all, daily_usd: 1, timezone: Berlin}]\n",
        "config.yml:3: budgets[0].timezone: expected an IANA time zone like Europe/Berlin, found 'Berlin'",
    ),
    bad(
        "a time zone that leaves its folder",
        GOOD + "budgets: [{name: all, daily_usd: 1, timezone: ../UTC}]\n",
        "config.yml:3: budgets[0].timezone: expected an IANA time zone like Europe/Berlin, found '../UTC'",
    ),
    bad(
        "time zones that a system's folder has, and IANA has not",
        GOOD + budgets(*(f"timezone: {zone}" for zone in NO_ZONES)),
        *(
            f"config.yml:{index + 4}: budgets[{index}].timezone: expected an IANA time zone like Europe/Berlin, "
            f"found {zone!r}"
            for index, zone in enumerate(NO_ZONES)
        ),
    ),
    bad(
        "an age of a figure that the beat cannot keep",
        GOOD
        + "interval: 5m\n"
        + budgets("", "cap: {mode: enforce,\n  max_age: 899s}", "cap: {mode: off}", "cap: {max_age: 15m}"),
        "config.yml:5: budgets[0].cap.max_age: expected at least three beats, 900 s, found 120 s",
        "config.yml:7: budgets[1].cap.max_age: expected at least three beats, 900 s, found 899 s",
    ),
    bad(
        "budgets that have no address",
        GOOD
        + "budgets:\n"
        + "".join(f"- {{name: {name}, daily_usd: 1}}\n" for name in ("check", "check*x", ".", "..")),
        "config.yml:4: budgets[0].name: expected another name, since /v1/budgets/check is the check, found 'check'",
        "config.yml:5: budgets[1].name: expected another name, since /v1/budgets/check is the check, found 'check*x'",
        "config.yml:6: budgets[2].name: expected another name, since no address can hold it, found '.'",
        "config.yml:7: budgets[3].name: expected another name, since no address can hold it, found '..'",
    ),
    bad(
        "budgets that match nothing",
        TIERS + PRICES + budgets("match: {engine: chta}", "match: {category: compute_buzy}", "match: {tier: fsat}"),
        "config.yml:6: budgets[0].match.engine: expected one of a, b, found 'chta'",
        "config.yml:7: budgets[1].match.category: expected one of api, compute, compute_busy, compute_down, "
        "compute_idle, compute_loading, compute_unobserved, network, other, storage, found 'compute_buzy'",
        "config.yml:8: budgets[2].match.tier: expected one of fast, slow, found 'fsat'",
    ),
    bad(
        "a budget of a tier where there is none",
        GOOD + budgets("match: {tier: fast}"),
        "config.yml:4: budgets[0].match.tier: expected none, since no engine has a tier, found 'fast'",
    ),
    bad(
        "a hard cap that is off",
        GOOD + "budgets: [{name: all, daily_usd: 1, hard_cap: true, cap: {mode: off}}]\n",
        "config.yml:3: budgets[0].hard_cap: expected false while cap.mode is off, found true",
    ),
    bad(
        "one name for two budgets",
        GOOD + "budgets:\n- {name: all, daily_usd: 1}\n- {name: all, monthly_usd: 1}\n",
        "config.yml:5: budgets[1].name: expected one that no other has, found 'all' again",
    ),
    bad(
        "a sidecar with budgets",
        "role: sidecar\n" + GOOD + "budgets: [{name: all, daily_usd: 1}]\n",
        "config.yml:4: budgets: expected none in a sidecar (the hub holds the budgets), found some",
    ),
    bad(
        "scaling down where it scales up",
        GOOD + "scaling:\n  queue_depth: {up: 5, down: 5}\n  gpu_utilization: {up: 0.2, down: 0.8}\n",
        "config.yml:4: scaling.queue_depth: expected down below up, found down 5 and up 5",
        "config.yml:5: scaling.gpu_utilization: expected down below up, found down 0.8 and up 0.2",
    ),
    bad(
        "half of a pair of edges",
        GOOD + "scaling: {ttft: {up: 3}}\n",
        "config.yml:3: scaling.ttft.down: expected a number, 0 or more, found nothing",
    ),
)

SEVERAL = (
    bad(
        "several problems at once, in the order of lines",
        "rolle: lone\ninterval: 5\nengines:\n- {name: chat, url: ftp://a, gpus: x}\n- 7\n"
        "prices:\n  gpu: {usd_per_hour: -1}\nscaling: []\n",
        "config.yml:1: rolle: expected a known key (did you mean role?), found an unknown one",
        f"config.yml:2: interval: {DURATION} '5'",
        f"config.yml:4: engines[0].gpus: {COUNT} 'x'",
        f"config.yml:4: engines[0].url: {URL}",
        f"config.yml:5: engines[1]: expected {ENGINE}, found a single value",
        f"config.yml:7: prices.gpu.usd_per_hour: {MONEY} '-1'",
        "config.yml:8: scaling: expected a mapping with queue_depth, gpu_utilization, ttft, found a list",
    ),
    bad(
        "values that are wrong beside values that disagree",
        TWO + PRICES + "min_tokens: 0\nscaling: {ttft: {up: 1, down: 1}}\nbudgets: [{name: all}]\n",
        "config.yml:5: min_tokens: expected a whole number, 1 or more, found '0'",
        "config.yml:6: scaling.ttft: expected down below up, found down 1 and up 1",
        "config.yml:7: budgets[0]: expected daily_usd or monthly_usd, found neither",
    ),
)

BAD = (*SYNTAX, *KEYS, *SHAPES, *SCALARS, *ENGINES, *GPUS, *MONEYS, *APIS, *SHOWBACK, *THRESHOLDS, *SEVERAL)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("content", "lines"), BAD)
def test_a_bad_config_is_refused_with_every_problem_on_a_line_of_its_own(
    content: bytes, lines: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(content, "config.yml")
    assert caught.value.lines == list(lines)
