"""The page's server over real sockets: who gets in, what is refused, what is sent."""

import datetime
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from prometheus_client.parser import text_string_to_metric_families

from autopod.status import store
from autopod.web import auth
from examples.exim.mail import wait_until
from tests.kernel.autopod.conftest import BIN
from tests.kernel.autopod.repository import new_kernel

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

CLOSED = (
    ("GET", "/api/state"), ("GET", "/api/events"), ("GET", "/metrics"), ("POST", "/api/act"),
    ("POST", "/logout"),
)  # fmt: skip
HOSTILE = '1.0<script id="owned">'


def hold_of(page):
    with store.opened(page.places) as history:
        return history.hold()


def test_nothing_without_a_token(page):
    page.open()
    for method, path in CLOSED:
        status, headers, said = page.ask(method, path, {"do": "undo"} if method == "POST" else None)
        assert (status, list(json.loads(said))) == (401, ["error"]), path
        assert headers["access-control-allow-origin"] is None
    status, headers, _ = page.ask("GET", "/")
    assert (status, headers["location"]) == (303, "/login")
    for path in ("/login", "/static/page.js", "/static/style.css", "/static/icon.svg", "/nothing"):
        status, headers, _ = page.ask("GET", path)
        assert status == (404 if path == "/nothing" else 200)
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    for path in ("/static/..%2fapp.py", "/static/../app.py", "/static/index.html"):
        assert page.ask("GET", path)[0] == 404
    for token in ("", "x", page.tokens.admin[:-1], page.tokens.admin.upper()):
        assert page.ask("POST", "/login", {"token": token})[0] == 403
        assert page.ask("GET", "/metrics", authorization=f"Bearer {token}")[0] == 401


def test_other_names_and_other_pages(page):
    page.open('names = ["page.example"]\n')
    good = {"authorization": page.bearer()}
    assert page.ask("GET", "/api/state", host="page.example:80", **good)[0] == 200
    assert page.ask("GET", "/api/state", host="localhost:1", **good)[0] == 200
    for name in ("evil.example", f"127.0.0.1.evil.example:{page.port}", "", "[", "\xff"):
        assert page.ask("GET", "/login", host=name)[0] in {400, 421}, name
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{page.port + 1}"):
        status, _, _ = page.ask("POST", "/api/act", {"do": "undo"}, origin=origin, **good)
        assert status == 421
    assert page.ask("GET", "/api/state", origin=page.url, **good)[0] == 200
    with socket.create_connection(("127.0.0.1", page.port)) as plain:
        plain.sendall(b"GET /login HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert plain.recv(12) in {b"HTTP/1.1 400", b"HTTP/1.1 421"}


def test_a_session_and_what_others_can_make_a_browser_send(page):
    page.open()
    status, headers, _ = page.ask("POST", "/login", {"token": page.tokens.admin})
    assert status == 200
    words = {word.strip().lower() for word in headers["set-cookie"].split(";")}
    assert {"httponly", "samesite=strict", "path=/"} <= words
    session = page.log_in()
    cookie = {"cookie": session["cookie"]}
    assert page.ask("GET", "/", **cookie)[0] == 200
    assert page.ask("GET", "/api/state", **cookie)[0] == 401, "the cookie alone reads nothing"
    assert page.ask("GET", "/api/state", **session)[0] == 200
    action = {"do": "hold", "reason": "audit"}
    assert page.act(action, **cookie)[0] == 401
    assert page.act(action, **cookie, x_autopod_secret="0" * 64)[0] == 401
    assert page.act(action, **page.log_in(page.tokens.reader))[0] == 403
    plain = {**session, "content_type": "text/plain"}
    assert page.ask("POST", "/api/act", action, **plain)[0] == 400
    assert hold_of(page) is None, "none of these did anything"
    assert page.act(action, **session)[0] == 202
    wait_until(lambda: hold_of(page) is not None, "the host is held")
    assert hold_of(page).reason == "audit"


def test_a_session_is_ended_by_its_user(page):
    """Also where somebody has copied it, for the streams that it has opened, and later."""
    page.open()
    session, other = page.log_in(), page.log_in()
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
    names = {key.replace("_", "-"): value for key, value in session.items()}
    connection.request("GET", "/api/events", headers=names)
    with closing(connection), connection.getresponse() as answer:
        answer.readline()
        assert page.ask("POST", "/logout", **session)[0] == 200
        answer.read()  # it has an end
    for _ in range(2):
        assert page.ask("GET", "/api/state", **session)[0] == 401
        assert page.ask("GET", "/", cookie=session["cookie"])[0] == 303
        assert page.ask("GET", "/api/state", **other)[0] == 200
        page.close()
        page.start()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 3000, b'{"do": "rm"}', b'{"do": "drain"}',
        b'{"do": "drain", "plan": 1}', b'{"do": "undo", "x": 1}', b'{"do": "hold", "reason": ""}',
        b'{"do": "hold", "reason": 1}', b'{"do": "migrate", "pod": "--help", "host": "x"}',
        b'{"do": "hold", "reason": "%s"}' % (b"x" * 5000),
    ],
)  # fmt: skip
def test_requests_that_mean_nothing(page, body):
    page.open()
    good = {"authorization": page.bearer(), "content_type": "application/json"}
    status, _, said = page.ask("POST", "/api/act", body, **good)
    assert (status, list(json.loads(said))) == (400, ["error"])
    assert page.state()["jobs"] == []


