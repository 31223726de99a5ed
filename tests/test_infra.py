"""What is deployed: manifests against KubeRay's schemas, commands against our own parser, no secret, no open door."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from typer.core import TyperGroup

from cprfl.experiment import load
from pipelines.cli.app import app
from pipelines.sweeps.config import load_sweep

INFRA = Path(__file__).parent.parent / "infra"
KUBERAY = INFRA / "kuberay"
MANIFESTS = sorted([*KUBERAY.glob("base/*.yaml"), *KUBERAY.glob("jobs/*.yaml")])
CONFIGS = ("experiment.yaml", "sweep.yaml", "kustomization.yaml")
CLI = typer.main.get_command(app)


def documents(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.load_all(path.read_text(), yaml.CSafeLoader) if found]


def resources() -> list[dict[str, Any]]:
    return [found for path in MANIFESTS if path.name not in CONFIGS for found in documents(path)]


@functools.cache
def schemas(shared: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What an API server checks custom resources against, by version and kind."""
    return {
        (f"{found['spec']['group']}/{version['name']}", found["spec"]["names"]["kind"]): version["schema"][
            "openAPIV3Schema"
        ]
        for path in (shared / "schemas" / "kuberay").glob("*.yaml")
        for found in documents(path)
        for version in found["spec"]["versions"]
    }


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as an API server reads it: a field that it does not know is a mistake, and some are int or string."""
    result = dict(schema)
    if result.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if "properties" in result:
        result["properties"] = {name: closed(value) for name, value in result["properties"].items()}
        if not result.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if isinstance(result.get("items"), dict):
        result["items"] = closed(result["items"])
    if isinstance(result.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(result["additionalProperties"])
    return result


def check(resource: dict[str, Any], known: dict[tuple[str, str], dict[str, Any]]) -> None:
    schema = closed(known[resource["apiVersion"], resource["kind"]])
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
    for error in jsonschema.Draft7Validator(schema).iter_errors(resource):
        raise error


def test_rays_resources_are_what_kuberay_takes(shared: Path) -> None:
    known, found = schemas(shared), set[str]()
    for resource in resources():
        if resource["apiVersion"].startswith("ray.io/"):
            check(resource, known)
            found.add(resource["kind"])
    assert found == {"RayCluster", "RayJob", "RayCronJob"}


def test_a_field_that_kuberay_does_not_know_is_seen(shared: Path) -> None:
    cluster = next(found for found in resources() if found["kind"] == "RayCluster")
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        check(cluster, schemas(shared))


@pytest.mark.parametrize("size", ["small", "large"])
def test_overlays_build_what_kuberay_takes(size: str, shared: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine")
    command = ["kubectl", "kustomize", str(KUBERAY / "overlays" / size)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    known = schemas(shared)
    found = [resource for resource in yaml.safe_load_all(built) if resource]
    for resource in found:
        if resource["apiVersion"].startswith("ray.io/"):
            check(resource, known)
    groups = next(found["spec"]["workerGroupSpecs"] for found in found if found["kind"] == "RayCluster")
    assert [group["groupName"] for group in groups] == {"small": ["cpu"], "large": ["cpu", "gpu"]}[size]
    assert ("cprfl:cuda" in built) == (size == "large")
    made = {resource["metadata"]["name"] for resource in found if resource["kind"] == "ConfigMap"}
    named = re.findall(r"(?:configMap|configMapRef):\s*name: (\S+)", built)  # custom resources' too
    assert set(named) == made == {"cprfl", "cprfl-configs"}


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Everything of ours that is started, by who starts it."""
    for resource in resources():
        spec = resource.get("spec", {})
        entrypoint = spec.get("entrypoint") or spec.get("jobTemplate", {}).get("entrypoint")
        if entrypoint:
            program, *words = shlex.split(entrypoint)
            assert program == "cprfl"
            yield resource["metadata"]["name"], words
        if resource["kind"] == "Deployment":
            yield resource["metadata"]["name"], spec["template"]["spec"]["containers"][0]["args"]
    for name, service in compose()["services"].items():
        for program, *words in started(service):
            if program == "cprfl":
                yield name, [re.sub(r"\$\{(\w+):-(\w+)\}", r"\2", word) for word in words]


def started(service: dict[str, Any]) -> Iterator[list[str]]:
    """The command lines of a service of Compose."""
    if service.get("entrypoint") == ["sh", "-ec"]:
        for line in service["command"][0].splitlines():
            yield shlex.split(line.removeprefix("exec "))
    elif "build" in service or "entrypoint" in service:
        yield [*service.get("entrypoint", ["cprfl"]), *service["command"]]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
    return found


