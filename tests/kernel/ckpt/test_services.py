"""Servers as Debian packages them answer the same after two restarts."""

import pytest

from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

FILL = "for i = 1, 9999 do redis.call('set', 'key:' .. i, i) end"
GET = "import urllib.request as u; print(u.urlopen('http://127.0.0.1/').read()[:60])"
POSTGRES = """
install -d -o postgres /tmp/db /run/postgresql
cd /tmp
exec setpriv --reuid postgres --regid postgres --clear-groups sh -ec '
bin=$(echo /usr/lib/postgresql/*/bin)
$bin/initdb --no-sync -D /tmp/db > /dev/null
exec $bin/postgres -D /tmp/db'
"""
SERVICES = {  # the server, what it says when it is ready, what makes state, a question
    "redis": (
        ["/usr/bin/redis-server", "--save", "", "--dir", "/tmp"],
        "Ready to accept connections",
        ["/usr/bin/redis-cli", "eval", FILL, "0"],
        ["/usr/bin/redis-cli", "mget", "key:1", "key:9999"],
    ),
    "nginx": (
        ["/usr/sbin/nginx", "-g", "daemon off; error_log stderr notice;"],
        "start worker process ",
        ["/usr/bin/python3", "-c", GET],
        ["/usr/bin/python3", "-c", GET],
    ),
    "postgresql": (
        ["/bin/sh", "-ec", POSTGRES],
        "database system is ready to accept connections",
        ["/usr/bin/psql", "-U", "postgres", "-c", "create table t as select generate_series(1,99)"],
        ["/usr/bin/psql", "-U", "postgres", "-tc", "select sum(generate_series) from t"],
    ),
}


@pytest.mark.parametrize("name", SERVICES)
def test_service(places, services_root, name):
    server, ready, prepare, question = SERVICES[name]
    with harness.Pod(places, services_root) as pod:
        pod.start(*server)
        pod.wait_for(ready)
        harness.tool("launcher", "exec", pod.name, *prepare)
        answer = harness.tool("launcher", "exec", pod.name, *question)
        assert answer.strip()
        for _ in range(2):
            pod.dump()
            pod.restore()
            assert harness.tool("launcher", "exec", pod.name, *question) == answer