def test_a_reader_reads_and_the_loopback_may_be_let_in(page):
    page.open("loopback_reads = true\n")
    assert page.ask("GET", "/api/state")[0] == 200
    status, _, said = page.ask("GET", "/metrics", authorization=page.bearer(reader=True))
    names = {family.name for family in text_string_to_metric_families(said.decode())}
    assert status == 200
    assert {"autopod_pods", "autopod_drain_phase", "autopod_reboot_needed"} <= names
    assert page.act({"do": "undo"})[0] == 401
    assert page.ask("POST", "/login", {"token": ""})[0] == 200


def events(stream):
    """Yield the states of a stream of server-sent events."""
    for line in stream:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


def test_changes_arrive_by_themselves(page, host):
    page.open()
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
    connection.request("GET", "/api/events", headers={"Authorization": page.bearer(reader=True)})
    with closing(connection), connection.getresponse() as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        states = events(answer)
        assert next(states)["host"]["hold"] is None
        host.run("autopod", "hold", "--reason", "<b>audit</b>")
        changed = next(one for one in states if one["host"]["hold"])
        assert changed["host"]["hold"] == "<b>audit</b>"
        assert changed["events"][-1]["kind"] == "hold"


def test_a_stream_for_each_of_many_but_not_for_all(page):
    page.open()
    head = f"GET /api/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: {page.bearer()}\r\n\r\n"
    opened = []
    try:
        for _ in range(33):
            opened.append(socket.create_connection(("127.0.0.1", page.port), timeout=60))
            opened[-1].sendall(head.encode())
            status = opened[-1].recv(12)
        assert status == b"HTTP/1.1 503"
    finally:
        for one in opened:
            one.close()
    wait_until(lambda: not sockets_of(page), "they have gone")
    assert page.state()["host"]["hold"] is None


def sockets_of(page):
    """The connections that the page's process has."""
    shown = subprocess.run(
        ["ss", "-Htnp", f"sport = :{page.port}"], capture_output=True, text=True, check=True
    )
    return [line for line in shown.stdout.splitlines() if f"pid={page.process.pid}," in line]


