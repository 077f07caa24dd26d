"""What real peers posted, as it was captured, moved to another time and another server."""

import gzip
import json
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_FIXTURES: Final = Path(__file__).parent / "fixtures"
_ENGINE: Final = "http://127.0.0.1:8811"  # as it was when they were captured


def litellm_records(at: float, engine: str = _ENGINE) -> list[dict[str, Any]]:
    """A batch of LiteLLM 1.86.0 in front of a vLLM and of an API: good calls, failed ones, and one from its cache."""
    text = (_FIXTURES / "litellm/1.86.0.json").read_text(encoding="utf-8")
    records: list[dict[str, Any]] = json.loads(text.replace(_ENGINE, engine))
    last = max(record["endTime"] for record in records)
    for record in records:
        record["endTime"] += at - last
    return records


def spans(at: float) -> ExportTraceServiceRequest:
    """A batch of the Python SDK 1.45.2: four chats of one request with a vLLM, one that failed, and the span around."""
    request = ExportTraceServiceRequest()
    request.ParseFromString(gzip.decompress((_FIXTURES / "otlp/python-1.45.2.pb.gz").read_bytes()))
    found = [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]
    last = max(span.end_time_unix_nano for span in found)
    for span in found:
        span.end_time_unix_nano += int(at * 1e9) - last
    return request


def as_json(request: ExportTraceServiceRequest) -> dict[str, Any]:
    """The same in OTLP's JSON, which has ids in hex where JSON of protobuf has base64."""
    said: dict[str, Any] = MessageToDict(request, use_integers_for_enums=True)
    groups = zip(said["resourceSpans"], request.resource_spans, strict=True)
    pairs = (
        (one, two) for group, real in groups for one, two in zip(group["scopeSpans"], real.scope_spans, strict=True)
    )
    for scope, real_scope in pairs:
        for span, real in zip(scope["spans"], real_scope.spans, strict=True):
            ids = {"traceId": real.trace_id, "spanId": real.span_id, "parentSpanId": real.parent_span_id}
            span.update({key: value.hex() for key, value in ids.items() if value})
    return said
