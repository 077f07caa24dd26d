"""`lint`: manifests of autoscalers and GPU workloads, checked for wrong signals and traps of scaling to zero."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from exporter.cli.lint_files import UnusableError, comments, nodes, shown_as, text_of
from exporter.cli.options import DURATION, OneLine, fail, load_or_exit
from exporter.core import linting
from exporter.core.linting import RULES, Document, Facts, Family, Finding, Severity
from exporter.metrics import PREFIX, ROWS

_LONGEST_SHOWN: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What the files hold: their objects, what comments allow, and comments that name no rule."""

    documents: list[Document]
    allowed: Mapping[tuple[str, int], frozenset[str]]
    mistaken: list[Finding]


@click.command(cls=OneLine)
@click.argument("files", metavar="FILE...", nargs=-1)
@click.option(
    "--config.file", "config_file", type=click.Path(path_type=Path), help="The exporter's config: engines by name."
)
@click.option(
    "--cold-start",
    "cold_start",
    type=DURATION,
    help="How long a replica takes to start.  [default: what the files say, else 5m]",
)
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.pass_context
def lint(
    context: click.Context, *, files: tuple[str, ...], config_file: Path | None, cold_start: float | None, form: str
) -> None:
    """Check HPA, ScaledObject and Deployment manifests; - reads standard input.

    Exit 0: nothing, or notes alone. 1: findings. 2: input that cannot be checked. docs/lint.md lists the rules.
    """
    if not files:
        context.exit(fail(["expected a file to check, or - for standard input, found none"], 2))
    config = load_or_exit(config_file) if config_file is not None else None
    engines = {engine.name: engine for engine in config.engines} if config is not None else {}
    families = {f"{PREFIX}{row.name}": Family(row.type, row.labels) for row in ROWS}
    read, problems = _read(tuple(dict.fromkeys(files)))
    if problems:
        context.exit(fail(problems, 2))
    facts = Facts(families=families, engines=engines, cold_start_seconds=cold_start)
    found = sorted(
        (*read.mistaken, *linting.lint(read.documents, facts, read.allowed)), key=lambda one: (one.file, one.line)
    )
    click.echo(_as_json(found) if form == "json" else _as_text(found, read.documents), nl=False)
    context.exit(0 if all(one.severity is Severity.NOTE for one in found) else 1)


def _read(files: tuple[str, ...]) -> tuple[_Read, list[str]]:
    """Read all files, and say of each that cannot be checked why not."""
    documents: list[Document] = []
    mistaken: list[Finding] = []
    problems: list[str] = []
    allowed: dict[tuple[str, int], frozenset[str]] = defaultdict(frozenset)
    for file in files:
        name = shown_as(file)
        try:
            text = text_of(file)
            documents += linting.objects(name, nodes(name, text))
        except UnusableError as error:
            problems.append(_shown(str(error)))
            continue
        for line, rules in comments(text):
            allowed[name, line] |= frozenset(rules)
            mistaken += [_mistaken(name, line, rule) for rule in rules or [""] if rule not in RULES]
    return _Read(documents=documents, allowed=allowed, mistaken=mistaken), problems


def _mistaken(file: str, line: int, rule: str) -> Finding:
    message = f"a comment allows {rule[:20]!r}, which is no rule" if rule else "a comment allows nothing"
    return Finding(
        rule="LLM090",
        severity=Severity.WARNING,
        file=file,
        line=line,
        object="",
        message=message,
        reason=RULES["LLM090"].reason,
        instead=RULES["LLM090"].instead,
    )


def _as_text(found: list[Finding], documents: list[Document]) -> str:
    return "".join(_block(one) for one in found) + _summary(found, documents) + "\n"


def _block(one: Finding) -> str:
    of = f"{one.object}: " if one.object else ""
    head = _shown(f"{one.file}:{one.line}: {one.rule} {one.severity}: {of}{one.message}")
    return f"{head}\n    why: {_shown(one.reason)}\n    instead: {_shown(one.instead)}\n"


def _shown(text: str) -> str:
    """Return one line that a terminal shows as it is, whatever a file's names hold."""
    plain = "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
    return plain if len(plain) <= _LONGEST_SHOWN else f"{plain[:_LONGEST_SHOWN]}…"


def _as_json(found: list[Finding]) -> str:
    return json.dumps([asdict(one) for one in found], indent=2) + "\n"


def _summary(found: list[Finding], documents: list[Document]) -> str:
    looked_at = linting.concerned(documents)
    where = f"{_many(len(looked_at), 'object')} of {_many(len({one.file for one in looked_at}), 'file')}"
    if not looked_at:
        return "nothing to check: no HPA, no ScaledObject and no workload in the input"
    if not found:
        return f"nothing found in {where}"
    by_severity = Counter(one.severity for one in found)
    parts = [_many(by_severity[severity], severity) for severity in Severity if by_severity[severity]]
    return f"{', '.join(parts)} in {where}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
