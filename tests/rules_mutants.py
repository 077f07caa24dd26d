"""Mutation test of the rules: each small change of a rule must fail one of its tests (`make rules`).

A mutant is run with those rules alone that its tests look at, one test after the other, the shortest first, until one
fails. What survives must stand in rules/tests/equivalents.txt, with the reason why no test can tell it from the rule.
"""

import copy
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.faster import milliseconds

RULES = Path(__file__).parent.parent / "rules"
EQUIVALENTS = RULES / "tests/equivalents.txt"
TURNED = {
    ">": "<", "<": ">", ">=": "<=", "<=": ">=", "==": "!=", "!=": "==", "and": "unless", "unless": "and",
}  # fmt: skip
OPERATORS = re.compile(
    r"""
      "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | `[^`]*` | \#[^\n]*   # words
    | \{ (?: "(?:\\.|[^"\\])*" | [^}"] )* \}                        # matchers
    | (?P<operator> [<>]=? | [=!]= | (?<![\w:]) (?:and|unless) (?![\w:]) )
    """,
    re.VERBOSE,
)


class Mutant(NamedTuple):
    topic: str  # the file
    rule: str  # its alert or record; the second of a name has #2
    change: str
    at: int  # which rule of the file it is
    mutated: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.topic, self.rule, self.change


def rules_of(document: Any) -> list[dict[str, Any]]:
    return [rule for group in document["groups"] for rule in group["rules"]]


