"""OTLP over HTTP: bytes into spans, and answers into bytes, in JSON and in protobuf.

Protobuf needs the extra `otlp`, which is imported when the first such body comes.
"""

from collections.abc import Collection, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any, Final

import msgspec

from exporter.core.refused import RefusedError
from exporter.core.spans import SERVER, Span
from exporter.core.usage_records import MOST_RECORDS, MOST_VALUES, expect_few

JSON: Final = "application/json"
PROTOBUF: Final = "application/x-protobuf"
_SERVER: Final = "SPAN_KIND_SERVER"
_MOST_ATTRIBUTES: Final = 1000
_MOST_RESOURCES: Final = 100
# What is read of opentelemetry/proto/trace/v1/trace.proto. Parts leaves as they are the messages in its fields 1 and 2:
# a request's, a resource's and a scope's.
_LAYOUT: Final = """
name: "spans.proto" package: "llmcost" syntax: "proto3"
message_type {
  name: "Parts"
  field {name: "first" number: 1 type: TYPE_BYTES label: LABEL_REPEATED}
  field {name: "second" number: 2 type: TYPE_BYTES label: LABEL_REPEATED}
}
message_type {
  name: "Span"
  field {name: "id" number: 2 type: TYPE_BYTES}
  field {name: "parent" number: 4 type: TYPE_BYTES}
  field {name: "kind" number: 6 type: TYPE_INT32}
  field {name: "end_unix_ns" number: 8 type: TYPE_FIXED64}
  field {name: "attributes" number: 9 type: TYPE_BYTES label: LABEL_REPEATED}
}
message_type {
  name: "Attribute"
  field {name: "key" number: 1 type: TYPE_STRING}
  field {name: "value" number: 2 type: TYPE_BYTES}
}
message_type {
  name: "Scalar"
  field {name: "text" number: 1 type: TYPE_STRING oneof_index: 0}
  field {name: "truth" number: 2 type: TYPE_BOOL oneof_index: 0}
  field {name: "integer" number: 3 type: TYPE_INT64 oneof_index: 0}
  field {name: "fraction" number: 4 type: TYPE_DOUBLE oneof_index: 0}
  oneof_decl {name: "kind"}
}
"""


class MissingExtraError(Exception):
    """Protobuf cannot be read here."""


class _Value(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    bool_value: bool | None = None


class _Attribute(msgspec.Struct, rename="camel"):
    key: str = ""
    value: _Value | None = None


class _Span(msgspec.Struct, rename="camel"):
    span_id: str | None = None
    parent_span_id: str | None = None
    kind: int | str | None = None
    end_time_unix_nano: int | str | None = None
    attributes: list[_Attribute] | None = None


class _ScopeSpans(msgspec.Struct, rename="camel"):
    spans: list[_Span] | None = None


class _Resource(msgspec.Struct, rename="camel"):
    attributes: list[_Attribute] | None = None


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] | None = None


_DECODER: Final = msgspec.json.Decoder(_Request)


def spans_of_json(content: bytes, read: Collection[str]) -> list[Span]:
    """Return the spans of a request in JSON, with those attributes that are `read`.

    Raises:
        RefusedError: it is none, or too large.
    """
    expect_few("values", content.count(b","), MOST_VALUES)
    try:
        request = _DECODER.decode(content)
        return _few(_of_json(request, read))
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"expected an ExportTraceServiceRequest in JSON, found {error}") from None


def _few(spans: Iterator[Span]) -> list[Span]:
    found = list(islice(spans, MOST_RECORDS + 1))
    expect_few("spans", len(found), MOST_RECORDS)
    return found


def _of_json(request: _Request, read: Collection[str]) -> Iterator[Span]:
    for group in request.resource_spans or ():
        resource = _attributes(group.resource.attributes if group.resource else None, read)
        for scope in group.scope_spans or ():
            for span in scope.spans or ():
                yield Span(
                    id=(span.span_id or "").lower(),
                    parent=(span.parent_span_id or "").lower(),
                    kind=SERVER if span.kind == _SERVER else span.kind if isinstance(span.kind, int) else 0,
                    end_unix_ns=int(span.end_time_unix_nano or 0),
                    attributes=_attributes(span.attributes, read),
                    resource=resource,
                )


