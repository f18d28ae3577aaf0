"""How long it takes to start a pod, and to enter a running one."""

from pathlib import Path

from bench.host import Host
from bench.measure import RUNS, Row, ms, timed, times


def measure(host: Host, root: Path) -> list[Row]:
    """Return the rows."""
    added = timed(lambda: host.run("autopod", "add", "start", "--base", root))
    cold, entered = [], []
    for _ in range(RUNS + 1):
        cold.append(timed(lambda: host.run("launcher", "start", "start", "/bin/sleep", "1000")))
        entered.append(timed(lambda: host.run("launcher", "exec", "start", "/bin/true")))
        host.run("launcher", "kill", "start")
    run = times(lambda: host.run("launcher", "run", "start", "/bin/true"))
    host.run("autopod", "rm", "start", "--purge")
    return [
        Row("autopod add (once): root mounted, network made", f"{1000 * added:.0f}"),
        Row("launcher start: pod made, program executed", ms(cold[1:]), goal="150"),
        Row("launcher exec /bin/true in a running pod", ms(entered[1:])),
        Row("launcher run /bin/true: pod made, run, ended", ms(run)),
    ]
