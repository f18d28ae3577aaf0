"""What the files of control groups say."""

from launcher.usage import average, counter


def test_counter():
    assert counter("low 0\noom 2\noom_kill 1\n", "oom_kill") == 1
    assert counter("oom_kill_disable 0\nunder_oom 0\n", "oom_kill") is None


def test_average():
    text = "some avg10=12.50 avg60=1.00 avg300=0.00 total=99\nfull avg10=3.00 avg60=0 total=1\n"

    assert average(text) == 12.5
    assert average("") is None
