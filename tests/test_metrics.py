"""tgi-behaviour section 7, name by name."""

import re
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tgi import errors
from tgi.errors import ApiError
from tgi.metrics import Counter, Family, Gauge, Histogram, Metrics, Summary

COUNTERS = {
    "tgi_request_count": "",
    "tgi_request_success": "",
    "tgi_request_failure": "err",
    "tgi_batch_inference_count": "method",
    "tgi_batch_inference_success": "method",
    "tgi_batch_inference_failure": "method",
    "tgi_batch_concat": "reason",
}
GAUGES = [
    "tgi_queue_size",
    "tgi_batch_current_size",
    "tgi_batch_current_max_tokens",
    "tgi_batch_max_total_tokens",
]
DURATIONS = {
    "tgi_request_duration": "",
    "tgi_request_validation_duration": "",
    "tgi_request_queue_duration": "",
    "tgi_request_inference_duration": "",
    "tgi_request_mean_time_per_token_duration": "",
    "tgi_batch_inference_duration": "method",
    "tgi_batch_forward_duration": "method",
    "tgi_batch_decode_duration": "method",
    "tgi_batch_filter_duration": "method",
    "tgi_batch_concat_duration": "method",
}
LIMITED = {
    "tgi_request_generated_tokens": 500,
    "tgi_request_input_length": 300,
    "tgi_request_max_new_tokens": 500,
}
OURS = {
    "tgi_request_time_to_first_token_duration", "tgi_kv_blocks", "tgi_prefix_cache_hit_tokens",
    "tgi_prefix_cache_query_tokens", "tgi_preemptions", "tgi_request_time_between_tokens_duration",
    "tgi_batch_tokens", "tgi_batch_padding_tokens", "tgi_batch_blocks",
    "tgi_batch_padding_blocks", "tgi_graph_compilations", "tgi_graph_misses",
    "tgi_engine_restarts", "tgi_cpu_fallbacks", "tgi_device_memory_bytes",
    "tgi_request_prefill_duration", "tgi_request_decode_duration", "tgi_generated_texts",
    "tgi_batch_step_tokens", "tgi_replica_serving", "tgi_replica_queue_size", "tgi_replica_batch_size",
    "tgi_replica_kv_blocks_used", "tgi_replica_prefix_cache_hit_tokens",
    "tgi_replica_prefix_cache_query_tokens",
}  # fmt: skip
TABLE_12_10 = """
0.00015000000000000001 0.00022500000000000002 0.0003375 0.00050625 0.000759375 0.0011390624999999999
0.0017085937499999998 0.0025628906249999996 0.0038443359374999994 0.00576650390625 0.008649755859375
0.0129746337890625 0.01946195068359375 0.029192926025390625 0.043789389038085935 0.0656840835571289
0.09852612533569335 0.14778918800354002 0.22168378200531003 0.33252567300796504 0.49878850951194753
0.7481827642679213 1.122274146401882 1.683411219602823 2.5251168294042348 3.787675244106352 5.681512866159528
8.52226929923929 12.783403948858936 19.175105923288406 28.76265888493261 43.143988327398915
64.71598249109837 97.07397373664756 145.61096060497135 +Inf
""".split()


def filled() -> Metrics:
    """With two samples of everything."""
    metrics = Metrics(max_input_tokens=300, max_total_tokens=500)
    for family in metrics.families:
        labels = {family._label: "decode"} if family._label else {}
        for value in (0.5, 3):
            if isinstance(family, Counter):
                family.inc(value, **labels)
            elif isinstance(family, Histogram):
                family.observe(value, **labels)
            elif isinstance(family, Summary):
                family.observe(value)
    return metrics


def bounds(text: str, name: str) -> list[str]:
    return [
        line.partition('le="')[2].partition('"')[0]
        for line in text.splitlines()
        if line.startswith(f"{name}_bucket")
    ]


