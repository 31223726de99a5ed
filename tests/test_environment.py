"""Places that are not there, libraries' words for a machine's faults, and everything that can answer for MLflow."""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from cprfl.environment import check_folder, machine_fault
from cprfl.errors import ConfigError, TrackingError
from cprfl.experiment import load
from pipelines.tracking import database as database_checks
from pipelines.tracking.addresses import without_password
from pipelines.tracking.server import answers
from pipelines.tracking.store import open_store, ui_address
from tests.helpers import call, free_ports, use_database

NO_ROOM = os.strerror(errno.ENOSPC)


def fault_of(error: BaseException) -> str:
    """What the user is told."""
    fault = machine_fault(error)
    assert fault is not None, error
    return str(fault)


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE,
     errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE, errno.ENOENT],
)  # fmt: skip
def test_an_error_of_the_system_says_what_where_and_the_mend(number: int) -> None:
    text = fault_of(OSError(number, os.strerror(number), "/data/x"))
    what, _, mend = text.partition("; ")
    assert what.startswith(f"/data/x: {os.strerror(number)}")
    assert mend


class Full(io.RawIOBase):
    """A file on a full disk. Not /dev/full: pyarrow removes, and safetensors replaces, what it cannot write."""

    def writable(self) -> bool:
        return True

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, NO_ROOM)


def test_a_full_disk_in_the_words_of_each_library() -> None:
    arrow = OSError(errno.ENOSPC, f"Error writing bytes to file. Detail: [errno 28] {NO_ROOM}")
    without_number = OSError(f"Error writing bytes to file. Detail: [errno 28] {NO_ROOM}")
    rust = type("SafetensorError", (Exception,), {})("Error while serializing: I/O error: ... (os error 28)")
    stream = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    with pytest.raises((RuntimeError, OSError)) as pytorch:
        torch.save({"a": torch.zeros(1000)}, Full())  # type: ignore[arg-type]
    panic = type("PanicException", (BaseException,), {})(
        'write failed: Os { code: 28, kind: StorageFull, message: "" }'
    )
    for error in (arrow, without_number, rust, stream, pytorch.value, panic):
        assert NO_ROOM in fault_of(error)


def test_too_little_memory_in_the_words_of_each_library() -> None:
    with pytest.raises(RuntimeError) as pytorch:
        torch.empty(10**15)
    with pytest.raises(MemoryError) as python:
        bytearray(1 << 60)
    for error in (pytorch.value, python.value, ImportError("x.so: failed to map segment from shared object")):
        assert "more memory" in fault_of(error)
    assert "ulimit -u" in fault_of(RuntimeError("can't start new thread"))