def test_names_from_inside_of_a_pod(page, host, archive, prefix):
    root = prefix / "base"
    for directory in ("usr/lib", "var/lib/dpkg"):
        (root / directory).mkdir(parents=True)
    (root / "usr/lib/os-release").write_text("VERSION_CODENAME=bookworm\n")
    status = archive.installed(("libthing1", "1.0")).replace("Version: 1.0", f"Version: {HOSTILE}")
    (root / "var/lib/dpkg/status").write_text(status)
    archive.add("libthing1", "2.0")
    new_kernel(archive)
    archive.publish()
    host.run("autopod", "add", "web", "--base", root)
    subprocess.run([sys.executable, "-m", "autopod.status.cycle"], check=True)
    page.open()
    [pod] = page.state()["pods"]
    assert pod["state"] == "stopped"
    [update] = pod["updates"]
    assert update["installed"] == HOSTILE
    _, _, said = page.ask("GET", "/metrics", authorization=page.bearer())
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(said.decode())
        for sample in family.samples
    }
    assert found["autopod_pod_updates", "web"] == 1
    assert found["autopod_updates", "reboot"] == 2
    assert found["autopod_reboot_needed",] == 1


def test_commands_say_how_they_ended(page, archive):
    page.open()
    held = page.do({"do": "hold", "reason": "--off"})
    assert (held["status"], held["said"]) == (0, "held: --off\n")
    assert page.do({"do": "unhold"})["status"] == 0
    failed = page.do({"do": "undo"})
    assert failed["status"] == 1
    assert "no drain is under way" in failed["said"]
    plan = page.do({"do": "plan"})
    assert plan["said"].startswith("against: the policy is to report only")
    drained = page.do({"do": "drain", "plan": plan["number"]})
    assert (drained["status"], page.state()["drain"]["phase"]) == (0, "ready")
    assert page.do({"do": "undo"})["status"] == 0
    assert [span["what"] for span in page.state()["timeline"]] == [
        "stopping", "installing", "confirming", "ready", "undoing",
    ]  # fmt: skip
    refused = page.act({"do": "drain", "plan": held["number"]}, authorization=page.bearer())
    assert refused[0] == 400


# --- TLS -----------------------------------------------------------------------------------------


