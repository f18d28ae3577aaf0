"""The page's pure parts: what is shown, and who may see and do what."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from autopod import top
from autopod.errors import Refused
from autopod.hosts import Row as HostRow
from autopod.moves import Move
from autopod.overview import Row
from autopod.status.health import Fault
from autopod.status.kernels import Kernel
from autopod.status.policy import Act, Policy
from autopod.status.report import PodSoftware, Report, Update
from autopod.status.store import Drain, Event, Hold, PodRecord
from autopod.web import auth, jobs, metrics, state, timeline
from autopod.web.auth import Claims, Gate, Tokens
from autopod.web.ended import Ended
from autopod.web.listening import Web
from autopod.web.timeline import Span
from launcher import toml
from launcher.toml import ConfigError

NOW = 1_795_000_000.0
AT = datetime.fromtimestamp(NOW - 60, UTC)
KERNEL = Kernel("6.1.0-40-amd64", "6.1.90-1", "6.1.0-40-amd64", None, None, None)
IMAGE = Update("linux-image-6.1.0-41-amd64", None, "6.1.158-1", "S", "reboot", "the kernel")
HOSTILE = '<img src=x onerror="alert(1)">\x1b[2J\u202egnp.exe'
INSIDE = PodSoftware("web", None, [Update("openssl", HOSTILE, "3.0", "", "restart", "-")])
FAULT = Fault("disk-full", "/", "97 % in use")
REPORT = Report(AT, None, [], [IMAGE], [], KERNEL, [INSIDE], [FAULT], [])
PODS = [
    Row("web", "running", "10.0.0.2/16", 3, 1 << 20, 90, ["/base"]),
    Row("old", "unmounted", None, 0, 0, None, []),
]
DRAIN = Drain("0123456789ab", "done", False, ["by hand"], "b", [], None, [PodRecord("web", "back")])
KNOWN = state.Inputs(
    name="alpha",
    settings=Policy(act=Act(hold_pods=["web"])),
    hosts=[HostRow("alpha", "a:1", "k", own=True), HostRow("beta", "b:1", "k")],
    pods=PODS,
    cpu_s={"web": 1.5},
    kept={},
    moves=[Move("web", "beta", "send", 5)],
    report=REPORT,
    drain=DRAIN,
)


def event(after, what, drain="0123456789ab", pod=None):
    return Event(1, datetime.fromtimestamp(NOW + after, UTC), "drain", "words", drain, pod, what)


def test_the_picture():
    shown = state.picture(KNOWN, NOW)
    assert shown.host.level == "reboot"
    assert shown.host.reboot == ["linux-image-6.1.0-41-amd64 6.1.158-1: the kernel"]
    assert shown.host.against == [
        "the policy is to report only (act.enabled)",
        "pod web is held, and runs",
    ]
    web, old = shown.pods
    assert (web.since, web.cpu_s, web.held, len(web.updates)) == (NOW - 90, 1.5, True, 1)
    assert (old.state, old.since, old.unknown) == ("unmounted", None, None)
    assert not shown.draining


def test_what_was_never_asked_is_not_said_to_be_well():
    shown = state.picture(replace(KNOWN, report=None, drain=None), NOW)
    assert (shown.host.level, shown.host.reported, shown.host.reboot) == (None, None, [])
    known = metrics.text(shown).decode()
    assert "autopod_updates_known 0.0" in known
    assert "autopod_updates{" not in known


def test_a_hold_by_hand_comes_before_the_policys():
    settings = Policy(act=Act(hold="policy"))
    shown = state.picture(replace(KNOWN, settings=settings), NOW)
    assert (shown.host.hold, shown.host.held_by_hand) == ("policy", False)
    by_hand = replace(KNOWN, settings=settings, hold=Hold(AT, "audit"))
    shown = state.picture(by_hand, NOW)
    assert (shown.host.hold, shown.host.held_by_hand) == ("audit", True)
    assert "the host is held by hand: audit" in shown.host.against


def test_a_report_of_another_version():
    assert state.decode('{"at": 1}')[0] is None
    assert state.decode("{")[1].startswith("the last report cannot be understood")


def test_what_cannot_be_read_does_not_hide_the_rest(places):
    (places.states() / "web").mkdir(parents=True)
    (places.states() / "web/departing.json").write_text("{")
    (places.states() / "autopod.db").write_text("no database")
    shown = state.look(places, Policy())
    assert [pod.pod for pod in shown.pods] == ["web"]
    assert "truncated" in shown.problem
    assert "not a database" in shown.problem


def test_what_is_sent_has_no_control_characters():
    sent = state.as_json(state.picture(KNOWN, NOW))
    said = json.loads(sent)["pods"][0]["updates"][0]["installed"]
    assert said == '<img src=x onerror="alert(1)">\ufffd[2J\ufffdgnp.exe'


@given(st.text())
def test_clean_text_can_be_shown_and_sent(text):
    cleaned = state.clean({"a": [text]})["a"][0]
    assert len(cleaned) == len(text)
    assert all(c.isprintable() or c in "\n\t" for c in cleaned)
    cleaned.encode()


def test_metrics_are_understood_by_prometheus():
    families = list(
        text_string_to_metric_families(metrics.text(state.picture(KNOWN, NOW)).decode())
    )
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert found["autopod_pods", "running"] == 1
    assert found["autopod_pods", "stopped"] == 0
    assert found["autopod_updates", "reboot"] == 1
    assert found["autopod_reboot_needed",] == 1
    assert found["autopod_report_age_seconds",] == 60
    assert found["autopod_faults", "disk-full"] == 1
    assert found["autopod_pod_memory_bytes", "web"] == 1 << 20
    assert found["autopod_pod_cpu_seconds_total", "web"] == 1.5
    assert found["autopod_pod_updates", "web"] == 1
    assert found["autopod_drain_phase", "done"] == 1
    assert found["autopod_moves",] == 1
    assert all(family.documentation for family in families)


def test_the_same_in_a_terminal():
    console = Console(file=io.StringIO(), width=100)
    before = state.picture(replace(KNOWN, cpu_s={"web": 1.0}), NOW - 2)
    console.print(top.render(state.picture(KNOWN, NOW), before))
    said = console.file.getvalue()
    for words in ("alpha", "reboot: linux-image", "not now: pod web is held", "fault: disk-full"):
        assert words in said
    [web] = [line for line in said.splitlines() if line.startswith("web")]
    assert web.split() == ["web", "running", "1m", "30s", "1.0", "MiB", "25.0", "%", "3", "1"]
    assert "move: web to beta: send" in said


# --- the timeline ------------------------------------------------------------------------------


def test_a_drain_as_stretches_of_time():
    events = [
        event(0, "here", pod="web"),
        event(0, "stopping"),
        event(1, "stopping", drain="fedcba987654"),
        event(2, "moved", pod="web"),
        event(3, "stopping"),
        event(4, "ready"),
        event(5, None),
        event(6, "undoing", drain=None),
        event(9, "failed"),
    ]
    assert timeline.spans("0123456789ab", events) == [
        Span("", "stopping", NOW, NOW + 4),
        Span("", "ready", NOW + 4, NOW + 9),
        Span("web", "here", NOW, NOW + 2),
        Span("web", "moved", NOW + 2, NOW + 9),
    ]
    assert timeline.spans("0123456789ab", events[:6])[-1] == Span("web", "moved", NOW + 2, None)


# --- who may -----------------------------------------------------------------------------------

TOKENS = Tokens("a" * 43, "r" * 43)
FAR, NEAR = Claims("192.0.2.1"), Claims("127.0.0.1")


def gate(**settings):
    return Gate(TOKENS, Web(**settings), Ended(Path("/nowhere")))


@pytest.mark.parametrize(
    ("claims", "settings", "reads", "acts"),
    [
        (NEAR, {}, None, None),
        (NEAR, {"loopback_reads": True}, "reader", None),
        (FAR, {"loopback_reads": True}, None, None),
        (replace(FAR, bearer="a" * 43), {}, "admin", "admin"),
        (replace(FAR, bearer="r" * 43), {}, "reader", "reader"),
        (replace(FAR, bearer="a" * 42), {}, None, None),
        (replace(FAR, bearer=""), {}, None, None),
        (replace(NEAR, bearer="\u00e9\ud800"), {}, None, None),
        (replace(FAR, certified=True), {}, "admin", None),
    ],
)
def test_who_reads_and_who_acts(claims, settings, reads, acts):
    assert (gate(**settings).reads(claims, NOW), gate(**settings).acts(claims, NOW)) == (
        reads,
        acts,
    )


def test_a_session_needs_cookie_and_secret_and_ends():
    at = gate()
    session = at.login("a" * 43, NEAR, NOW)
    both = replace(NEAR, cookie=session.cookie, secret=session.secret)
    assert at.acts(both, NOW + auth.SESSION_S) == "admin"
    assert at.acts(both, NOW + auth.SESSION_S + 1) is None
    assert at.visitor(replace(both, secret=None), NOW) == "admin"
    assert at.reads(replace(both, secret=None), NOW) is None
    assert at.reads(replace(both, cookie=None), NOW) is None
    other = at.login("a" * 43, NEAR, NOW)
    assert at.acts(replace(both, secret=other.secret), NOW) is None
    forged = session.cookie.replace(str(int(NOW) + auth.SESSION_S), str(int(NOW) + 10**6))
    assert at.acts(replace(both, cookie=forged), NOW) is None
    elsewhere = Gate(replace(TOKENS, admin="b" * 43), Web(), Ended(Path("/nowhere")))
    assert elsewhere.acts(both, NOW) is None, "a new token ends all sessions"


def test_a_session_that_was_ended(tmp_path):
    def opened():
        return Gate(TOKENS, Web(), Ended(tmp_path / "ended.json"))

    at = opened()
    one, other = (at.login("a" * 43, NEAR, NOW) for _ in range(2))
    both = replace(NEAR, cookie=one.cookie, secret=one.secret)
    at.end(replace(both, cookie=one.cookie[:-1]), NOW)  # it is nobody's
    assert not (tmp_path / "ended.json").exists()
    at.end(both, NOW)
    assert at.acts(both, NOW) is opened().acts(both, NOW) is None
    assert opened().acts(replace(NEAR, cookie=other.cookie, secret=other.secret), NOW) == "admin"
    later = NOW + auth.SESSION_S + 1
    third = opened().login("a" * 43, NEAR, later)
    opened().end(replace(NEAR, cookie=third.cookie, secret=third.secret), later)
    assert len(json.loads((tmp_path / "ended.json").read_bytes())["until"]) == 1
    (tmp_path / "ended.json").write_text("{")
    with pytest.raises(Refused, match="cannot be understood"):
        opened()


def test_a_reader_does_not_become_an_administrator():
    at = gate()
    session = at.login("r" * 43, NEAR, NOW)
    both = replace(NEAR, cookie=session.cookie, secret=session.secret)
    assert at.acts(both, NOW) == "reader"
    raised = session.cookie.replace("reader", "admin")
    assert at.acts(replace(both, cookie=raised), NOW) is None


@given(st.text(max_size=90), st.text(max_size=90))
def test_no_cookie_of_others_is_taken(cookie, secret):
    assert gate().acts(replace(NEAR, cookie=cookie, secret=secret), NOW) is None
    assert gate().visitor(replace(NEAR, cookie=cookie), NOW) is None


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost:7464", True),
        ("127.0.0.1", True),
        ("[::1]:1", True),
        ("LOCALHOST", True),
        ("page.example", True),
        ("evil.example:7464", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("", False),
        ("[", False),
    ],
)
def test_names_of_the_page(host, ours):
    names = auth.own_names(Web(listen="127.0.0.1:7464", names=["Page.example"]))
    assert auth.is_for(host, names) == ours


def test_pages_of_others_may_not_ask():
    assert auth.is_from(None, "localhost:1", tls=False)
    assert auth.is_from("http://localhost:1", "localhost:1", tls=False)
    for origin in ("http://localhost:2", "https://localhost:1", "null", "http://evil.example"):
        assert not auth.is_from(origin, "localhost:1", tls=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('listen = "0.0.0.0:7464"', "others can connect"),
        ('listen = "localhost:7464"', "use ADDRESS:PORT"),
        ('listen = "127.0.0.1:0"', "a port is a number"),
        ('listen = "127.0.0.1:x"', "a port is a number"),
        ('certificate = "c.pem"', "go together"),
        ('client_ca = "c.pem"', "there is no TLS"),
        ("token = 1", "no such key"),
    ],
)
def test_errors_of_the_table(text, says):
    with pytest.raises(ConfigError, match=says):
        toml.decode(f"[web]\n{text}\n".encode(), Path("autopod.toml"), Policy)


def test_a_token_that_others_can_read_is_refused(places):
    made = auth.ensure(places)
    assert auth.ensure(places) == made
    admin, reader = auth.paths(places)
    assert (admin.stat().st_mode & 0o777, reader.stat().st_mode & 0o777) == (0o600, 0o600)
    assert made.admin != made.reader
    admin.chmod(0o640)
    with pytest.raises(auth.Refused, match="can be read by others"):
        auth.ensure(places)
    admin.chmod(0o600)
    admin.write_text("short\n")
    with pytest.raises(auth.Refused, match="holds no token"):
        auth.ensure(places)


# --- what is done ------------------------------------------------------------------------------


class NoJobs:
    def is_plan(self, number):
        return number == 7


@pytest.mark.parametrize(
    ("action", "argv"),
    [
        (jobs.Plan(), ["drain", "--dry-run"]),
        (jobs.Look(), ["status", "--keep"]),
        (jobs.DrainNow(7), ["drain"]),
        (jobs.Undo(), ["drain", "--undo"]),
        (jobs.Clear(), ["drain", "--clear"]),
        (jobs.SetHold("--off"), ["hold", "--reason=--off"]),
        (jobs.EndHold(), ["hold", "--off"]),
        (jobs.Migrate("web", "beta"), ["migrate", "web", "beta"]),
        (jobs.Migrate("web", "beta", trial=True), ["migrate", "web", "beta", "--dry-run"]),
    ],
)
def test_actions_are_commands(action, argv):
    assert jobs.words(action, ["web"], ["beta"], NoJobs()) == argv


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (jobs.DrainNow(6), "look first"),
        (jobs.Migrate("--all", "beta"), "no pod"),
        (jobs.Migrate("web", "-x"), "is not known"),
        (jobs.Migrate("web", "alpha"), "is not known"),
    ],
)
def test_actions_that_cannot_be(action, says):
    with pytest.raises(jobs.Refused, match=says):
        jobs.words(action, ["web"], ["beta"], NoJobs())
