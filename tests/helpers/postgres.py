"""A PostgreSQL server of a test's own: a folder, a socket, no network, no password.

The server refuses to run as root; then everything in its folder belongs to ``nobody``, and so does
the process.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote


def server_folder() -> Path | None:
    """Where ``postgres`` and ``initdb`` lie; None where there is no server."""
    found = shutil.which("postgres")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    return None


class Server:
    """A running server. ``url`` opens its database as the records do."""

    def __init__(self, programs: Path, folder: Path, user: pwd.struct_passwd | None) -> None:
        self._programs, self._folder, self._user = programs, folder, user
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://test@/postgres?host={quote(str(folder))}"

    def _command(self, *words: str) -> dict[str, object]:
        about: dict[str, object] = {"args": words, "cwd": self._folder}
        if self._user is not None:
            about |= {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        return about

    def initialize(self) -> None:
        """Make the database folder."""
        subprocess.run(
            **self._command(
                str(self._programs / "initdb"),
                *("-D", str(self._folder / "data"), "-U", "test", "-A", "trust", "-E", "UTF8"),
                *("--no-sync", "--locale=C"),
            ),
            check=True,
            capture_output=True,
            timeout=120,
        )  # type: ignore[call-overload]

    def start(self) -> None:
        """Run the server; returns when it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                **self._command(
                    str(self._programs / "postgres"),
                    *("-D", str(self._folder / "data"), "-k", str(self._folder)),
                    *("-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"),
                ),
                stdout=log,
                stderr=log,
            )  # type: ignore[call-overload]
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(f"host={self._folder} user=test dbname=postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End the server: SIGQUIT at once as in a crash, SIGINT in order."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None


@contextmanager
def postgres_server() -> Iterator[Server]:
    """A fresh server. Raises: ``FileNotFoundError`` where none is installed."""
    programs = server_folder()
    if programs is None:
        raise FileNotFoundError("no PostgreSQL server")
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    # A socket's path may have some hundred characters only: not below pytest's folders.
    with tempfile.TemporaryDirectory(prefix="nst-pg-") as name:
        folder = Path(name)
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        server = Server(programs, folder, user)
        server.initialize()
        server.start()
        try:
            yield server
        finally:
            server.stop()
