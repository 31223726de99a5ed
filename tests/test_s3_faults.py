"""S3 that answers wrongly, slowly, in part or not at all: ridden out with the same result, or one line that says so."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cprfl.data import trouble
from cprfl.data.ahead import read_ahead
from cprfl.data.feature_store import FeatureStore
from cprfl.data.opened import open_file
from cprfl.data.packed import read_packed, tar_uri
from cprfl.data.storage import Folder, local_copy, read_bytes, stamps
from cprfl.data.trouble import Trouble, TroubleError
from cprfl.errors import StorageError
from cprfl.experiment import load
from cprfl.preparation import prepare
from cprfl.recipe import train
from tests.faulty_proxy import FaultyProxy, faulty_proxy

QUICK = ("503", "500", "refused", "reset", "cut")


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy before S3, through which all goes from now on."""
    with faulty_proxy(os.environ["AWS_ENDPOINT_URL"]) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for limits in ("PATIENCE", "PATIENCE_AT_FIRST"):
        monkeypatch.setattr(trouble, limits, dict.fromkeys(Trouble, 0.5))


def everything(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.files()}


@pytest.mark.slow
def test_a_training_from_s3_is_the_same_with_every_fifth_answer_spoilt_and_an_outage(
    own_config: Path, own_photos: Path, bucket: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    for file in own_photos.iterdir():
        Folder(f"{bucket}/data").write(file.name, file.read_bytes())
    results, served = [], 0
    for name in ("quiet", "spoilt"):
        words = [f"data_root={bucket}/data", f"feature_dir={bucket}/{name}", f"output_dir={tmp_path}/{name}"]
        experiment = load(own_config, [*words, "encoder.views=12", "train.epochs=2"])
        if name == "spoilt":
            proxy.rate, proxy.kinds, proxy.delay = 0.2, (*QUICK, "slow", "trickle"), 1.0
            proxy.outage_after = (served // 2, 6.0)
        prepared = prepare(experiment)
        served = sum(proxy.asked.values())
        checkpoint = train(experiment, prepared)
        proxy.rate = 0.0
        assert prepared.store is not None
        FeatureStore.open(prepared.store.folder.uri).verify()
        model = load_file(checkpoint / "model.safetensors")
        results.append((everything(prepared.store.folder), {name: value.tolist() for name, value in model.items()}))
    assert len(results[0][0]) > 2
    assert results[0][1]
    assert {*QUICK} <= set(proxy.asked)
    assert proxy.outage_after is None
    for before, after in zip(*results, strict=True):
        assert not {name for name in before | after if before.get(name) != after.get(name)}


@pytest.mark.slow
def test_an_answer_that_takes_six_seconds_is_waited_for(bucket: str, proxy: FaultyProxy) -> None:
    Folder(bucket).write("a", b"abc")
    proxy.rate, proxy.kinds, proxy.delay = 1.0, ("slow",), 6.0
    assert read_bytes(f"{bucket}/a") == b"abc"
    assert proxy.asked["slow"] == 2


@pytest.mark.parametrize("kind", QUICK)
@pytest.mark.usefixtures("impatient")
def test_what_does_not_end_is_given_up_with_the_uri_and_the_mend(bucket: str, proxy: FaultyProxy, kind: str) -> None:
    Folder(bucket).write("a", b"abc" * 1000)
    proxy.chosen = lambda method, _: kind if method == "GET" else None
    work = (lambda: read_bytes(f"{bucket}/a"), lambda: Folder(bucket).read("a"), lambda: Folder(bucket).files())
    for one in work:
        with pytest.raises(StorageError, match=rf"^{bucket}.*; (it was asked again|check the bucket)") as caught:
            one()
        assert "\n" not in str(caught.value)
    assert proxy.asked[kind] >= 3 * len(work)


@pytest.mark.parametrize("kind", ["503", "denied", "reset"])
@pytest.mark.parametrize("at", ["create", "first part", "second part", "complete"])
@pytest.mark.usefixtures("impatient")
def test_an_upload_that_fails_leaves_what_was_there(bucket: str, proxy: FaultyProxy, kind: str, at: str) -> None:
    folder = Folder(bucket)
    folder.write("a", b"before")

    def strikes(method: str, path: str) -> bool:
        return {
            "create": method == "POST" and "uploadId" not in path,
            "first part": "partNumber=1&" in path,
            "second part": "partNumber=2&" in path,
            "complete": method == "POST" and "uploadId" in path,
        }[at]

    proxy.chosen = lambda method, path: kind if strikes(method, path) else None
    for name in ("a", "b"):
        with pytest.raises(StorageError, match=f"^{bucket}/{name}: "):
            folder.write(name, bytes(11 * 2**20))  # two parts
    assert proxy.asked[kind]
    assert everything(folder) == {"a": b"before"}
    proxy.chosen = None
    folder.write("a", b"after")
    assert folder.read("a") == b"after"


def test_an_upload_whose_last_answer_is_lost_is_whole(bucket: str, proxy: FaultyProxy) -> None:
    """The server has completed it, and knows nothing of it when it is asked once more."""
    lost = ["cut", "cut"]
    proxy.chosen = lambda method, path: lost.pop() if method == "POST" and "uploadId" in path and lost else None
    Folder(bucket).write("a", b"whole")
    assert Folder(bucket).read("a") == b"whole"
    assert proxy.asked["cut"] == 2


def test_credentials_that_expire_are_read_anew(
    bucket: str, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    written = "[default]\naws_access_key_id = {0}\naws_secret_access_key = {0}\naws_session_token = {0}\n"
    file.write_text(written.format("old"))
    folder = Folder(f"{bucket}/x")
    folder.write("a", b"abc" * 100)
    opened = open_file(f"{bucket}/x/a")
    assert opened.read(3) == b"abc"
    proxy.expired_token = "old"
    timer = threading.Timer(1.0, file.write_text, (written.format("new"),))
    timer.start()
    assert folder.exists("a")  # asked by HEAD, whose answer does not say what is wrong
    timer.join()
    assert opened.read() == (b"abc" * 100)[3:]
    folder.write("b", b"def")
    assert folder.files() == {"a": 300, "b": 3}
    assert read_bytes(f"{bucket}/x/b") == b"def"


@pytest.mark.usefixtures("impatient")
def test_credentials_that_stay_expired_are_named(bucket: str, proxy: FaultyProxy) -> None:
    Folder(bucket).write("a", b"abc")
    proxy.expired_token = ""
    for work in (lambda: read_bytes(f"{bucket}/a"), lambda: Folder(bucket).files(), lambda: stamps([f"{bucket}/a"])):
        with pytest.raises(StorageError, match=f"^{bucket}.*the credentials have expired: renew them"):
            work()


def test_what_is_refused_or_named_wrongly_is_said_at_once(
    bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble.time, "sleep", lambda _: pytest.fail("waited"))
    Folder(bucket).write("a", b"abc")
    proxy.chosen = lambda *_: "denied"
    for work in (lambda: read_bytes(f"{bucket}/a"), lambda: Folder(bucket).files(), lambda: stamps([f"{bucket}/a"])):
        with pytest.raises(StorageError, match=f"^{bucket}.*these credentials may not do that"):
            work()
    proxy.chosen = None
    proxy.expired_token = ""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "another")  # a storage of which nothing was had yet
    with pytest.raises(StorageError, match="have expired"):
        read_bytes(f"{bucket}/a")


@pytest.mark.parametrize(
    "ask",
    [
        lambda root: Folder(f"{root}/features").folders(),
        lambda root: Folder(root).files(),
        lambda root: Folder(f"{root}/features").is_there(),
        lambda root: Folder(f"{root}/features").write("a", b"abc"),
        lambda root: FeatureStore.open(f"{root}/features/key"),
        lambda root: stamps([f"{root}/a.jpg", f"{root}/b.jpg"]),
    ],
)
def test_a_bucket_that_does_not_exist_is_told_from_a_folder_that_does_not(bucket: str, ask: object) -> None:
    assert callable(ask)
    with pytest.raises(StorageError, match=r"s3://no-such-bucket-at-all.*make (it|the bucket), or correct its name"):
        ask("s3://no-such-bucket-at-all")
    assert Folder(f"{bucket}/features").folders() == []
    assert not Folder(f"{bucket}/features").is_there()
    Folder(f"{bucket}/features/x").write("a", b"abc")
    assert Folder(f"{bucket}/features").is_there()


@pytest.mark.parametrize("where", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_storage_that_never_answered_is_given_up_soon(
    bucket: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(trouble.time, "sleep", sleep)
    monkeypatch.setattr(trouble.time, "monotonic", lambda: clock[0])
    monkeypatch.setenv("AWS_ENDPOINT_URL", where)
    with pytest.raises(StorageError, match=f"^{bucket}/a: .*check the bucket, the credentials .* AWS_ENDPOINT_URL"):
        read_bytes(f"{bucket}/a")
    assert len(slept) >= 3
    assert sum(slept) < 20


@pytest.mark.parametrize("kind", Trouble)
def test_an_outage_of_a_minute_is_waited_for_and_one_bad_file_is_not(
    kind: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(trouble.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(trouble.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    for last in (0.0, 100.1):  # another reader was served just after the outage began for this one
        clock[0] = 100.0
        patience = trouble.Patience(known=True)
        while patience.wait(kind, last):
            pass
        assert 160 < clock[0] <= 190
    clock[0] = 100.0
    patience = trouble.Patience(known=True)
    while patience.wait(kind, clock[0] + 0.01):
        pass
    assert (clock[0] < 120) is (kind is not Trouble.EXPIRED)
    assert not trouble.Patience(known=True).wait(None, 0.0)


def test_a_file_cut_on_its_way_is_never_taken_for_a_whole_one(bucket: str, proxy: FaultyProxy) -> None:
    """Read whole, in parts, and as it is copied; also where a web server sends it."""
    content = np.random.default_rng(0).bytes(300_000)
    Folder(bucket).write("a.bin", content)
    left = [0]

    def first(method: str, _: str) -> str | None:
        left[0] -= method == "GET"
        return "cut" if method == "GET" and left[0] >= 0 else None

    proxy.chosen = first
    web = f"{proxy.url}/{bucket.removeprefix('s3://')}/a.bin"
    for uri in (f"{bucket}/a.bin", web):
        left[0] = 3
        assert read_bytes(uri) == content
        left[0] = 3
        assert read_packed(tar_uri(uri, 1000, 200_000, "x")) == content[1000:201_000]
        left[0] = 3
        with local_copy(uri) as path:
            assert path.read_bytes() == content
        left[0] = 3
        with open_file(uri) as file:
            file.seek(299_000)
            assert file.read(5000) == content[299_000:]
    assert Folder(bucket).read("a.bin") == content
    assert proxy.asked["cut"] >= 12


def test_a_file_larger_than_expected_is_refused_before_it_is_read(root: str, tmp_path: Path) -> None:
    Folder(root).write("a.json", bytes(1000))
    uri = f"{root}/a.json"
    assert len(read_bytes(uri, limit=1000)) == 1000
    with pytest.raises(StorageError, match=f"{uri}: 1,000 bytes, more than the 999"):
        read_bytes(uri, limit=999)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match="more than the 10"):
        read_bytes(str(tmp_path / "huge"), limit=10)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_never_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    folder = Folder(str(tmp_path))
    readers = (read_bytes, open_file, lambda uri: local_copy(uri).__enter__(), lambda _: folder.open("a.jpg"),
               lambda _: folder.read("a.jpg"))  # fmt: skip
    for read in readers:
        with pytest.raises(StorageError, match=rf"^{path}: a .*, not a file$"):
            read(str(path))
    for read in (read_bytes, open_file):
        with pytest.raises(FileNotFoundError):
            read(f"{tmp_path}/none/a.jpg")
        with pytest.raises(FileNotFoundError):
            read(f"{tmp_path}/a\0.jpg")


def test_a_disk_that_fails_is_named_with_its_path(tmp_path: Path) -> None:
    """/dev/full is a disk without room, /proc/self/mem one that cannot be read."""
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with (
        full,
        pytest.raises(StorageError, match=rf"^{tmp_path}/a: No space left on device; make room"),
        Folder(str(tmp_path)).create("a") as file,
    ):
        file.write(b"half")
        full.write(b"x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match=r"^/proc/self/mem: Input/output error; the disk or the network share"):
        read_bytes("/proc/self/mem")


@pytest.mark.usefixtures("bucket")
def test_a_copy_is_removed_where_its_reader_fails(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Folder(bucket).write("a", b"abc")
    with pytest.raises(RuntimeError), local_copy(f"{bucket}/a"):
        assert list(tmp_path.iterdir())
        raise RuntimeError
    with pytest.raises(FileNotFoundError), local_copy(f"{bucket}/none"):
        pass
    assert not list(tmp_path.iterdir())


def test_files_get_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Folder(str(tmp_path)).write("a", b"abc")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 12), ahead=st.integers(1, 5), readers=st.integers(1, 4), stop=st.integers(0, 12),
       fails=st.integers(0, 12))  # fmt: skip
def test_threads_ahead_end_whoever_stops_or_fails(count: int, ahead: int, readers: int, stop: int, fails: int) -> None:
    before = set(threading.enumerate())

    def read(number: int) -> int:
        time.sleep(0.001)
        if number == fails:
            raise StorageError("it fails")
        return number

    reading = read_ahead(read, range(count), ahead, readers)
    taken = []
    try:
        for number in reading:
            taken.append(number)
            if len(taken) > stop:
                break
    except StorageError:
        assert len(taken) == fails
    reading.close()
    assert taken == list(range(len(taken)))
    assert len(taken) == min(count, stop + 1, fails if fails < count else count)
    assert not {thread for thread in threading.enumerate() if "ThreadPool" in thread.name} - before


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("AWS Error UNKNOWN (HTTP status 502) during HeadObject operation: No response body.", Trouble.BUSY),
        ("AWS Error UNKNOWN (HTTP status 429) during GetObject operation", Trouble.BUSY),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial", Trouble.BUSY),
        ("AWS Error NETWORK_CONNECTION during X operation: curlCode: 7, Could not connect", Trouble.UNREACHABLE),
        ("AWS Error UNKNOWN (HTTP status 400) during ListObjectsV2: ExceptionName: ExpiredToken", Trouble.EXPIRED),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted: CURL error [52]=Empty reply", Trouble.BUSY),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", None),
        ("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation", None),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation", None),
        ("Parquet magic bytes not found in footer", None),
    ],
)
def test_trouble_that_may_pass_is_told_from_what_will_not(message: str, expected: Trouble | None) -> None:
    assert trouble.trouble(OSError(message)) is expected
    assert trouble.trouble(TroubleError(message, Trouble.BUSY)) is Trouble.BUSY
    assert trouble.trouble(StorageError(message)) is None
