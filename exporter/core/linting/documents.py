"""Manifests as plain values that remember their lines; whoever reads the files makes them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

_QUANTITY: Final = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", re.ASCII)
_SUFFIXES: Final = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000), "M": Decimal(10) ** 6} | {
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
}
_LONGEST_NUMBER: Final = 40
_LONGEST_LIST_NESTING: Final = 8


@dataclass(frozen=True, slots=True)
class Node:
    """One value: a mapping, a list, or a scalar as it was written; None is YAML's null.

    `line` is where the value's key stands, or the item of a list. `is_string` tells a scalar that YAML takes for a
    string from one that it takes for a number or a truth value.
    """

    value: "Mapping[str, Node] | tuple[Node, ...] | str | None"
    line: int
    is_string: bool = False

    @property
    def fields(self) -> "Mapping[str, Node]":
        """The entries of a mapping; of anything else none."""
        return self.value if isinstance(self.value, Mapping) else {}

    @property
    def items(self) -> "tuple[Node, ...]":
        """The items of a list; of anything else none."""
        return self.value if isinstance(self.value, tuple) else ()

    @property
    def text(self) -> str:
        """The scalar as it was written; of anything else nothing."""
        return self.value if isinstance(self.value, str) else ""

    @property
    def number(self) -> Decimal | None:
        """The scalar as a number or a quantity of Kubernetes, where it is one."""
        text = self.text.strip()
        match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
        if match is None:
            return None
        try:
            found = Decimal(match[1])
        except InvalidOperation:
            return None
        return found * _SUFFIXES[match[2] or ""] if abs(found.adjusted()) <= _LONGEST_NUMBER else None

    def at(self, *path: str) -> "Node | None":
        """Return what stands at a path of keys; None where it is absent or null: Kubernetes knows no difference."""
        node: Node | None = self
        for key in path:
            node = node.fields.get(key) if node is not None else None
        return None if node is None or node.value is None else node

    def text_at(self, *path: str) -> str:
        """Return the scalar at a path, else nothing."""
        node = self.at(*path)
        return node.text if node is not None else ""

    def items_at(self, *path: str) -> "tuple[Node, ...]":
        """Return the items of the list at a path, else none."""
        node = self.at(*path)
        return node.items if node is not None else ()

    def line_of(self, *path: str) -> int:
        """Return the line of a path, or of the part of it that there is."""
        line, node = self.line, self
        for key in path:
            if key not in node.fields:
                break
            node = node.fields[key]
            line = node.line
        return line


@dataclass(frozen=True, slots=True)
class Document:
    """One Kubernetes object of a file."""

    file: str
    node: Node

    @property
    def kind(self) -> str:
        """What it is."""
        return self.node.text_at("kind")

    @property
    def api_version(self) -> str:
        """The version of the API that it is written for."""
        return self.node.text_at("apiVersion")

    @property
    def name(self) -> str:
        """Its name; one that is generated has none yet."""
        return self.node.text_at("metadata", "name") or self.node.text_at("metadata", "generateName")

    @property
    def namespace(self) -> str:
        """Its namespace; nothing where that is left to whoever applies it."""
        return self.node.text_at("metadata", "namespace")

    @property
    def title(self) -> str:
        """Kind and name, as kubectl writes them."""
        return f"{self.kind}/{self.name}"

    @property
    def spec(self) -> Node:
        """Its specification, empty where there is none."""
        return self.node.at("spec") or Node({}, self.node.line_of("kind"))

    def remark(self, key: str) -> Node | None:
        """Return an annotation or a label of this object or of its pods."""
        for where in (("metadata",), ("spec", "template", "metadata")):
            for form in ("annotations", "labels"):
                node = self.node.at(*where, form, key)
                if node is not None:
                    return node
        return None

    def is_in_namespace_of(self, other: "Document") -> bool:
        """Tell whether both may be in one namespace: what names none goes wherever the other goes."""
        return not self.namespace or not other.namespace or self.namespace == other.namespace


def objects(file: str, nodes: Iterable[Node], *, nesting: int = 0) -> Iterator[Document]:
    """Yield the objects of a file, those inside of a List, too."""
    for node in nodes:
        kind = node.text_at("kind")
        if kind.endswith("List") and node.items_at("items"):
            if nesting < _LONGEST_LIST_NESTING:
                yield from objects(file, node.items_at("items"), nesting=nesting + 1)
        elif kind:
            yield Document(file, node)
