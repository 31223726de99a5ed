"""Ray Jobs: start one, follow its log, ask for its status, stop it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient
from requests.exceptions import RequestException

from cprfl.errors import ClusterError


def start(address: str, entrypoint: str, runtime: dict[str, Any], stage: str) -> str:
    """Start a job; its id.

    Raises:
        ClusterError: where nobody answers, or the token is not accepted.
    """
    with answered(address) as client:
        named = {"stage": stage, "job_name": f"cprfl {stage}"}
        return str(client.submit_job(entrypoint=entrypoint, runtime_env=runtime, metadata=named))


def follow(address: str, job: str) -> int:
    """Print a job's log until it ends, or until the user has seen enough: the job goes on.

    Returns:
        The job's exit status; 1 where it ended without one, which the last line says.
    """
    with answered(address) as client:
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


def listed(address: str) -> list[tuple[str, str, str, str]]:
    """Id, status, start and stage of the jobs that the cluster remembers, the newest first."""
    with answered(address) as client:
        found = [job for job in client.list_jobs() if job.submission_id]
    found.sort(key=lambda job: job.start_time or 0, reverse=True)
    return [
        (str(job.submission_id), str(job.status.value), _time(job.start_time), (job.metadata or {}).get("stage", "-"))
        for job in found
    ]


def _time(milliseconds: int | None) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M}" if milliseconds else "-"


def status(address: str, job: str) -> str:
    """One line: what the job is doing, or how it ended."""
    with answered(address) as client:
        info = _info(client, job)
    return f"{job}  {info.status}  {_last_line(info.message)}".rstrip()


def stop(address: str, job: str) -> bool:
    """Ask a job to stop; false where it had ended."""
    with answered(address) as client:
        _info(client, job)
        return bool(client.stop_job(job))


@contextmanager
def answered(address: str) -> Iterator[JobSubmissionClient]:
    """A client of the cluster; what it says of addresses and tokens in one line, without the token."""
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