def certificate(directory, name, issuer=None, *, authority=False):
    """Make NAME.pem and NAME.key; return certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    kinds = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    by = issuer[0].subject if issuer else subject
    made = (
        x509.CertificateBuilder(by, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(kinds), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / f"{name}.pem").write_bytes(made.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / f"{name}.key").write_bytes(private)
    return made, key


def over_tls(page, path, certificate=None, method="GET", body=None, **headers):
    context = ssl.create_default_context(cafile=page.places.prefix / "server.pem")
    if certificate:
        prefix = page.places.prefix
        context.load_cert_chain(prefix / f"{certificate}.pem", prefix / f"{certificate}.key")
    connection = http.client.HTTPSConnection("localhost", page.port, timeout=60, context=context)
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    try:
        connection.request(method, path, body, names)
        with connection.getresponse() as answer:
            return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_certificates_instead_of_tokens(page, prefix):
    authority = certificate(prefix, "authority", authority=True)
    certificate(prefix, "server", authority=True)
    certificate(prefix, "person", authority)
    certificate(prefix, "stranger", certificate(prefix, "others", authority=True))
    page.open(
        f'certificate = "{prefix}/server.pem"\nkey = "{prefix}/server.key"\n'
        f'client_ca = "{prefix}/authority.pem"\n'
    )
    for wrong in (None, "stranger", "server"):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            over_tls(page, "/login", wrong)
    status, _, said = over_tls(page, "/api/state", "person")
    assert (status, json.loads(said)["problem"]) == (200, None)
    send = {"method": "POST", "content_type": "application/json"}
    hold = b'{"do": "hold", "reason": "x"}'
    assert over_tls(page, "/api/act", "person", body=hold, **send)[0] == 401, "nor by others' pages"
    status, headers, said = over_tls(page, "/login", "person", body=b'{"token": ""}', **send)
    assert status == 200
    assert headers["set-cookie"].startswith("__Host-autopod=")
    assert "Secure" in headers["set-cookie"]
    session = {
        "cookie": headers["set-cookie"].partition(";")[0],
        "x_autopod_secret": json.loads(said)["secret"],
    }
    assert over_tls(page, "/api/act", "person", body=hold, **send, **session)[0] == 202
    wait_until(lambda: hold_of(page) is not None, "the host is held")


@pytest.mark.parametrize(
    ("listen", "files", "says"),
    [
        ("127.0.0.1:{0}", "", "cannot listen at 127.0.0.1:{0}: Address already in use"),
        ("192.0.2.77:{0}", "server", "cannot listen at 192.0.2.77:{0}: Cannot assign"),
        ("127.0.0.1:{0}", "missing", "certificate cannot be used: No such file"),
        ("127.0.0.1:{0}", "autopod", "certificate cannot be used: "),
    ],
)
def test_what_cannot_be_served_is_said(prefix, listen, files, says):
    certificate(prefix, "server")
    policy = prefix / "etc/autopod/autopod.toml"
    policy.parent.mkdir(parents=True)
    (prefix / "autopod.pem").touch()
    (prefix / "autopod.key").touch()
    tls = f'certificate = "{prefix}/{files}.pem"\nkey = "{prefix}/{files}.key"\n' if files else ""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        policy.write_text(f'[web]\nlisten = "{listen.format(port)}"\n{tls}')
        argv = [sys.executable, "-m", "autopod.web"]
        run = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1
    assert says.format(port) in run.stderr
    assert "internal" not in run.stderr


# --- the service has it beside itself -------------------------------------------------------------


def children(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def serving(page):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", page.port)) == 0


def test_the_service_has_it_beside_itself(page, prefix):
    policy = prefix / "etc/autopod/autopod.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text(f'[service]\nevery_s = 0\n[web]\nlisten = "127.0.0.1:{page.port}"\n')
    with subprocess.Popen([BIN / "autopod", "statusd"], stdin=subprocess.DEVNULL) as service:
        wait_until(lambda: serving(page), "the page is served")
        page.tokens = auth.ensure(page.places)
        [first] = children(service.pid)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: children(service.pid) not in ([], [first]), "it was started again")
        wait_until(lambda: serving(page), "the page is served again")
        assert page.state()["problem"] is None
        service.kill()
    wait_until(lambda: not serving(page), "it does not outlive the service")


def test_fleetlock(page):
    """Another system's software takes a slot of the fleet, from which our hosts have theirs."""
    policy = page.host.prefix / "etc/autopod/autopod.toml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text(f'[fleet]\nfile = "{page.host.prefix}/fleet.db"\nslots = 1\n')
    page.open("fleetlock = true\n")
    protocol = {"fleet_lock_protocol": "true"}

    def ask(path, name="one", **headers):
        client = {"client_params": {"id": name, "group": "default"}}
        status, _, said = page.ask("POST", f"/v1/{path}", client, **headers)
        return status, json.loads(said).get("kind")

    assert ask("pre-reboot") == (400, "no_protocol_header")
    evil = page.ask("POST", "/v1/pre-reboot", {}, origin="http://evil.example", **protocol)
    assert evil[0] == 421
    for _ in range(2):
        assert ask("pre-reboot", **protocol) == (200, None)
    assert ask("pre-reboot", "two", **protocol) == (409, "no_slot")
    assert ask("steady-state", **protocol) == (200, None)
    assert ask("pre-reboot", "two", **protocol) == (200, None)
    too_long = page.ask("POST", "/v1/pre-reboot", bytes(1 << 17), **protocol)
    assert too_long[0] == 400
    assert page.ask("GET", "/v1/pre-reboot", **protocol)[0] == 405


def test_no_fleetlock_unless_it_is_asked_for(page):
    page.open()
    assert page.ask("POST", "/v1/pre-reboot", {}, fleet_lock_protocol="true")[0] == 404