@pytest.mark.contract("tgi_batch_inference_failure")
def test_every_name_type_label_and_bucket() -> None:
    metrics = filled()
    text = metrics.render().decode()
    families: dict[str, Family] = {family.name: family for family in metrics.families}
    expected = {
        *COUNTERS,
        *GAUGES,
        *DURATIONS,
        *LIMITED,
        *OURS,
        "tgi_log_dropped_lines",
        "tgi_batch_next_size",
        "tgi_request_skipped_tokens",
    }
    assert set(families) == expected
    for name, label in COUNTERS.items():
        assert type(families[name]) is Counter
        assert f"# TYPE {name} counter\n" in text
        selector = f'{{{label}="decode"}}' if label else ""
        assert f"\n{name}{selector} 3.5\n" in text
    for name in GAUGES:
        assert type(families[name]) is Gauge
        assert f"# TYPE {name} gauge\n{name} 3.5\n" in text
    for name, label in DURATIONS.items():
        assert bounds(text, name) == TABLE_12_10
        selector = f'{{{label}="decode"}}' if label else ""
        assert f"\n{name}_sum{selector} 3.5\n{name}_count{selector} 2\n" in text
    for name, limit in LIMITED.items():
        assert [float(bound) for bound in bounds(text, name)[:-1]] == [limit / 100 * n for n in range(1, 101)]
    assert bounds(text, "tgi_batch_next_size") == [*map(str, range(1, 1025)), "+Inf"]
    for quantile in ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1"):
        assert f'tgi_request_skipped_tokens{{quantile="{quantile}"}} ' in text


def test_the_documentation_has_every_metric_and_no_other() -> None:
    page = (Path(__file__).parent.parent / "docs" / "observability.md").read_text()
    rows = re.findall(r"^\| `(tgi_\w+)` \| (\w+) \| (?:`(\w+)`)? *\| (.+) \|$", page, re.MULTILINE)
    families = Metrics().families
    assert rows == [(one.name, one.kind, one._label, one._description) for one in families]
    (failures,) = re.findall(r"^\| `err` \| (.*) \|$", page, re.MULTILINE)
    labels = {
        one.failure for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ApiError)
    }
    assert set(re.findall(r"`([a-z]+)`", failures)) == labels | {"dropped"}


def test_the_text_is_what_prometheus_reads() -> None:
    families = {family.name: family for family in text_string_to_metric_families(filled().render().decode())}
    assert {family.type for family in families.values()} == {"counter", "gauge", "histogram", "summary"}
    (forward,) = [family for name, family in families.items() if name == "tgi_batch_forward_duration"]
    buckets = [sample.value for sample in forward.samples if sample.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-1]) == (0, 2)


@pytest.mark.contract("M3")
def test_a_family_appears_with_its_first_sample() -> None:
    metrics = Metrics()
    assert metrics.render() == b""
    metrics.request_failure.inc(err="validation")
    lines = metrics.render().decode().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [
        'tgi_request_failure{err="validation"} 1'
    ]


def test_what_a_rank_has_measured_is_recorded_by_name() -> None:
    """Labels that a family does not have are ignored."""
    metrics = Metrics()
    for value in (2, 3):
        for name in ("graph_misses", "graph_compilations", "device_memory_bytes", "batch_forward_duration"):
            metrics.record(name, value, phase="serving", method="decode", state="used")
    assert metrics.graph_misses.value() == 5
    assert metrics.graph_compilations.value(phase="serving") == 5
    assert metrics.device_memory_bytes.value(state="used") == 3
    assert metrics.batch_forward_duration.count(method="decode") == 2


def test_a_value_on_a_bound_counts_below_it() -> None:
    histogram = Histogram("h", "", (1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert [sample.rpartition(" ")[2] for sample in histogram.samples()] == ["1", "3", "4", "7", "4"]


def test_a_family_with_a_label_needs_it() -> None:
    with pytest.raises(KeyError):
        Metrics().request_failure.inc()


def test_rendering_takes_no_time_worth_mentioning() -> None:
    """Aim: 5 ms; the bound leaves room for a busy machine."""
    metrics = filled()
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        metrics.render()
        best = min(best, time.perf_counter() - begin)
    assert best < 0.02


if __name__ == "__main__":  # writes the descriptions of the families into docs/observability.md
    path = Path(__file__).parent.parent / "docs" / "observability.md"
    text = path.read_text("utf-8")
    families = Metrics().families
    rows = [
        f"| `{one.name}` | {one.kind} | {one._label and f'`{one._label}`'} | {one._description} |"
        for one in families
    ]
    table = re.compile(r"(?:^\| `tgi_\w+` \|.*\n)+", re.MULTILINE)
    path.write_text(table.sub("\n".join(rows) + "\n", text, count=1), "utf-8")