def _attributes(attributes: Iterable[_Attribute] | None, read: Collection[str]) -> dict[str, Any]:
    found = ((one.key, _scalar(one.value)) for one in attributes or () if one.key in read and one.value)
    return {key: value for key, value in found if value is not None}


def _scalar(value: _Value) -> Any:
    if value.int_value is not None:
        return int(value.int_value)
    if value.string_value is not None:
        return value.string_value
    return value.double_value if value.double_value is not None else value.bool_value


def spans_of_protobuf(content: bytes, read: Collection[str]) -> list[Span]:
    """Return the spans of a request in protobuf, with those attributes that are `read`.

    Raises:
        RefusedError: it is none, or too large.
        MissingExtraError: nothing here can read it.
    """
    try:
        from google.protobuf.message import DecodeError  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError from None
    try:
        return _few(_of_protobuf(content, read))
    except (DecodeError, UnicodeDecodeError, RecursionError):  # protobuf without its C library raises all three
        raise RefusedError("expected an ExportTraceServiceRequest in protobuf, found something else") from None


def _of_protobuf(content: bytes, read: Collection[str]) -> Iterator[Span]:
    """Yield spans, parsed level by level: what is small and many takes a hundred times its size, parsed at once."""
    parts, message = _messages()["Parts"], _messages()["Span"]
    groups = parts.FromString(content).first
    count = len(groups)
    expect_few("groups of spans", count, MOST_RECORDS)
    for group in map(parts.FromString, groups):
        count += len(group.second)
        expect_few("groups of spans", count, MOST_RECORDS)
        expect_few("resources of a group", len(group.first), _MOST_RESOURCES)
        resource = _fields(parts.FromString(b"".join(group.first)).first, read)  # protobuf reads several as one
        for scope in map(parts.FromString, group.second):
            for span in map(message.FromString, scope.second):
                yield Span(
                    id=span.id.hex(),
                    parent=span.parent.hex(),
                    kind=span.kind,
                    end_unix_ns=span.end_unix_ns,
                    attributes=_fields(span.attributes, read),
                    resource=resource,
                )


def _fields(attributes: Collection[bytes], read: Collection[str]) -> dict[str, Any]:
    expect_few("attributes of a span", len(attributes), _MOST_ATTRIBUTES)
    attribute, scalar = _messages()["Attribute"], _messages()["Scalar"]
    found = {}
    for one in map(attribute.FromString, attributes):
        if one.key in read:
            value = scalar.FromString(one.value)
            kind = value.WhichOneof("kind")
            if kind is not None:
                found[one.key] = getattr(value, kind)
    return found


@cache
def _messages() -> dict[str, Any]:
    """Return the messages that are read, by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format  # noqa: PLC0415 - an extra

    file = text_format.Parse(_LAYOUT, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    named = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(message) for name, message in named.items()}


def answer(media: str, refused: int, message: str) -> bytes:
    """Return an ExportTraceServiceResponse: a partial success where spans are refused."""
    if media == JSON:
        partial = {"rejectedSpans": str(refused), "errorMessage": message}
        return msgspec.json.encode({"partialSuccess": partial} if refused else {})
    return _field(1, b"\x08" + _varint(refused) + _field(2, message.encode())) if refused else b""


def status(media: str, message: str) -> bytes:
    """Return a google.rpc.Status with a message."""
    return msgspec.json.encode({"message": message}) if media == JSON else _field(2, message.encode())


def _field(number: int, content: bytes) -> bytes:
    """Return a text or a message as protobuf writes it in a field of another."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Return a number as protobuf writes it: seven bits a byte, the lowest first, a high bit where more follow."""
    found = bytearray()
    while number > 0x7F:  # noqa: PLR2004
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