@pytest.mark.parametrize(("who", "words"), command_lines(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_started_is_understood_by_our_command_line(who: str, words: list[str]) -> None:
    name, *rest = words
    assert isinstance(CLI, TyperGroup)
    CLI.commands[name].make_context(name, rest)  # refuses what it does not know


def test_the_experiment_and_the_sweep_of_the_cluster_are_read(tmp_path: Path) -> None:
    overrides = [f"output_dir={tmp_path}", f"data_root={tmp_path}"]
    base = KUBERAY / "base"
    assert load(base / "experiment.yaml", overrides).resources.num_workers == 1
    assert load_sweep(base / "sweep.yaml", base / "experiment.yaml", overrides).space


def containers(value: Any) -> Iterator[dict[str, Any]]:
    """All containers below a value."""
    if isinstance(value, dict):
        for name, below in value.items():
            if name == "containers":
                yield from below
            else:
                yield from containers(below)
    elif isinstance(value, list):
        for below in value:
            yield from containers(below)


def test_no_pod_is_privileged_or_without_bounds() -> None:
    found = [container for resource in resources() for container in containers(resource)]
    assert len(found) == 6
    for container in found:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        if "volumeMounts" in container or "ports" in container:  # of the cluster or the champion: what stays
            assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}
    cluster = next(found for found in resources() if found["kind"] == "RayCluster")
    assert cluster["spec"]["authOptions"]["mode"] == "token"


def test_addresses_and_keys_come_from_secrets() -> None:
    """No file of the project has them: what pods take from the environment is a secret, but for plain switches."""
    texts = "".join(path.read_text() for path in KUBERAY.rglob("*.yaml"))
    assert not re.search(r"MLFLOW_TRACKING_URI|AWS_\w+KEY|kind: Secret", texts)
    long_lived = [found for found in resources() for found in containers(found) if "envFrom" in found]
    assert len(long_lived) == 4
    for container in long_lived:
        assert {"secretRef": {"name": "cprfl-storage"}} in container["envFrom"]


def test_the_readme_writes_secrets_that_only_their_owner_reads_and_that_are_values_alone(tmp_path: Path) -> None:
    """To `kubectl create secret --from-env-file` a comment behind a value is part of it."""
    (script,) = re.findall(r"^```sh\n(umask .*?)^```$", (INFRA / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True)
    written = tmp_path / "storage.env"
    assert written.stat().st_mode & 0o777 == 0o600
    assert all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in written.read_text().splitlines())


def test_compose_opens_nothing_but_to_this_machine_and_has_no_default_secret() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "healthcheck" in service or "CPRFL_HEALTH" in service["environment"], name
    text = (INFRA / "compose.yaml").read_text()
    secrets = [line.split("=")[0] for line in (INFRA / ".env.example").read_text().splitlines() if line.endswith("=")]
    assert len(secrets) == 6
    for secret in secrets:
        uses = re.findall(rf"\$\{{{secret}[^}}]*\}}", text)
        assert uses and all(use == f"${{{secret}:?set {secret} in infra/.env}}" for use in uses)
    assert not re.search(r"(?i)(password|secret|token)\w*: *[\"']?[\w-]+[\"']?$", text, re.MULTILINE)


def test_mlflow_and_ray_understand_what_they_are_started_with() -> None:
    from mlflow.cli import cli as mlflow
    from ray.scripts.scripts import cli as ray

    groups = {"mlflow": mlflow, "ray": ray}
    lines = [line for service in compose()["services"].values() for line in started(service) if line[0] in groups]
    assert [line[:2] for line in lines] == [["mlflow", "server"], *[["ray", "start"]] * 3]
    for program, name, *words in lines:
        groups[program].commands[name].make_context(name, words)


def test_what_drives_trainings_on_compose_s_ray_is_a_node_of_it() -> None:
    for name, service in compose()["services"].items():
        if "RAY_ADDRESS" in service.get("environment", {}):
            assert ["ray", "start"] in [line[:2] for line in started(service)], name


def test_no_password_is_in_a_process_list() -> None:
    for name, service in compose()["services"].items():
        words = [
            *service.get("command", []),
            *service.get("entrypoint", []),
            *service.get("healthcheck", {}).get("test", []),
        ]
        assert not [word for word in words if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", word)], name


DOCKERFILE = (INFRA / "Dockerfile").read_text()


def test_the_image_is_not_root_and_holds_no_weights() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "\nUSER 10001" in last and "HEALTHCHECK" in last and 'ENTRYPOINT ["cprfl"]' in last
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().split()
    assert "*" in ignored and not any("weights" in line or "outputs" in line for line in ignored)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    lint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([lint, INFRA / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_build_copies_is_there_and_not_ignored() -> None:
    root = INFRA.parent
    sources = [name for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]
    let_in = {line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    assert set(sources) == let_in
    assert all((root / name).exists() for name in sources)


@pytest.mark.slow
def test_the_lines_that_install_run_in_a_fresh_environment(tmp_path: Path) -> None:
    """No daemon is needed: the first stage's RUN line, word for word but for its folder.

    Two words differ, since nobody downloads two gigabytes for a test: the dependencies are this environment's, linked
    behind the installation, and what is built is built by this environment's setuptools.
    """
    (line,) = re.findall(r"^RUN (python -m venv (?:.*\\\n)*.*)", DOCKERFILE, re.MULTILINE)
    source, target = tmp_path / "source", tmp_path / "opt"
    shutil.copytree(INFRA.parent, source, ignore=shutil.ignore_patterns(".*", "outputs", "tests", "docs", "build"))
    line = (
        line.replace("\\\n", " ")
        .replace("/opt/cprfl", str(target))
        .replace("python -m venv", f"{sys.executable} -m venv")
    )
    assert line.count(" --no-cache-dir ") == 1
    line = line.replace(" --no-cache-dir ", " --no-deps --no-index --no-build-isolation --force-reinstall ")
    own = f"{target}/lib/python{sysconfig.get_python_version()}/site-packages"
    make, install, remove = re.split(r"\s+&& ", line)
    link = f"rm -rf {own}/setuptools* && echo {sysconfig.get_path('purelib')} > {own}/dependencies.pth"
    done = subprocess.run(["sh", "-ec", " && ".join([make, link, install, remove])], cwd=source,
                          env={"PATH": "/usr/bin:/bin", "TORCH_INDEX": "none"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(Path(own).rglob("__pycache__"))
    answer = subprocess.run([target / "bin" / "cprfl", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert answer.stdout.startswith("cprfl "), answer.stderr


def test_compose_builds_what_the_environment_file_asks_for() -> None:
    """An image that is tagged for CUDA is not built for the CPU."""
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    for name, service in compose()["services"].items():
        if "build" in service:
            assert service["build"]["args"].keys() == arguments, name
            assert all(f"${{{key}:-" in value for key, value in service["build"]["args"].items()), name
