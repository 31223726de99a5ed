"""Arrow's filesystems of S3, Google Cloud Storage and Azure, with what the environment says of credentials.

The variables are those of each cloud's own tools. They are in no URI, argument or message.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from pyarrow import fs

from cprfl.data.trouble import Trouble, TroubleError
from cprfl.errors import StorageError

VARIABLES = ("AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "STORAGE_EMULATOR_HOST")
"""How the names of the variables begin that are looked at here."""

_GIVE_UP = timedelta(seconds=10)
_CONNECT_SECONDS, _SILENT_SECONDS = 5, 15  # without a connection; without a byte
_QUICK_RETRIES = 2  # of one request of many, such as a part of an upload; `filesystems.on` has the patience


def new_s3() -> fs.S3FileSystem:
    """S3 with credentials, region and endpoint as boto3 finds them.

    Raises:
        StorageError: where there are none.
    """
    try:
        client = boto3.Session().client("s3")
        credentials = boto3.Session().get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials else None  # which asks who gives a role
    except HTTPClientError as error:
        raise TroubleError(f"s3: who gives the credentials cannot be reached: {error}", Trouble.UNREACHABLE) from None
    except (BotoCoreError, ClientError, ValueError) as error:  # the last for an endpoint that is no address
        raise StorageError(f"s3: {error}; check AWS_PROFILE and the other AWS_ variables") from None
    if frozen is None:
        raise StorageError(
            "s3: no credentials in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    endpoint: str = client.meta.endpoint_url
    own = None if re.fullmatch(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com", endpoint) else endpoint
    return fs.S3FileSystem(
        access_key=frozen.access_key,
        secret_key=frozen.secret_key,
        session_token=frozen.token,
        region=client.meta.region_name if client.meta.region_name != "aws-global" else "us-east-1",
        endpoint_override=own,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_SILENT_SECONDS,
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=_QUICK_RETRIES),
        allow_delayed_open=False,  # with it, an upload that fails leaves an empty file
    )


def new_gcs() -> fs.GcsFileSystem:
    """Google Cloud Storage with application default credentials; without any, what is public.

    Arrow would ask Google's metadata server for credentials, for a quarter of an hour where there is none.
    """
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        parts = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
        return fs.GcsFileSystem(
            anonymous=True, scheme=parts.scheme, endpoint_override=parts.netloc, retry_time_limit=_GIVE_UP
        )
    folder = Path(os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud")
    has_file = "GOOGLE_APPLICATION_CREDENTIALS" in os.environ
    known = has_file or (folder / "application_default_credentials.json").is_file() or _is_googles()
    return fs.GcsFileSystem(anonymous=not known, retry_time_limit=_GIVE_UP)


def _is_googles() -> bool:
    """Whether this is one of Google's machines, where the metadata server has credentials."""
    product = Path("/sys/class/dmi/id/product_name")
    return product.is_file() and product.read_text().startswith("Google")


def new_azure(authority: str) -> tuple[fs.AzureFileSystem, str]:
    """Azure's storage, and the path of the URI's container in it.

    Args:
        authority: ``container@account.dfs.core.windows.net``; or ``container`` alone, with the account's name in
            AZURE_STORAGE_ACCOUNT_NAME or the connection string.

    Raises:
        StorageError: where nothing says which account it is, or its credentials are refused.
    """
    container, _, host = authority.partition("@")
    settings = _connection_string(os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    account = host.partition(".")[0] or settings.get("AccountName") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise StorageError(f"{container}: of which account? Write abfs://{container}@ACCOUNT.dfs.core.windows.net/...")
    if settings.get("AccountName", account) != account:
        settings = {}
    opened = fs.AzureFileSystem(account, **_azure_credentials(settings), **_azure_endpoint(settings))
    try:
        # Arrow ends the process where a file is opened and credentials fail. Asked for a file's size it raises first.
        opened.get_file_info(f"{container}/-")
    except OSError:  # of the network, or without a right to list: what reads a file says so in time
        pass
    except pa.ArrowException as error:
        raise StorageError(
            f"abfs://{container}@{account}: {str(error).splitlines()[0]}; set AZURE_STORAGE_ACCOUNT_KEY, "
            "AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING, or what Azure's DefaultAzureCredential takes "
            "(AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET; `az login`); a public container can be read at "
            f"https://{account}.blob.core.windows.net/{container}/..."
        ) from None
    return opened, container


def _connection_string(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";") if part)
    return {key: value for key, _, value in pairs}


def _azure_credentials(settings: dict[str, str]) -> dict[str, str]:
    key = settings.get("AccountKey") or os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
    token = settings.get("SharedAccessSignature") or os.environ.get("AZURE_STORAGE_SAS_TOKEN")
    if key:
        return {"account_key": key}
    return {"sas_token": f"?{token.removeprefix('?')}"} if token else {}


def _azure_endpoint(settings: dict[str, str]) -> dict[str, Any]:
    """Another server than Azure's, such as Azurite: ``BlobEndpoint=http://host:port/account``."""
    if "BlobEndpoint" not in settings:
        return {}
    parts = urlsplit(settings["BlobEndpoint"])
    return {f"{kind}_storage_{name}": value for kind in ("blob", "dfs")
            for name, value in (("scheme", parts.scheme), ("authority", parts.netloc))}  # fmt: skip
