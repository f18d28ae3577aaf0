"""How many requests of each kind there were, and how long they took: counted, told, printed.

A histogram's buckets are powers of two of nanoseconds: a request costs two readings of the clock
and two additions (measured: 0.3 us). It is the time that a handler takes; what the kernel
answers from its own caches never comes here. Pure but for `memory`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Told = Mapping[str, Any]
"""What the daemon answers to "stats" (docs/stackfs.md, "Statistics")."""

BUCKETS: Final = 64
"""Bucket n, from 1, counts what took less than 2**n ns and not less than half of that; bucket 0
holds the sum of all times."""

requests: Final[dict[str, list[int]]] = {}
"""This process's histograms, by handler."""

errors: Final[dict[str, int]] = {}
"""How many of them failed, by handler."""

_PERCENTILES: Final = (50, 90, 99)


def histogram(name: str) -> list[int]:
    """Return the histogram of a kind of request, which the caller counts in."""
    errors.setdefault(name, 0)
    return requests.setdefault(name, [0] * BUCKETS)


def count(buckets: list[int], ns: int) -> None:
    """Count one request that took *ns* nanoseconds, more than none."""
    buckets[0] += ns
    buckets[ns.bit_length()] += 1


def percentile(buckets: Sequence[int], percent: float) -> float:
    """Return the time in nanoseconds in which *percent* of the requests were answered.

    Exact to the bucket, within it as if the times were evenly spread; 0 where there were none.
    """
    left = sum(buckets[1:]) * percent / 100
    for index, number in enumerate(buckets[1:], 1):
        if number and left <= number:
            low = 1 << index - 1
            return low + low * left / number
        left -= number
    return 0


def memory() -> dict[str, int]:
    """Return the resident bytes of this process, now and at most.

    Source: proc(5), "/proc/pid/status", VmRSS and VmHWM.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    names = {"resident_bytes": "VmRSS", "peak_bytes": "VmHWM"}
    return {name: int(found[line].split()[0]) * 1024 for name, line in names.items()}


def summary(told: Told) -> dict[str, Any]:
    """Return the numbers for people and programs: percentiles instead of histograms."""
    rows = {}
    for name, one in sorted(told["requests"].items()):
        buckets = one["buckets"]
        rows[name] = {"count": sum(buckets[1:]), "errors": one["errors"]}
        for percent in _PERCENTILES:
            rows[name][f"p{percent}_us"] = round(percentile(buckets, percent) / 1000, 1)
        rows[name]["total_ms"] = round(buckets[0] / 1e6, 1)
    return {**told, "requests": rows}


def table(told: Told) -> Iterator[str]:
    """Yield the lines that `stackfs stats` prints."""
    found = summary(told)
    yield f"{'REQUEST':12} {'COUNT':>10} {'ERRORS':>8} {'P50 us':>9} {'P90 us':>9} {'P99 us':>9}"
    for name, row in found["requests"].items():
        times = " ".join(f"{row[f'p{percent}_us']:9.1f}" for percent in _PERCENTILES)
        yield f"{name:12} {row['count']:10} {row['errors']:8} {times}"
    yield ""
    for name, value in found["gauges"].items():
        yield f"{name.replace('_', ' '):24} {value:12}"
    for name, value in found["counters"].items():
        yield f"{name.replace('_', ' '):24} {value:12}"


def prometheus(told: Told) -> Iterator[str]:
    """Yield the lines of Prometheus's text format, version 0.0.4."""
    pod = f'pod="{told["pod"]}"'
    name = "stackfs_request_seconds"
    yield f"# HELP {name} Time that the daemon took to answer a request."
    yield f"# TYPE {name} histogram"
    for kind, one in sorted(told["requests"].items()):
        labels = f'{pod},request="{kind}"'
        seen = 0
        for index, number in enumerate(one["buckets"][1:], 1):
            seen += number
            if number:  # buckets are cumulative: those in which nothing is added say nothing
                yield f'{name}_bucket{{{labels},le="{(1 << index) / 1e9:.9g}"}} {seen}'
        yield f'{name}_bucket{{{labels},le="+Inf"}} {seen}'
        yield f"{name}_sum{{{labels}}} {one['buckets'][0] / 1e9:.9g}"
        yield f"{name}_count{{{labels}}} {seen}"
    yield "# HELP stackfs_request_errors_total Requests answered with an error."
    yield "# TYPE stackfs_request_errors_total counter"
    for kind, one in sorted(told["requests"].items()):
        yield f'stackfs_request_errors_total{{{pod},request="{kind}"}} {one["errors"]}'
    for kind, suffix in (("gauge", ""), ("counter", "_total")):
        for key, value in told[f"{kind}s"].items():
            yield f"# TYPE stackfs_{key}{suffix} {kind}"
            yield f"stackfs_{key}{suffix}{{{pod}}} {value}"