def name_of(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


def turned(query: str) -> Iterator[tuple[str, str]]:
    """Turn one operator after the other: say which, and give the query."""
    counts: Counter[str] = Counter()
    for found in OPERATORS.finditer(query):
        if old := found["operator"]:
            counts[old] += 1
            place = f" ({counts[old]})" if counts[old] > 1 else ""
            start, end = found.span("operator")
            yield f"{old}{place} becomes {TURNED[old]}", query[:start] + TURNED[old] + query[end:]


def mutants_of(topic: str, document: Any) -> Iterator[Mutant]:
    seen: Counter[str] = Counter()
    for at, rule in enumerate(rules_of(document)):
        name = name_of(rule)
        seen[name] += 1
        label = f"{name}#{seen[name]}" if seen[name] > 1 else name
        for change, query in turned(str(rule["expr"])):
            yield Mutant(topic, label, change, at, {**rule, "expr": query})
        for key in ("for", "keep_firing_for"):
            if key in rule:
                yield Mutant(topic, label, f"no {key}", at, {name: rule[name] for name in rule if name != key})


def every_mutant(topics: Iterable[str] = ()) -> list[Mutant]:
    paths = sorted(path for path in RULES.glob("*.yml") if not topics or path.stem in topics)
    return [mutant for path in paths for mutant in mutants_of(path.name, yaml.safe_load(path.read_bytes()))]


def equivalents() -> dict[tuple[str, str, str], str]:
    """The mutants that may survive, and why."""
    found = {}
    for line in EQUIVALENTS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            topic, rule, change, reason = (part.strip() for part in line.split("|"))
            assert reason, line
            found[topic, rule, change] = reason
    return found


def uses(rule: dict[str, Any]) -> set[str]:
    return set(re.findall(r"[a-zA-Z_:][\w:]*", str(rule["expr"])))


def made_of(wanted: set[str], rules: list[dict[str, Any]]) -> set[str]:
    """Return these rules and those records that they are made of."""
    found: set[str] = set()
    more = wanted
    while more - found:
        found |= more
        more = {name for rule in rules if name_of(rule) in found for name in uses(rule)}
    return found & {name_of(rule) for rule in rules}


def touched(name: str, rules: list[dict[str, Any]]) -> set[str]:
    """Return the rule and those that are made of it."""
    return {name_of(rule) for rule in rules if name in made_of({name_of(rule)}, rules)}


def tests_of(topic: str) -> list[dict[str, Any]]:
    """Return all tests of a file of rules, each as a document of its own."""
    found = []
    for path in sorted((RULES / "tests").glob("*_test.yml")):
        document = yaml.safe_load(path.read_bytes())
        if f"../{topic}" in document["rule_files"]:
            head = {key: value for key, value in document.items() if key not in ("tests", "rule_files")}
            found += [{**head, "rule_files": ["rules.yml"], "tests": [test]} for test in document["tests"]]
    return found


def asked_by(case: dict[str, Any], alerts: set[str]) -> set[str]:
    """Return the rules whose results a case of a test looks at; ALERTS without a name are all alerts."""
    if "alertname" in case:
        return {str(case["alertname"])}
    if "ALERTS" not in (names := uses(case)):
        return names
    return names | (set(re.findall(r'alertname="(\w+)"', case["expr"])) or alerts)


def about(names: set[str], alerts: set[str], document: dict[str, Any]) -> dict[str, Any] | None:
    """Leave of a test what looks at these rules, or nothing."""
    (test,) = document["tests"]
    left = {
        kind: [case for case in test.get(kind, ()) if asked_by(case, alerts) & names]
        for kind in ("alert_rule_test", "promql_expr_test")
    }
    return {**document, "tests": [{**test, **left}]} if any(left.values()) else None


def cases_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    (test,) = document["tests"]
    return [*test["alert_rule_test"], *test["promql_expr_test"]]


def length(document: dict[str, Any]) -> int:
    return max(milliseconds(str(case["eval_time"])) for case in cases_of(document))


def cut(document: Any, names: set[str]) -> Any:
    """Leave only the named rules of a document."""
    groups = [
        {**group, "rules": [rule for rule in group["rules"] if name_of(rule) in names]} for group in document["groups"]
    ]
    return {"groups": [group for group in groups if group["rules"]]}


def with_mutant(document: Any, mutant: Mutant) -> Any:
    mutated = copy.deepcopy(document)
    rule = rules_of(mutated)[mutant.at]
    rule.clear()
    rule.update(mutant.mutated)
    return mutated


def fails(rules: Any, test: dict[str, Any]) -> bool:
    with tempfile.TemporaryDirectory(prefix="rules_mutants") as folder:
        (Path(folder) / "rules.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
        (Path(folder) / "test.yml").write_text(yaml.safe_dump(test), encoding="utf-8")
        done = subprocess.run(
            ["promtool", "test", "rules", f"{folder}/test.yml"], capture_output=True, text=True, check=False,
            env={**os.environ, "GOMAXPROCS": "1"},
        )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode in (0, 1), (done.returncode, said)  # nobody else ended it
    assert "parse" not in said, said
    return done.returncode != 0


def survives(mutant: Mutant) -> bool:
    document = yaml.safe_load((RULES / mutant.topic).read_bytes())
    rules, name = rules_of(document), name_of(mutant.mutated)
    alerts, names = {rule["alert"] for rule in rules if "alert" in rule}, touched(name, rules)
    tests = [left for test in tests_of(mutant.topic) if (left := about(names, alerts, test))]
    asked = {asked for test in tests for case in cases_of(test) for asked in asked_by(case, alerts)}
    mutated = cut(with_mutant(document, mutant), made_of(asked | names, rules))
    tests.sort(key=lambda test: (name not in str(test), length(test)))
    return not any(fails(mutated, test) for test in tests)


def main(topics: list[str]) -> int:
    mutants, excused = every_mutant(topics), equivalents()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        alive = [mutant for mutant, lives in zip(mutants, pool.map(survives, mutants), strict=True) if lives]
    survivors = [mutant for mutant in alive if mutant.key not in excused]
    made = {mutant.topic for mutant in mutants}
    stale = [key for key in excused if key[0] in made and key not in {mutant.key for mutant in alive}]
    for mutant in survivors:
        print(f"survives: {' | '.join(mutant.key)}\n{mutant.mutated['expr']}")
    for key in stale:
        print(f"in {EQUIVALENTS.name}, and does not survive: {' | '.join(key)}")
    print(f"{len(mutants)} mutants, {len(alive) - len(survivors)} of them equivalent, {len(survivors)} survive")
    return 1 if survivors or stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
