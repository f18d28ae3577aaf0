"""A cluster of etcd on this machine: three members, certificates made on the spot, a user."""

import contextlib
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from autopod.fleet.gateway import Access, Gateway
from tests import probes

START_S = 60


def program():
    """Debian's etcd: installed, or taken out of its package by `make test`."""
    there = probes.PROJECT / "build/etcd/usr/bin/etcd"
    return os.fspath(there) if there.exists() else shutil.which("etcd")


class Authority:
    """Signs certificates in *home*."""

    def __init__(self, home):
        self.home, self.ca = home, home / "ca.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the tests' own")])
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.ca.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name, *addresses):
        """Make NAME.pem and NAME.key, for *addresses* and this machine's own.

        They have no common name, which etcd refuses beside a user's token.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        known = map(ipaddress.ip_address, ("127.0.0.1", *addresses))
        builder = (
            self._builder(x509.Name([]), key)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectAlternativeName(map(x509.IPAddress, known)), critical=True)
        )
        certificate, file = self.home / f"{name}.pem", self.home / f"{name}.key"
        signed = builder.sign(self._key, hashes.SHA256())
        certificate.write_bytes(signed.public_bytes(Encoding.PEM))
        file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
        return certificate, file

    def _builder(self, subject, key):
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


class Cluster:
    """Three members below *home*; start() and end()."""

    def __init__(self, home):
        self.home = home
        authority = Authority(home)
        self.member, self.host = authority.issue("member"), authority.issue("host")
        self.ca = authority.ca
        ports = free_ports(6)
        self.clients = [f"https://127.0.0.1:{port}" for port in ports[:3]]
        self._peers = [f"https://127.0.0.1:{port}" for port in ports[3:]]
        self._members = [None, None, None]

    def access(self, *, user=None, password=None, **changes):
        certificate, key = map(os.fspath, self.host)
        known = {"endpoints": self.clients, "ca": os.fspath(self.ca)}
        known |= {"certificate": certificate, "key": key, "patience_s": 60.0}
        return Access(user=user, password=password, **{**known, **changes})

    def start(self, number):
        log = (self.home / f"{number}.log").open("ab")
        with log:
            self._members[number] = subprocess.Popen(
                self._command(number),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )

    def kill(self, number, how=signal.SIGKILL):
        """End a member, and wait for that: its ports are free then."""
        process = self._members[number]
        if process:
            process.send_signal(how)
            process.wait()
            self._members[number] = None

    def end(self):
        for number in range(3):
            self.kill(number)

    async def call(self, method, request=None, **access):
        """Ask etcd itself."""
        gateway = Gateway(self.access(**access))
        try:
            return await gateway.call(method, request or {}, dict)
        finally:
            await gateway.aclose()

    async def leader(self):
        """The number of the member that leads, as the first that is alive sees it."""
        alive = [n for n in range(3) if self._members[n]]
        for number in alive:
            said = await self.call("maintenance/status", endpoints=[self.clients[number]])
            if said["header"]["member_id"] == said.get("leader"):
                return number
        raise AssertionError("none leads")

    def _command(self, number):
        peers = {f"m{n}": peer for n, peer in enumerate(self._peers)}
        return command(
            self.home, f"m{number}", self.clients[number], peers, (self.ca, *self.member)
        )


def command(home, name, client, peers, files):
    """The command of a member, which keeps what it knows in *home*/NAME.

    Args:
        home: a directory of the cluster.
        name: the member's.
        client: the URL at which it is asked.
        peers: the URLs at which the members find each other, by name.
        files: the authority's certificate, the members' and its key.
    """
    tls = dict(zip(("trusted-ca-file", "cert-file", "key-file"), files, strict=True))
    options = {
        "name": name,
        "data-dir": home / name,
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peers[name],
        "initial-advertise-peer-urls": peers[name],
        "initial-cluster": ",".join(f"{one}={url}" for one, url in peers.items()),
        "initial-cluster-token": os.fspath(home),
        "heartbeat-interval": "200",
        "election-timeout": "2000",
        **tls,
        **{f"peer-{option}": file for option, file in tls.items()},
    }
    flags = ("--client-cert-auth", "--peer-client-cert-auth")
    return [program(), *flags, *(f"--{option}={value}" for option, value in options.items())]


def free_ports(count):
    """Ports that nobody has: this session's network is its own."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_started(cluster):
    """Wait until a majority answers."""
    import trio

    async def ask():
        await cluster.call("kv/range", {"key": b"x"})

    deadline = time.monotonic() + START_S
    trio.run(ask)
    assert time.monotonic() < deadline


@contextlib.contextmanager
def running(directory):
    """Three members, with what they keep in *directory*, that answer."""
    cluster = Cluster(directory)
    try:
        for number in range(3):
            cluster.start(number)
        wait_started(cluster)
        yield cluster
    finally:
        cluster.end()
