"""An application as OpenTelemetry instruments it: it chats with a server, and prints the tokens that it was billed.

    traced_app.py BASE_URL CALLS

Where spans go is in the environment. Each call is a feature's, which the code around it sets as baggage.
"""

import json
import sys

import openai
from opentelemetry import baggage, context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.processor.baggage import BaggageSpanProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider(resource=Resource.create({"service.name": "app"}))
provider.add_span_processor(BaggageSpanProcessor(lambda key: key == "llm.feature"))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=300))
trace.set_tracer_provider(provider)
OpenAIInstrumentor().instrument()
client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
billed = {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0}


def chat(number: int) -> None:
    said = {"model": "tiny", "messages": [{"role": "user", "content": f"call {number}"}], "max_tokens": 4 + number % 5}
    if number % 2:
        chunks = list(client.chat.completions.create(**said, stream=True, stream_options={"include_usage": True}))
        usage = chunks[-1].usage
    else:
        usage = client.chat.completions.create(**said).usage
    billed["calls"] += 1
    billed["prompt_tokens"] += usage.prompt_tokens
    billed["completion_tokens"] += usage.completion_tokens


for number in range(int(sys.argv[2])):
    token = context.attach(baggage.set_baggage("llm.feature", ("search", "summary")[number % 2]))
    with trace.get_tracer("app").start_as_current_span("request"):
        chat(number)
        if number == 0:
            try:
                client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
            except openai.NotFoundError:
                billed["failed"] = 1
    context.detach(token)
provider.shutdown()
print(json.dumps(billed))
