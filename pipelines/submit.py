"""`cprfl submit`: what is packed for a stage that runs as a job on a Ray cluster."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cprfl
import pipelines
from cprfl.errors import ConfigError
from cprfl.experiment import Experiment, load
from cprfl.named_places import tells_of_a_secret
from cprfl.settings import read
from pipelines.sweeps.config import load_sweep
from pipelines.tracking.addresses import without_password

STAGES = ("run", "preprocess", "train", "evaluate", "tune", "retrain")
_SWEEPS, _RESUMES = ("tune", "retrain"), ("tune",)  # stages that take --sweep, and --resume
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
    _check(stage, config, overrides, sweep, resume, packages)  # mistakes are better known here than there
    command = ["python", "-m", "pipelines.cli", stage, _CONFIG]
    if sweep is not None:
        command += ["--sweep", _SWEEP]
    if resume:
        command.append("--resume")
    for override in overrides:
        command += ["--set", override]
    with tempfile.TemporaryDirectory() as folder:
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
        from pipelines.cluster import jobs  # Ray, which takes seconds to import: mistakes are said before

        return jobs.start(address, entrypoint, runtime, stage)


def variables(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` of this process's environment, as a mapping.

    Raises:
        ConfigError: where a variable is not set here, or holds a secret: Ray shows a job's variables to everybody who
            may ask it.
    """
    found = {}
    for text in given:
        name, has_value, value = text.partition("=")
        if not has_value and name not in os.environ:
            raise ConfigError(f"--env {name}: not set here; give --env {name}=VALUE")
        found[name] = value if has_value else os.environ[name]
        if tells_of_a_secret(name) or without_password(found[name]) != found[name]:
            raise ConfigError(
                f"--env {name}: a secret; Ray keeps a job's variables where all who have the cluster's token can read "
                "them: set it in the environment of the cluster's nodes (infra/README.md)"
            )
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
    waiting = [Requirement("cprfl[pipelines]")]
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


def _check(stage: str, config: Path, overrides: Sequence[str], sweep: Path | None, resume: bool, packages: str) -> None:
    for name, value, choices in (("STAGE", stage, STAGES), ("--packages", packages, PACKAGES)):
        if value not in choices:
            raise ConfigError(f"{name}: got {value!r}; valid: {', '.join(choices)}")
    if sweep is not None and stage not in _SWEEPS:
        raise ConfigError(f"--sweep: {stage} takes no sweep; {' and '.join(_SWEEPS)} do")
    if sweep is None and stage == "tune":
        raise ConfigError("--sweep: tune needs the YAML file of a sweep")
    if resume and stage not in _RESUMES:
        raise ConfigError(f"--resume: {stage} goes on by itself where it stopped; only tune takes it")
    _check_paths(config, overrides, load(config, overrides))
    if sweep is not None:
        load_sweep(sweep, config, overrides)


def _check_paths(config: Path, overrides: Sequence[str], experiment: Experiment) -> None:
    """A relative path would be looked for, or written, in a folder that the cluster throws away after the job."""
    given = read(Experiment, config, overrides)
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
