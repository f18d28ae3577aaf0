"""Who is told of what, when again, and in which words."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from autopod import cli
from autopod.status import notices, outbox, senders, store
from autopod.status.outbox import Notice
from autopod.status.policy import Policy
from autopod.status.receivers import Command, Mail, Webhook
from autopod.status.store import Drain, PodRecord
from launcher import toml
from launcher.toml import ConfigError

LATER = 1e12
SMTP = 'by = "mail"\nto = ["root"]\nsmtp = "mail.example.org:587"\n'


DRAIN = Drain("0123456789ab", "stopping", True, ["x"], "boot", [], None, [])


@pytest.fixture
def history(places):
    with store.opened(places) as opened:
        outbox.queue(opened, ["one", "two"])
        yield opened


def told(history, name="one"):
    return [one.notice.text for one in outbox.waiting(history) if one.receiver == name]


def test_each_event_once_for_each_receiver(history):
    history.add_event("alert", "disk-full: /: 97 %")
    history.add_event("hold", "begun: x")
    history.save(DRAIN)
    history.save(replace(DRAIN, phase="installing"))
    for _ in range(2):
        outbox.queue(history, ["one", "two"])
    assert told(history) == ["disk-full: /: 97 %", "begins, by itself: x"]
    assert told(history) == told(history, "two")
    first, other = outbox.due(history, LATER)
    assert {first.receiver, other.receiver} == {"one", "two"}
    assert first.notice.text == "disk-full: /: 97 %", "in the order of what happened"
    outbox.delivered(history, first)
    assert len(told(history, first.receiver)) == 1


def test_a_drain_is_told_from_its_begin_to_its_end(history):
    pods = [PodRecord("web"), PodRecord("mail")]
    drain = replace(DRAIN, pods=pods)
    gone = [replace(pods[0], place="moved", host="beta"), replace(pods[1], place="archive")]
    history.save(drain)
    history.save(drain)
    history.save(replace(drain, pods=gone))
    for phase in ("installing", "confirming", "rebooting", "rebooting", "returning"):
        history.save(replace(drain, pods=gone, phase=phase))
    history.save(replace(drain, pods=gone, phase="failed", failed="the wrong kernel runs"))
    assert [(one.pod, one.what) for one in history.recent(99)] == [
        (None, "stopping"), ("web", "here"), ("mail", "here"), ("web", "moved"),
        ("mail", "archive"), (None, "installing"), (None, "confirming"), (None, "rebooting"),
        (None, "returning"), (None, "failed"),
    ]  # fmt: skip
    outbox.queue(history, ["one"])
    said = [one.notice.subject for one in outbox.waiting(history)]
    assert said == [
        "a drain has begun",
        "rebooted, its pods are being restarted",
        "a drain has failed",
    ]


def test_a_fault_that_lasts_is_told_once(history):
    for _ in range(3):
        history.add_event("alert", "disk-full: /: 97 %")
        outbox.queue(history, ["one"])
    assert told(history) == ["disk-full: /: 97 %"]


def test_a_fault_that_comes_again_is_told_again(history):
    long_ago = (datetime.now(UTC) - timedelta(days=2)).isoformat(timespec="milliseconds")
    with history.db:
        history.db.execute(
            "INSERT INTO event (at, kind, text) VALUES (?, 'alert', 'smart: sda')", (long_ago,)
        )
    history.add_event("alert", "smart: sda")
    outbox.queue(history, ["one"])
    assert told(history) == ["smart: sda", "smart: sda"]


def test_a_new_receiver_is_told_nothing_of_before_and_one_that_is_gone_nothing_more(history):
    history.add_event("alert", "a")
    assert outbox.is_behind(history, ["one", "two"])
    outbox.queue(history, ["one", "new"])
    assert not outbox.is_behind(history, ["one", "new"])
    assert {one.receiver for one in outbox.waiting(history)} == {"one"}
    history.add_event("alert", "b")
    outbox.queue(history, ["one", "new"])
    assert told(history, "new") == ["b"]


def test_tries_are_ever_rarer_and_end(history):
    history.add_event("alert", "a")
    outbox.queue(history, ["one"])
    now = 0.0
    for tries in range(outbox.TRIES):
        [one] = outbox.due(history, now)
        assert one.tries == tries
        outbox.failed(history, one, "nobody there", now)
        assert outbox.due(history, now) == []
        now += outbox.pause_s(tries)
    assert outbox.waiting(history) == []
    assert history.recent(1)[0].text == "one was not told: a (nobody there)"
    assert 12 < now / 3600 < 30
    outbox.queue(history, ["one"])
    assert outbox.waiting(history) == [], "nobody is told that somebody was not told"


@pytest.mark.parametrize(
    ("kind", "text", "what", "subject"),
    [
        ("alert", "pressure: io: nothing went on", None, "alert: pressure"),
        ("drain", "the pods are stopped", "stopping", "a drain has begun"),
        ("drain", "booted", "returning", "rebooted, its pods are being restarted"),
        ("drain", "failed: no room\nat all", "failed", "a drain has failed"),
        ("drain", "to install: x", "installing", None),
        ("drain", "done", None, None),
        ("pod", "web: lost", "lost", None),
        ("notify", "one was not told: a", None, None),
    ],
)
def test_subjects(kind, text, what, subject):
    assert outbox.subject(kind, text, what) == subject


def test_a_mail_has_one_subject_whatever_the_kernel_says():
    text = "kernel: oops\r\nBcc: everybody@example.org\r\n\r\n: really"
    notice = Notice(3, "2026-11-27T10:00:00+00:00", "alert", text)
    made = senders.letter(Mail(["a@example.org", "root"]), "alpha", notice)
    assert made["Subject"] == "[autopod] alpha: alert: kernel"
    assert made["Bcc"] is None
    assert made["To"] == "a@example.org, root"
    assert made["Message-ID"].startswith("<autopod.3.")
    assert "everybody" in made.get_content()
    odd = Notice(3, notice.at, "alert", "odd\nkind: x")
    assert (
        senders.letter(Mail(["root"]), "alpha", odd)["Subject"]
        == "[autopod] alpha: alert: odd kind"
    )


def test_json():
    notice = Notice(3, "2026-11-27T10:00:00+00:00", "drain", "done", "done")
    assert json.loads(senders.as_json("alpha", notice)) == {
        "host": "alpha",
        "subject": "a drain has ended",
        "event": 3,
        "at": "2026-11-27T10:00:00+00:00",
        "kind": "drain",
        "text": "done",
        "what": "done",
    }


def read(text):
    return toml.decode(text.encode(), Path("autopod.toml"), Policy).notify


def test_the_file():
    found = read(
        '[[notify]]\nby = "webhook"\nurl = "https://h.example/secret"\n'
        '[[notify]]\nby = "webhook"\nurl = "https://h.example/other"\n'
        '[[notify]]\nby = "mail"\nto = ["root"]\nsmtp = "localhost:25"\n'
        '[[notify]]\nby = "command"\nrun = ["/bin/true"]\n'
    )
    assert [type(one) for one in found] == [Webhook, Webhook, Mail, Command]
    assert list(notices.named(found)) == [
        "webhook h.example",
        "webhook h.example (2)",
        "mail root",
        "command /bin/true",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('by = "webhook"\nurl = "file:///etc/shadow"', "use http"),
        ('by = "webhook"\nurl = "http://h/"\nheaders = {"A" = "b\\r\\nC: d"}', "header"),
        ('by = "mail"\nto = []', "somebody"),
        ('by = "mail"\nto = ["a b@c"]', "no address"),
        ('by = "mail"\nto = ["root"]\nsmtp = "localhost"', "HOST:PORT"),
        (SMTP + 'tls = "maybe"', "tls"),
        (SMTP + 'tls = "starttls"\nuser = "u"', "password_file"),
        (SMTP + 'tls = "starttls"\npassword_file = "/p"', "user"),
        (SMTP + 'user = "u"\npassword_file = "/p"', "over TLS only"),
        (SMTP + 'tls = "implicit"\nuser = "\u00fc"\npassword_file = "/p"', "ASCII"),
        (SMTP + 'ca = "/ca.pem"', "no certificate"),
        ('by = "mail"\nto = ["root"]\ntls = "starttls"', "goes with smtp"),
        ('by = "command"\nrun = []', "one word"),
        ('by = "pigeon"', "pigeon"),
    ],
)
def test_errors(text, says):
    with pytest.raises(ConfigError, match=says):
        read(f"[[notify]]\n{text}\n")


def test_a_database_of_the_former_version_goes_on(places):
    import sqlite3

    places.states().mkdir(parents=True)
    with sqlite3.connect(store.path(places)) as old:
        for statement in filter(str.strip, store._SCHEMAS[0].split(";")):
            old.execute(statement)
        old.execute("INSERT INTO event VALUES ('2026-11-27T10:00:00+00:00', 'alert', 'old')")
        old.execute("PRAGMA user_version = 1")
    old.close()
    with store.opened(places) as history:
        assert history.recent(5)[0].text == "old"
        assert history.hold() is None
        history.set_hold("audit")
        assert history.hold().reason == "audit"
        history.set_hold(None)
        assert history.hold() is None
        assert [one.text for one in history.recent(2)] == ["begun: audit", "ended"]


def test_where_nobody_would_be_told_that_is_no_success(places, capsys):
    assert cli.main(["notify", "--test"]) == 1
    assert "nobody is told" in capsys.readouterr().err


def test_what_was_not_held_does_not_end(places, history, capsys):
    for words in (["--off"], ["--reason", "audit"], ["--off"], ["--off"]):
        assert cli.main(["hold", *words]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "nothing was held",
        "held: audit",
        "the service may act",
        "nothing was held",
    ]
    rows = history.db.execute("SELECT text FROM event WHERE kind = 'hold'").fetchall()
    assert [row[0] for row in rows] == ["begun: audit", "ended"]
