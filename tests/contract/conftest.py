"""A real PostgreSQL server for the contract, started on a free loopback port as an unprivileged user."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "s3cret/&word"
PASSWORD_IN_URL = "s3cret%2F%26word"


@dataclass(frozen=True)
class Server:
    """A running server; every test finds its database empty."""

    programs: Path
    port: int
    folder: Path
    demote: dict

    def empty_database(self):
        """Clear the one database that the tests share (a new one each costs 7 MB of disk) and return its URL."""
        subprocess.run(
            [
                self.programs / "psql",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-p",
                str(self.port),
                "-U",
                "tester",
                "postgres",
            ],
            input="SET lock_timeout = '20s'; DROP SCHEMA public CASCADE; CREATE SCHEMA public;",
            env={**os.environ, "PGPASSWORD": PASSWORD, "PGOPTIONS": "-c client_min_messages=warning"},
            check=True,
            text=True,
            capture_output=True,
        )
        return f"postgresql://tester:{PASSWORD_IN_URL}@127.0.0.1:{self.port}/postgres"

    def stop(self):
        """End the server at once."""
        self.control("stop", "-m", "immediate")

    def start(self):
        """Start it on its port; returns when it answers."""
        options = f"-F -h 127.0.0.1 -p {self.port} -c unix_socket_directories=''"
        self.control("start", "-l", self.folder / "log", "-o", options)

    def control(self, verb, *arguments):
        """Run pg_ctl on this server's folder."""
        command = [self.programs / "pg_ctl", verb, "-w", "-s", "-D", self.folder / "data", *arguments]
        subprocess.run(command, check=True, cwd=self.folder, stdin=subprocess.DEVNULL, timeout=60, **self.demote)


def _unprivileged():
    """How subprocess runs a program as somebody who may run PostgreSQL: root may not."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("there is no unprivileged user (postgres or nobody) to run PostgreSQL as")
    return {}


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def postgres_server():
    """The server; skipped where Debian's package is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    programs = found[-1].parent
    demote = _unprivileged()
    # Not below pytest's own folder, which the unprivileged user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="autopeft-postgres-"))
    server = Server(programs, _free_port(), folder, demote)
    try:
        if demote:
            os.chown(folder, demote["user"], demote["group"])
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        command = [programs / "initdb", "-D", folder / "data", "-U", "tester", "-A", "scram-sha-256", "-N"]
        command += [f"--pwfile={secret}", "-E", "UTF8", "--locale=C.UTF-8"]
        subprocess.run(command, check=True, cwd=folder, capture_output=True, timeout=120, **demote)
        server.start()
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server):
    """URL of an empty database."""
    return postgres_server.empty_database()
