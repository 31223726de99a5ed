"""Stages as jobs on a Ray cluster: what is packed, how its end is told."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cprfl
import pipelines
from cprfl.errors import ClusterError, ConfigError
from cprfl.experiment import Experiment, load
from pipelines.sweep import load_sweep

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

STAGES = ("run", "preprocess", "train", "evaluate", "tune", "retrain")
PACKAGES = ("lock", "image")
_CONFIG, _SWEEP = "experiment.yaml", "sweep.yaml"
_ROOT = Path(pipelines.__file__).parent.parent


def submit(
    address: str,
    stage: str,
    config: Path,
    overrides: Sequence[str] = (),
    *,
    sweep: Path | None = None,
    resume: bool = False,
    packages: str = "lock",
    environment: dict[str, str] | None = None,
) -> str:
    """Start a stage as a job.

    What is sent is the code of both packages, the configuration and the sweep, and nothing else: neither data nor
    outputs nor any other file of the working directory.

    Args:
        address: of the cluster's dashboard, ``http://head:8265``.
        stage: one of `STAGES`.
        config: YAML file of the experiment.
        overrides: ``a.b=value``.
        sweep: YAML file of a sweep.
        resume: go on with an interrupted sweep.
        packages: ``lock`` has the nodes install what the lock file pins and they lack; ``image`` takes what they have.
        environment: variables of the job, such as ``MLFLOW_TRACKING_URI``.

    Returns:
        The job's id.

    Raises:
        ConfigError: where the configuration is wrong, or names paths that can only be meant on this machine.
        ClusterError: where nobody answers, or the token is not accepted.
    """
    for name, value, choices in (("STAGE", stage, STAGES), ("--packages", packages, PACKAGES)):
        if value not in choices:
            raise ConfigError(f"{name}: got {value!r}; valid: {', '.join(choices)}")
    _check_paths(config, overrides, load(config, overrides))  # mistakes are better known here than there
    if sweep is not None:
        load_sweep(sweep, config, overrides)
    command = ["python", "-m", "pipelines.cli", stage, _CONFIG]
    if sweep is not None:
        command += ["--sweep", _SWEEP, *(["--resume"] if resume else [])]
    for override in overrides:
        command += ["--set", override]
    with tempfile.TemporaryDirectory() as folder, _answered(address) as client:
        for package in (cprfl, pipelines):
            source = Path(str(package.__file__)).parent
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(source, Path(folder) / source.name, ignore=ignored)
        shutil.copy(config, Path(folder) / _CONFIG)
        if sweep is not None:
            shutil.copy(sweep, Path(folder) / _SWEEP)
        runtime: dict[str, Any] = {"working_dir": folder, "env_vars": environment or {}}
        if packages == "lock":
            runtime["config"] = {"setup_timeout_seconds": 1800}
            runtime["pip"] = {
                "packages": locked_requirements(_ROOT / "constraints.txt"),
                "pip_install_options": ["--disable-pip-version-check"],
            }
        entrypoint = f"exec {shlex.join(command)}"  # so that stopping reaches Python, not only a shell
        return str(client.submit_job(entrypoint=entrypoint, runtime_env=runtime, metadata={"stage": stage}))


def follow(address: str, job: str) -> int:
    """Print a job's log until it ends, or until the user has seen enough: the job goes on.

    Returns:
        The job's exit status; 1 where it ended without one, which the last line says.
    """
    with _answered(address) as client:
        _info(client, job)
        try:
            asyncio.run(_print_log(client, job))
        except KeyboardInterrupt:
            print(f"{job} goes on; cprfl jobs follow | status | stop {job} --address {address}", file=sys.stderr)
            return 130
        info = _info(client, job)
    if info.status == "SUCCEEDED":
        return 0
    print(f"{job}: {info.status}: {_last_line(info.message)}", file=sys.stderr)
    return info.driver_exit_code or 1


def status(address: str, job: str) -> str:
    """One line: what the job is doing, or how it ended."""
    with _answered(address) as client:
        info = _info(client, job)
    return f"{job}  {info.status}  {_last_line(info.message)}".rstrip()


def stop(address: str, job: str) -> bool:
    """Ask a job to stop; false where it had ended."""
    with _answered(address) as client:
        _info(client, job)
        return bool(client.stop_job(job))


def variables(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` of this process's environment, as a mapping.

    Raises:
        ConfigError: where a variable is not set here.
    """
    found = {}
    for text in given:
        name, has_value, value = text.partition("=")
        if not has_value and name not in os.environ:
            raise ConfigError(f"--env {name}: not set here; give --env {name}=VALUE")
        found[name] = value if has_value else os.environ[name]
    return found


def locked_requirements(lock: Path) -> list[str]:
    """Everything that cprfl needs, directly or not, at the lock file's versions.

    Raises:
        ConfigError: where there is no lock file.
    """
    if not lock.is_file():
        raise ConfigError(
            f"{lock}: the lock file is not there (cprfl was not installed from its checkout); with --packages image "
            "the job takes what is installed on the nodes"
        )
    pins: dict[str, str] = {}
    for line in lock.read_text().splitlines():
        if found := re.match(r"([A-Za-z0-9._-]+)==\S+", line):
            pins[canonicalize_name(found[1])] = line.strip()
    wanted: set[str] = set()
    waiting = [Requirement("cprfl")]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            seen = canonicalize_name(needed.name) in wanted and not needed.extras
            if not seen and (needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras)):
                wanted.add(canonicalize_name(needed.name))
                waiting.append(needed)
    return sorted(pins[name] for name in wanted if name in pins)


def _check_paths(config: Path, overrides: Sequence[str], experiment: Experiment) -> None:
    """A relative path would be looked for, or written, in a folder that the cluster throws away after the job."""
    given = {**yaml.safe_load(config.read_text()), **dict(override.split("=", 1) for override in overrides)}
    paths = {"output_dir": str(given.get("output_dir", "outputs"))}
    if given.get("feature_dir"):
        paths["feature_dir"] = str(given["feature_dir"])
    if experiment.dataset.name != "synthetic":
        paths["data_root"] = str(given.get("data_root", "."))
    for name, path in paths.items():
        if not path.startswith("/") and "://" not in path:
            raise ConfigError(
                f"{name}: {path!r} is relative to a folder of this machine; give the path of storage that the nodes of "
                f"the cluster share, --set {name}=/shared/..."
            )


@contextmanager
def _answered(address: str) -> Iterator[JobSubmissionClient]:
    """A client of the cluster; what it says of addresses and tokens in one line, without the token."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from requests.exceptions import RequestException

    if not address.startswith(("http://", "https://")):
        raise ClusterError(f"--address {address}: expected the URL of the cluster's dashboard, http://head:8265")
    for name in ("job.sdk", "dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
    token = _token()
    hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:  # those two would be taken in place of the address
        yield JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except (ConnectionError, RequestException, RuntimeError, AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ClusterError(
            f"{address}: {reason}; --address names the cluster's dashboard, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
            "its token"
        ) from None
    finally:
        os.environ |= hidden


def _token() -> str | None:
    """The cluster's token, from where Ray takes it too."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return file.read_text().strip() if file.is_file() else None


def _info(client: JobSubmissionClient, job: str) -> JobDetails:
    """What the cluster knows of a job; asked before its log, as a failed request for that lands in the head's log."""
    found = next((known for known in client.list_jobs() if known.submission_id == job), None)
    if found is None:
        raise ClusterError(f"{job}: the cluster knows no such job; `cprfl submit` printed its id")
    return found


async def _print_log(client: JobSubmissionClient, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def _last_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines()
    return lines[-1] if lines else ""
