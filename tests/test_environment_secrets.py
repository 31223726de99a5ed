"""Nothing that is written or printed holds a secret of the environment, whether a command succeeds or fails."""

from __future__ import annotations

import secrets
from pathlib import Path

import psutil
import pytest

from cprfl.errors import ConfigError
from cprfl.experiment import load
from tests.helpers import call, command_line

NAMES = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN",
         "RAY_AUTH_TOKEN", "SECRET"]  # fmt: skip


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Secrets that are in the environment."""
    values = {name: f"hidden{secrets.token_hex(12)}" for name in NAMES}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return list(values.values())


def holders(folder: Path, hidden: list[str]) -> list[Path]:
    """Files that hold one of them."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if any(value.encode() in path.read_bytes() for value in hidden)]


def test_a_run_and_failing_commands_keep_the_secrets(
    small_config: Path, tmp_path: Path, hidden: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = str(small_config)
    printed = list(call(monkeypatch, capsys, "-v", "run", config))
    assert printed[0] == 0
    secret = hidden[-1]
    written = tmp_path / "with_secret.yaml"
    written.write_text(small_config.read_text().replace("name: small", "name: small\nfeature_dir: ${oc.env:SECRET}"))
    failing = [
        ["check", str(written)],
        ["run", config, "--set", "data_root=/no/such/folder"],
        ["run", config, "--set", f"data_root=s3://key:{secret}@bucket/data"],
        ["preprocess", config, "--set", f"feature_dir=s3://key:{secret}@bucket/data"],
    ]
    for words in failing:
        status, out, error = call(monkeypatch, capsys, *words)
        assert status == 2, error
        printed += [out, error]
    for uri in (f"http://me:{secret}@127.0.0.1:9", f"postgresql://me:{secret}@127.0.0.1:9/x", f"foo://me:{secret}@x"):
        with monkeypatch.context() as with_server:
            with_server.setenv("MLFLOW_TRACKING_URI", uri)
            status, out, error = call(with_server, capsys, "run", config)
        assert status == 2, error
        printed += [out, error]
    assert not [text for text in map(str, printed) for value in hidden if value in text]
    assert [path for path in holders(tmp_path, hidden) if path.suffix != ".yaml"] == []
    assert not [line for child in psutil.Process().children(recursive=True) if (line := command_line(child))
                and any(value in line for value in hidden)]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("data_root: ${oc.env:PLACE}/photos", True),
        ("feature_dir: ${oc.env:PLACE}", True),
        ("data_root: ${oc.env:MY_TOKEN}/photos", False),
        ("variants: {a: {data_root: '${oc.env:PLACE}'}}", False),
        ("text_encoder: {name: npz, path: '${oc.env:PLACE}'}", False),
        ("text_encoder: {name: npz, path: '${oc.${x}:PLACE}'}", False),
        ("decisions: ['${oc.env:PLACE}']", False),
    ],
)
def test_only_places_may_name_variables(
    setting: str, allowed: bool, small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "/somewhere")
    monkeypatch.setenv("MY_TOKEN", "hush")
    key = setting.partition(":")[0]
    kept = [line for line in small_config.read_text().split("\n") if not line.startswith((f"{key}:", "  dim: 16"))]
    text = "\n".join(line for line in kept if key != "text_encoder" or "name: random" not in line)
    small_config.write_text(f"{text}\n{setting}\n")
    if allowed:
        assert "/somewhere" in str(load(small_config).model_dump()[key])
        return
    with pytest.raises(ConfigError, match=r"recorded") as raised:
        load(small_config)
    assert "somewhere" not in str(raised.value)
    assert "hush" not in str(raised.value)