def test_what_is_raised_from_a_fault_is_told_and_a_bug_is_not() -> None:
    wrapped = RuntimeError("task failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, NO_ROOM, "/data/x")
    assert fault_of(wrapped).startswith("/data/x: ")
    for bug in (
        ValueError("x"),
        RuntimeError("shapes do not match"),
        KeyError(28),
        OSError("no number"),
        ImportError("y"),
    ):
        assert machine_fault(bug) is None
    in_handler = TypeError("a bug")
    in_handler.__context__ = OSError(errno.ENOENT, "x", "y")
    assert machine_fault(in_handler) is None


@pytest.mark.parametrize("setting", ["output_dir", "feature_dir"])
@pytest.mark.parametrize("kind", ["a file", "below a file", "of the kernel", "a circle", "too long"])
def test_a_place_that_cannot_be_written_is_said_before_the_work(
    setting: str, kind: str, small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    places = {
        "a file": tmp_path / "file", "below a file": tmp_path / "file/x", "of the kernel": Path("/proc/cprfl/x"),
        "a circle": tmp_path / "circle", "too long": tmp_path / ("x" * 300),
    }  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    status, _, error = call(monkeypatch, capsys, "preprocess", str(small_config), "--set", f"{setting}={places[kind]}")
    assert (status, "Traceback" in error, error.count("cprfl: ")) == (2, False, 1)
    assert "; " in error.strip().splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_left_where_a_folder_was_tried(tmp_path: Path) -> None:
    check_folder(tmp_path / "a/b/c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "override",
    ["output_dir=", "output_dir= ", "output_dir=null", "data_root=None", "feature_dir=", "encoder.weights="],
)
def test_an_empty_place_is_refused(override: str, small_config: Path) -> None:
    with pytest.raises(ConfigError, match="empty"):
        load(small_config, [override])


class Says(BaseHTTPRequestHandler):
    """Answers everything with the server's status and body."""

    def do_GET(self) -> None:
        status, kind, body = self.server.says  # type: ignore[attr-defined]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def server(status: int, kind: str = "application/json", body: bytes = b"{}") -> Iterator[str]:
    """The address of one that says so."""
    found = ThreadingHTTPServer(("127.0.0.1", 0), Says)
    found.says = (status, kind, body)  # type: ignore[attr-defined]
    threading.Thread(target=found.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{found.server_port}"
    finally:
        found.shutdown()
        found.server_close()


@pytest.mark.parametrize(
    ("says", "mend", "there"),
    [
        ((401, "text/plain", b"who are you"), "MLFLOW_TRACKING_USERNAME", True),
        ((403, "application/json", b'{"error_code": "PERMISSION_DENIED"}'), "MLFLOW_TRACKING_TOKEN", True),
        ((500, "text/html", b"<h1>oops</h1>"), "its log says why", True),
        ((502, "text/html", b"<h1>bad gateway</h1>"), "its server not .502.; start it", False),
        ((200, "text/html", b"<h1>log in</h1>"), "something else than MLflow .*text/html.*NO_PROXY", True),
        ((200, "application/json", b'{"hello": 1}'), "something else than MLflow", True),
        ((404, "application/json", b"{}"), "something else than MLflow .*status 404", True),
    ],
)
def test_what_answers_for_mlflow_is_told_apart(
    says: tuple[int, str, bytes], mend: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(*says) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(TrackingError, match=mend):
            open_store(str(tmp_path))
        assert answers(address) is there


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.server._SECONDS_FOR_SEARCH", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(TrackingError, match="no MLflow server answers .*timed out"):
            open_store(str(tmp_path))


@pytest.mark.parametrize(
    "uri", ["foo://x", "/folder", "file:///folder", " ", "http://[::1", "http://a:99999", "sqlite:///"]
)
def test_what_names_no_store_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI: .*give"):
        open_store(str(tmp_path))


def test_a_database_server_that_is_away_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:hush@127.0.0.1:{free_ports(1)[0]}/x")
    with pytest.raises(TrackingError, match="start the database|driver") as raised:
        open_store(str(tmp_path))
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("harm", ["cut", "overwritten", "inside", "newer", "older", "locked"])
def test_a_database_that_cannot_be_used_is_told_of(
    harm: str, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_database(tmp_path, database)
    file = tmp_path / "mlflow/mlflow.db"
    monkeypatch.setattr(database_checks, "SECONDS", 0.2)
    held = sqlite3.connect(file, isolation_level=None)
    match harm:
        case "cut":
            os.truncate(file, file.stat().st_size // 2)
        case "overwritten":
            file.write_bytes(b"no database " * 1000)
        case "inside":
            data = bytearray(file.read_bytes())
            data[4096 * 3 : 4096 * 4] = b"\xff" * 4096
            file.write_bytes(bytes(data))
        case "newer" | "older":
            revision = "ffffffffffff" if harm == "newer" else "0584bdc529eb"
            held.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        case "locked":
            held.execute("BEGIN EXCLUSIVE")
    mends = {"newer": "a newer MLflow", "older": "mlflow db upgrade", "locked": "another process holds it"}
    with pytest.raises(TrackingError, match=mends.get(harm, "backup")) as raised:
        open_store(str(tmp_path))
    held.close()
    assert str(file) in str(raised.value)


def test_only_a_password_is_left_out_of_what_is_shown() -> None:
    assert without_password("http://me:hush@host:5000/x") == "http://host:5000/x"
    assert without_password("sqlite:////home/me@work/mlflow.db") == "sqlite:////home/me@work/mlflow.db"


def test_output_that_cannot_be_printed_is_said(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "cannot be written" in done.stderr or NO_ROOM in done.stderr


def test_a_foreign_owned_folder_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be somebody else")
    folder = tmp_path / "own"
    folder.mkdir(mode=0o755)
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_mode & 0o005 != 0o005 and each.is_relative_to("/tmp"):
            each.chmod(0o755)
    code = (
        "from pathlib import Path; from cprfl.environment import *\n"
        f"try: check_folder(Path({str(folder)!r}))\nexcept OSError as error: print(machine_fault(error))"
    )
    words = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(words, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nobody cannot run this Python: {done.stderr.splitlines()[-1:]}")
    assert done.stdout.startswith(f"{folder}: Permission denied; have its owner")


def test_links_name_the_address_that_browsers_know(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ui_address("http://mlflow:5000/") == "http://mlflow:5000"
    monkeypatch.setenv("CPRFL_MLFLOW_UI", "http://me:hush@127.0.0.1:5000/")
    assert ui_address("http://mlflow:5000/") == "http://127.0.0.1:5000"
    assert ui_address("sqlite:///mlflow.db", 5001) == "http://127.0.0.1:5001"  # which `cprfl ui` serves
