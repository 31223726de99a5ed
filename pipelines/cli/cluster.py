"""`cprfl submit` and `cprfl jobs`: stages on a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import ConfigArgument, SetOption

AddressOption = Annotated[str, typer.Option(help="The cluster's dashboard, http://head:8265.", envvar="CPRFL_CLUSTER")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="What `cprfl submit` printed.")]


def submit(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="run, preprocess, train, evaluate, tune or retrain.")],
    config: ConfigArgument,
    address: AddressOption,
    overrides: SetOption = None,
    sweep: Annotated[Path | None, typer.Option(help="YAML file of the sweep, for tune and retrain.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted sweep.")] = False,
    environment: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME[=VALUE]", help="A variable of the job; may be repeated.")
    ] = None,
    packages: Annotated[str, typer.Option(help="lock: install what nodes lack; image: take what they have.")] = "lock",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log to its end.")] = True,
) -> None:
    """Run a stage as a job on a Ray cluster; the exit status is the job's."""
    from pipelines import submit as packing

    job = packing.submit(
        address, stage, config, overrides or [], sweep=sweep, resume=resume, packages=packages,
        environment=packing.variables(environment or []),
    )  # fmt: skip
    print(f"job  {job}", file=sys.stderr, flush=True)
    if not wait:
        print(job)
        return
    follow(job, address)


app = typer.Typer(no_args_is_help=True, help="Jobs on a Ray cluster: ls, follow, status, stop.")


@app.command("ls")
def ls(address: AddressOption) -> None:
    """List the jobs that the cluster remembers, the newest first."""
    from pipelines.cluster import jobs

    found = jobs.listed(address)
    for job, status, started, stage in found:
        print(f"{job}  {status:9}  {started}  {stage}")
    if not found:
        print(f"no job at {address}")


@app.command("follow")
def follow(job: JobArgument, address: AddressOption) -> None:
    """Print a job's log to its end; the exit status is the job's."""
    from pipelines.cluster import jobs

    sys.exit(jobs.follow(address, job))


@app.command("status")
def status(job: JobArgument, address: AddressOption) -> None:
    """Say what a job is doing, or how it ended."""
    from pipelines.cluster import jobs

    print(jobs.status(address, job))


@app.command("stop")
def stop(job: JobArgument, address: AddressOption) -> None:
    """Stop a job; the same submission goes on where it stopped."""
    from pipelines.cluster import jobs

    print(f"{job}  {'stopping' if jobs.stop(address, job) else 'had ended'}")
