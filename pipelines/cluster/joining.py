"""Before a cluster that somebody else runs is joined: whether it answers, and who else may use it."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable

import grpc  # type: ignore[import-untyped]
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address, find_node_ids
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from cprfl.errors import ClusterError

INSIST = "CPRFL_RAY_WITHOUT_TOKEN"
_ANSWERS = 10.0  # seconds in which a cluster does
_SILENT = f"no Ray cluster answers there within {_ANSWERS:.0f} s"
_SAID = {
    grpc.StatusCode.DEADLINE_EXCEEDED: _SILENT,
    grpc.StatusCode.UNAVAILABLE: _SILENT,
    grpc.StatusCode.UNAUTHENTICATED: "the Ray cluster there asks for another token than RAY_AUTH_TOKEN or none",
}
_LOOK = 5.0  # seconds between two looks whether it still does
_PATIENCE = 20.0  # seconds in which its GCS may be started anew, unless Ray's own are set
_RAYS_OWN = "RAY_gcs_rpc_server_reconnect_timeout_s"


def check_guarded(address: str) -> None:
    """Refuse a cluster that runs whatever anybody on the network sends it, with what this process knows.

    Raises:
        ClusterError: where authentication is off, the address is no loopback one, and nobody insists.
    """
    if os.environ.get("RAY_AUTH_MODE", "disabled").lower() != "disabled" or os.environ.get(INSIST) == "1":
        return
    if not is_loopback(address):
        raise ClusterError(
            f"RAY_ADDRESS={address}: without authentication, anybody on the network runs code there as you; start the "
            f"cluster with RAY_AUTH_MODE=token and give its token in RAY_AUTH_TOKEN, or set {INSIST}=1 where the "
            "network is yours alone"
        )


def check_answers(address: str) -> None:
    """Make sure that a cluster answers, in seconds: Ray itself would wait without an end.

    Raises:
        ClusterError: where it does not, or does not know us.
    """
    channel = init_grpc_channel(address)
    try:
        asking = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        asking.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=_ANSWERS, wait_for_ready=True)
    except grpc.RpcError as error:
        code = error.code()
        said = _SAID.get(code, f"what answers there is no Ray cluster ({code.name.lower()})")
        raise ClusterError(
            f"RAY_ADDRESS={address}: {said}; start one with its token in RAY_AUTH_TOKEN, mend the address (host:port, "
            "the port is 6379 unless told otherwise), or unset RAY_ADDRESS to run on this machine"
        ) from None
    finally:
        channel.close()


def check_is_node(address: str) -> None:
    """Make sure that this machine is a node of the cluster: nobody else can join, and Ray would ask for a minute.

    Raises:
        ClusterError: where it is none.
    """
    if not find_node_ids():
        raise ClusterError(
            f"RAY_ADDRESS={address}: a Ray cluster answers there, and this machine, or container, is no node of it; "
            f"`ray start --address={address}` makes it one, `cprfl submit` sends the command there, and unset "
            "RAY_ADDRESS runs it on this machine"
        )


def resolved(address: str) -> str:
    """Host and port that Ray makes of an address: ``auto`` is the cluster on this machine.

    Raises:
        ClusterError: where it makes nothing of it.
    """
    try:
        found = canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError) as error:
        raise ClusterError(f"RAY_ADDRESS={address}: {str(error).splitlines()[0]}; expected host:port") from None
    if found is None:
        raise ClusterError(f"RAY_ADDRESS={address}: no Ray cluster runs on this machine; unset it to start one")
    if address != found and is_loopback(address) and not _accepts(found) and _accepts(address):
        return address  # of a cluster that listens there alone; Ray would look for it at this machine's own address
    return found


def watch(address: str, on_loss: Callable[[str], None], stop: threading.Event) -> None:
    """Look whether the cluster still answers, and tell if it does not: earlier than Ray, which ends the process."""
    patience = max(float(os.environ[_RAYS_OWN]) - 3 * _LOOK, _LOOK) if _RAYS_OWN in os.environ else _PATIENCE
    answered = time.monotonic()
    while not stop.wait(_LOOK):
        if _accepts(address):
            answered = time.monotonic()
        elif time.monotonic() - answered > patience:
            on_loss(f"{address} has not answered for {patience:.0f} s")
            return


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK).close()
    except OSError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether an address is one of the loopback interface."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
