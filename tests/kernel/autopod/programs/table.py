"""The programs."""

from tests.kernel.autopod.programs import databases, exim, shell, web
from tests.kernel.autopod.programs.program import EXAMPLES, Program


def example(name):
    """The configuration of an example's pod."""
    return (EXAMPLES / name / "pod.toml").read_text()


PYTHON = ("/usr/bin/python3", "-m", "http.server", "-p", "HTTP/1.1", "-d", "/var/www/html", "80")
REDIS = ("/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")
PROGRAMS = {
    "exim": Program(
        "exim_root",
        ("/usr/sbin/exim4",),
        25,
        exim.delivered,
        exim.patient,
        example("exim"),
        "10.98.0.10",
    ),
    "apache": Program(
        "apache_root",
        ("/usr/sbin/apache2",),
        80,
        web.visited,
        web.apache,
        example("apache"),
        "10.98.0.20",
    ),
    "nginx": Program(
        "services_root", ("/usr/sbin/nginx", "-g", "daemon off;"), 80, web.visited, web.nginx
    ),
    "redis": Program(
        "services_root", REDIS, 6379, databases.written, toml=example("redis"), address="10.98.0.40"
    ),
    "postgresql": Program(
        "services_root", ("/bin/sh", "-ec", databases.POSTGRES), 5432, databases.benchmarked
    ),
    "python": Program("services_root", PYTHON, 80, web.visited, web.pages),
    "node": Program(
        "services_root", ("/usr/bin/node", "/root/counter.js"), 80, web.counted, web.node
    ),
    "vim": Program("services_root", shell.START, 23, shell.typed, toml=shell.TERMINAL),
}
