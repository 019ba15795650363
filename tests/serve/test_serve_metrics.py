import re

from prometheus_client.parser import text_string_to_metric_families

from askd_ray.serve.metrics import ServiceMetrics, merged

ROUTE = "/v1/audio/transcriptions"


def used(n_requests: int, seconds: float) -> ServiceMetrics:
    """Return the metrics of a process that has answered some requests, and has one in progress."""
    metrics = ServiceMetrics()
    for _ in range(n_requests):
        metrics.begin()
        metrics.end(ROUTE, 200, seconds, {"audio_s": 2.0, "model": "student"})
    metrics.begin()
    return metrics


def test_metrics_of_several_processes_are_apart_by_label():
    texts = {"b": used(3, 0.02).exposition(), "a": used(1, 4.0).exposition()}
    exposition = merged(texts).decode()
    samples = {
        (sample.name, *(sample.labels.get(name) for name in ("replica", "route", "le"))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }
    assert samples["askd_requests_total", "a", ROUTE, None] == 1.0
    assert samples["askd_requests_total", "b", ROUTE, None] == 3.0
    assert samples["askd_requests_active", "a", None, None] == 1.0
    assert samples["askd_request_seconds_bucket", "b", ROUTE, "0.025"] == 3.0
    assert samples["askd_request_seconds_bucket", "a", ROUTE, "2.5"] == 0.0
    assert samples["askd_request_seconds_sum", "a", ROUTE, None] == 4.0
    assert exposition.count("# TYPE askd_requests_total counter") == 1


def test_merging_one_process_keeps_all_of_its_metrics():
    exposition = used(2, 0.1).exposition()
    labelled = merged({"a": exposition}).decode()
    without_label = re.sub(r'(?<={)replica="a",|,replica="a"|{replica="a"}', "", labelled)
    assert without_label == exposition.decode()
