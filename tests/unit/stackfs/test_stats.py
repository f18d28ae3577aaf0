"""Counting requests, and keeping the log short."""

import logging
import random
import re

import pytest

from stackfs import quiet, stats


def counted(times):
    buckets = [0] * stats.BUCKETS
    for ns in times:
        stats.count(buckets, ns)
    return buckets


@pytest.mark.parametrize("percent", [50, 90, 99, 100])
def test_percentiles_are_exact_to_a_factor_of_two(percent):
    times = sorted(int(random.Random(percent).lognormvariate(10, 2)) + 1 for _ in range(5000))
    true = times[len(times) * percent // 100 - 1]
    assert true / 2 <= stats.percentile(counted(times), percent) <= true * 2


def test_extreme_times_are_counted():
    buckets = counted([1, 1, (1 << 63) - 1])
    assert sum(buckets[1:]) == 3
    assert buckets[1] == 2
    assert buckets[-1] == 1
    assert stats.percentile([0] * stats.BUCKETS, 99) == 0


def test_prometheus_text_is_well_formed():
    """Each line is a comment or a sample; a histogram's buckets never fall."""
    requests = {"lookup": {"errors": 3, "buckets": counted([900, 1000, 40_000])}}
    told = {"pod": "p", "requests": requests, "gauges": {"inodes": 7}, "counters": {"read": 9}}
    lines = list(stats.prometheus(told))
    sample = re.compile(r'(\w+)\{(\w+="[^"]*"(?:,\w+="[^"]*")*)\} (\S+)')
    samples = [sample.fullmatch(line) for line in lines if not line.startswith("# ")]
    assert all(samples)
    buckets = [float(m[3]) for m in samples if m[1].endswith("_bucket")]
    limits = [re.search('le="([^"]*)"', m[2])[1] for m in samples if m[1].endswith("_bucket")]
    assert buckets == sorted(buckets) == [2, 3, 3]
    assert [float(limit) for limit in limits] == [1.024e-6, 6.5536e-5, float("inf")]
    values = {m[1]: float(m[3]) for m in samples}
    assert values["stackfs_request_seconds_count"] == 3
    assert values["stackfs_request_seconds_sum"] == pytest.approx(41.9e-6)
    assert values["stackfs_request_errors_total"] == 3
    assert (values["stackfs_inodes"], values["stackfs_read_total"]) == (7, 9)


def test_a_message_that_repeats_is_kept_back():
    now = 0.0
    limit = quiet.Limit(lambda: now)

    def written(text):
        record = logging.LogRecord("stackfs", logging.ERROR, "", 0, text, ("x",), None)
        return record.getMessage() if limit.filter(record) else None

    assert [written("%s failed") for _ in range(quiet.BURST + 5)].count("x failed") == quiet.BURST
    assert written("%s is another") == "x is another"
    now += quiet.PERIOD_SECONDS
    assert written("%s failed") == "x failed (5 more like it were not written)"
    assert written("%s failed") == "x failed"
