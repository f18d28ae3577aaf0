from autopod.overview import Row, duration, table


def test_the_table_lines_up_and_shows_what_is_missing_as_a_dash():
    rows = [
        Row("exim", "running", "10.98.0.10/16", 2, 9 << 20, 3 * 3600 + 61, ["/pod", "/base"]),
        Row("web", "unmounted", None, 0, 0, None, [], "web.toml: limits.pids = 1: …"),
    ]
    assert table(rows).splitlines() == [
        "POD   STATE      ADDRESS        PROCESSES  MEMORY   UP     BASE",
        "exim  running    10.98.0.10/16  2          9.0 MiB  3h 1m  /pod /base",
        "web   unmounted  -              0          -        -      web.toml: limits.pids = 1: …",
    ]


def test_no_pod_is_a_heading_only():
    assert table([]).split() == ["POD", "STATE", "ADDRESS", "PROCESSES", "MEMORY", "UP", "BASE"]


def testdurations_have_their_two_greatest_units():
    seconds = [0, 59, 60, 3600, 90061, None]
    assert [duration(s) for s in seconds] == ["0s", "59s", "1m 0s", "1h 0m", "1d 1h", "-"]
