"""What the linter says: the table of its rules, and findings."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from exporter.core.linting.documents import Document


class Severity(StrEnum):
    """How bad it is; a note alone fails nothing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Rule(NamedTuple):
    """What is looked for, why it is wrong, and what to write instead."""

    title: str
    reason: str
    instead: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to change, and where."""

    rule: str
    severity: Severity
    file: str
    line: int
    object: str
    message: str
    reason: str
    instead: str


def found(rule: str, severity: Severity, document: Document, line: int, message: str, instead: str = "") -> Finding:
    """Return a finding; the table says why and what instead, where nothing fits better."""
    return Finding(
        rule=rule,
        severity=severity,
        file=document.file,
        line=line,
        object=document.title,
        message=message,
        reason=RULES[rule].reason,
        instead=instead or RULES[rule].instead,
    )


RULES: Final[Mapping[str, Rule]] = {
    "LLM001": Rule(
        "CPU or memory is the signal of a GPU workload",
        "The work is done by the GPU: an engine keeps a core busy while it idles, and takes its memory when it starts.",
        "Scale on all requests that are in the engine, per replica: "
        "sum(llmcost_requests_running) + sum(llmcost_requests_waiting), AverageValue.",
    ),
    "LLM002": Rule(
        "A bare request count is the signal",
        "One request may be ten tokens or ten thousand, and requests in work stop at the engine's batch limit.",
        "Count those that wait, too: sum(llmcost_requests_running) + sum(llmcost_requests_waiting), AverageValue, "
        "with the requests that one replica does at once as the threshold.",
    ),
    "LLM003": Rule(
        "GPU utilisation alone scales up",
        "It is the share of time in which any kernel ran: near 100 % already with one request, full or not.",
        "Scale up by the queue or TTFT; let utilisation only keep replicas from going.",
    ),
    "LLM004": Rule(
        "Waiting requests alone are the signal",
        "A queue that has drained asks for no replica at all, while all of them may be busy.",
        "Add those in work: sum(llmcost_requests_running) + sum(llmcost_requests_waiting).",
    ),
    "LLM010": Rule(
        "Fewer replicas than the workload needs",
        "Somebody waits for the answer: after zero the first request waits for a whole cold start, or fails.",
        "Set the minimum to 1 or more; say llm-cost/workload: batch where nobody waits.",
    ),
    "LLM011": Rule(
        "No minimum is set",
        "KEDA takes an absent minReplicaCount for 0, an HPA an absent minReplicas for 1.",
        "Write the minimum down, 0 included where it is meant.",
    ),
    "LLM012": Rule(
        "No maximum is set",
        "KEDA takes an absent maxReplicaCount for 100: a wrong number from one query becomes a bill for 100 GPUs.",
        "Set maxReplicaCount to the replicas that the budget or the quota allows.",
    ),
    "LLM013": Rule(
        "Minimum and maximum contradict each other",
        "The API server or KEDA refuses it, or it works in another way than it reads.",
        "Keep idleReplicaCount 0 or absent, below the minimum, and the minimum at most the maximum.",
    ),
    "LLM014": Rule(
        "Nothing wakes it from zero, or nothing lets it sleep",
        "With no replica there is no page to scrape: the series is gone. Missing data that counts as 0 never starts a "
        "replica; missing data that is an error starts the fallback at once.",
        "Add a trigger on something that stays: the gateway's queue, the job queue, a cron; or keep one replica.",
    ),
    "LLM020": Rule(
        "No fallback for when the data is missing",
        "Without data the replicas stay as they happen to be, at a peak or at a low, for as long as it lasts.",
        "fallback: {failureThreshold: 3, replicas: N, behavior: currentReplicasIfHigher}.",
    ),
    "LLM021": Rule(
        "Missing data counts as zero",
        "ignoreNullValues is true unless it is set: when Prometheus loses the engines, load reads 0 and replicas go.",
        'ignoreNullValues: "false", and a fallback.',
    ),
    "LLM022": Rule(
        "Every query turns missing data into zero",
        "`or vector(0)` answers 0 when the engines are not scraped, so no fallback ever begins.",
        "Leave at least the query of the load without it.",
    ),
    "LLM030": Rule(
        "A query may return several elements",
        "One number is expected: KEDA fails at two, and each pod or model is an element of its own.",
        "Put sum() or max() without labels around it.",
    ),
    "LLM031": Rule(
        "A query is no PromQL", "Prometheus refuses it: the trigger fails at every look.", "Try it in Prometheus first."
    ),
    "LLM032": Rule(
        "A metric does not exist",
        "A query of a name that nobody exports is empty, for ever and without an error.",
        "Use the name that the engine or this exporter has today.",
    ),
    "LLM033": Rule(
        "A counter without a rate, or a rate of a gauge",
        "A counter only rises, and so would the replicas; the rate of a gauge says nothing.",
        "rate(..._total[2m]) of counters, max_over_time() or nothing around gauges.",
    ),
    "LLM034": Rule(
        "A label that the metric has not",
        "A condition on a label that is not there matches nothing; grouping by it makes one group.",
        "docs/metrics.md lists the labels; pod, namespace, job and such come with the scrape.",
    ),
    "LLM035": Rule(
        "A query answers with a scalar",
        "KEDA reads an instant vector only: it fails at the answer of scalar(), of a bare number, of time(), and of "
        "arithmetic of those.",
        "sum(...) without scalar() around it, or vector(...) around the whole.",
    ),
    "LLM036": Rule(
        "A comparison may leave the answer empty",
        "Without bool it drops what it does not hold for, and KEDA takes nothing for missing data: 0 with "
        "ignoreNullValues, else an error that starts the fallback.",
        "Leave the comparison to the threshold, or answer 0 or 1 with bool: sum(x > bool 5) in place of count(x > 5).",
    ),
    "LLM040": Rule(
        "A threshold is not a number above 0", "Load is divided by it.", "Set it to what one replica carries."
    ),
    "LLM041": Rule(
        "A threshold in another unit than its query",
        "It is never reached, or always exceeded.",
        "Ratios are from 0 to 1, times are in seconds.",
    ),
    "LLM042": Rule(
        "The metric type does not fit",
        "AverageValue asks for value / threshold replicas: right for the whole load. Value asks for so many times "
        "today's: right for a mean, a ratio or a percentile, while the whole load runs to the maximum. Utilization is "
        "for CPU and memory alone.",
        "metricType: Value for means, ratios and percentiles; AverageValue for a sum over all replicas.",
    ),
    "LLM043": Rule(
        "Scaling from zero without an activation threshold",
        "Any value above 0 starts a replica, also what rounding or one probe leaves.",
        "Set activationThreshold to what is worth a cold start.",
    ),
    "LLM044": Rule(
        "A trigger or a metric is not complete",
        "It is refused, or stands for something else than it seems: an HPA without metrics scales on CPU at 80 %.",
        "Give prometheus triggers serverAddress, query and threshold, and every autoscaler a metric.",
    ),
    "LLM045": Rule(
        "Trigger metadata that is not a string",
        "metadata holds strings only: the API server refuses a number or a truth value.",
        'Quote it: threshold: "5".',
    ),
    "LLM046": Rule(
        "A server address that KEDA does not find",
        "KEDA's operator asks it, from its own namespace: it needs http:// or https://, and a service's namespace.",
        "serverAddress: http://<service>.<namespace>.svc:9090.",
    ),
    "LLM050": Rule(
        "The scale-down window is shorter than two cold starts",
        "A replica that goes must be missed for longer than it takes to come back, else the fleet oscillates.",
        "behavior.scaleDown.stabilizationWindowSeconds: twice the cold start.",
    ),
    "LLM051": Rule(
        "The cooldown before zero is shorter than a cold start",
        "The next request pays more waiting than the idle time saved.",
        "cooldownPeriod: at least the cold start, better twice.",
    ),
    "LLM052": Rule(
        "Scale-up may more than double the replicas",
        "New replicas take a cold start to help; meanwhile the same load asks for yet more.",
        "scaleUp: {policies: [{type: Pods, value: 2, periodSeconds: 60}]}.",
    ),
    "LLM060": Rule(
        "Two autoscalers on one target",
        "Each sets the replicas that it finds right, and undoes the other's.",
        "Keep one; KEDA makes an HPA of its own. Put all signals into its triggers.",
    ),
    "LLM061": Rule(
        "The manifest sets replicas beside an autoscaler",
        "Every apply sets them back to that number, at a peak, too.",
        "Leave replicas out of what an autoscaler scales.",
    ),
    "LLM070": Rule(
        "A GPU workload with no replica, and nothing that starts one",
        "It serves nobody until somebody scales it by hand.",
        "Set replicas, or add the autoscaler to the files.",
    ),
    "LLM071": Rule(
        "A probe kills the engine before its model is loaded",
        "The kubelet restarts the container in the middle of loading, for ever, on a GPU that is paid for.",
        "startupProbe with failureThreshold x periodSeconds above the cold start; it holds the other probes back.",
    ),
    "LLM072": Rule(
        "Nothing says when the engine is ready",
        "Requests are sent to a pod that still loads its model, and the autoscaler takes it for capacity.",
        "readinessProbe: {httpGet: {path: /health, port: 8000}}.",
    ),
    "LLM073": Rule(
        "A rollout needs a spare GPU",
        "maxSurge starts a new pod before an old one goes; without a free GPU it waits for ever.",
        "strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}, or keep a GPU free.",
    ),
    "LLM080": Rule(
        "An API version that is gone",
        "The cluster does not know it: autoscaling/v2beta1 left with Kubernetes 1.25, v2beta2 with 1.26.",
        "apiVersion: autoscaling/v2 for an HPA, keda.sh/v1alpha1 for a ScaledObject.",
    ),
    "LLM081": Rule(
        "A key that KEDA has removed",
        "metricName of a prometheus trigger went with 2.12, metadata.type of cpu and memory with 2.18.",
        "Remove metricName; write metricType beside the trigger's type.",
    ),
    "LLM090": Rule(
        "A comment allows a rule that does not exist",
        "A typing error here leaves the finding that it was meant for.",
        "docs/lint.md lists the rules.",
    ),
}
