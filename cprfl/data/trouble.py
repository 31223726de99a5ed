"""What goes wrong with storage: which trouble may pass, for how long it is waited for, and what mends the rest."""

from __future__ import annotations

import enum
import errno
import random
import re
import socket
import time

from cprfl.environment import mend_of
from cprfl.errors import StorageError


class Trouble(enum.Enum):
    """Kinds of trouble that may pass."""

    BUSY = "busy"  # the server answers, but not with what was asked for; or its answer broke off
    UNREACHABLE = "unreachable"  # nobody answers
    EXPIRED = "expired"  # credentials that others may be about to renew


class TroubleError(StorageError):
    """A storage is in trouble that may pass."""

    def __init__(self, message: str, trouble: Trouble) -> None:
        super().__init__(message)
        self.trouble = trouble


PATIENCE = {Trouble.BUSY: 90.0, Trouble.UNREACHABLE: 90.0, Trouble.EXPIRED: 90.0}
"""Seconds for which trouble is waited for: an outage of a minute is survived."""
PATIENCE_AT_FIRST = {Trouble.BUSY: 20.0, Trouble.UNREACHABLE: 12.0, Trouble.EXPIRED: 0.0}
"""The same for a storage that this process has had nothing from yet: most likely it is named wrongly."""
_TRIES_BESIDE_OTHERS = 6
_SHORTEST_WAIT, _LONGEST_WAIT = 0.2, 8.0
_jitter = random.Random()  # of its own: what a training draws must not depend on how often it waited

_STATUS = re.compile(r"HTTP status (\d+)|\b(408|425|429|5\d\d) [A-Z]")  # of Arrow's S3, and of its Azure
_EXPIRED = re.compile(r"ExpiredToken|REQUEST_EXPIRED|RequestExpired|TokenRefreshRequired|InvalidToken|token.* expired")
_NO_ANSWER = re.compile(r"curlCode: (5|6|7|28|35|60)\b|CURL error \[(5|6|7|28|35|60)\]|ENDPOINT_RESOLUTION_FAILURE")
_BUSY = re.compile(
    r"AWS Error (SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION"
    r"|NO_SUCH_UPLOAD)"  # which is what a completion is told whose first answer was lost
    r"|\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL):|CURL error"  # Google's
)
_BUSY_STATUS = {408, 425, 429}
_NO_ANSWER_ERRNO = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.EHOSTDOWN}

_S3_MENDS = {
    r"INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID|UNRECOGNIZED_CLIENT|InvalidAccessKeyId":
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    r"REQUEST_TIME_TOO_SKEWED|RequestTimeTooSkewed": "set this machine's clock",
    r"NO_SUCH_BUCKET": "make the bucket, or correct its name",
    r"status 301|AuthorizationHeaderMalformed|configured region": "set AWS_DEFAULT_REGION to the bucket's region",
    r"ACCESS_DENIED|status 403": "these credentials may not do that: check them, the bucket's name and its policy",
}  # fmt: skip


def trouble(error: BaseException) -> Trouble | None:
    """The kind of trouble that an error of a remote filesystem tells of; none where it will not pass."""
    if isinstance(error, TroubleError):
        return error.trouble
    if isinstance(error, (FileNotFoundError, PermissionError, StorageError)):
        return None
    if isinstance(error, (TimeoutError, socket.gaierror)) or getattr(error, "errno", None) in _NO_ANSWER_ERRNO:
        return Trouble.UNREACHABLE
    if isinstance(error, ConnectionError):
        return Trouble.BUSY
    text = str(error)
    if _EXPIRED.search(text):
        return Trouble.EXPIRED
    if _NO_ANSWER.search(text):
        return Trouble.UNREACHABLE
    found = _STATUS.search(text)
    status = int(found[1] or found[2]) if found else 0
    return Trouble.BUSY if _BUSY.search(text) or status >= 500 or status in _BUSY_STATUS else None


class Patience:
    """How long the trouble of one operation has been waited for.

    Args:
        known: whether this process has had something of the storage before.
    """

    def __init__(self, known: bool) -> None:
        self._limits = PATIENCE if known else PATIENCE_AT_FIRST
        self._started = self._tried = time.monotonic()
        self._tries = self._tries_beside_others = 0

    def wait(self, kind: Trouble | None, served: float) -> bool:
        """Wait a little longer than the last time; false where it has been long enough.

        Args:
            kind: of the trouble.
            served: when the storage last gave anybody what was asked for. One that serves others time and again is in
                no outage, and does not serve this.
        """
        self._tries += 1
        self._tries_beside_others += served > self._tried
        longest = min(_LONGEST_WAIT, _SHORTEST_WAIT * 2**self._tries)
        seconds = _jitter.uniform(longest / 2, longest)  # readers that failed together do not come back together
        past = time.monotonic() - self._started
        if kind is None or past + seconds > self._limits[kind]:
            return False
        if self._tries_beside_others >= _TRIES_BESIDE_OTHERS and kind is not Trouble.EXPIRED:
            return False
        time.sleep(seconds)
        self._tried = time.monotonic()
        return True


def described(uri: str, error: BaseException) -> str:
    """One line that says what is wrong with ``uri`` and what would mend it."""
    number = getattr(error, "errno", None)
    what = (getattr(error, "strerror", None) if isinstance(number, int) else None) or (str(error) or repr(error))
    what = what.splitlines()[0].rstrip(". ")
    mend = mend_of(number) if number and "://" not in uri else _remote_mend(uri, error)
    return f"{uri}: {what}; {mend}" if mend else f"{uri}: {what}"


def _remote_mend(uri: str, error: BaseException) -> str:
    kind = trouble(error) if "://" in uri else None
    if kind is Trouble.EXPIRED:
        return "the credentials have expired: renew them and start the same command again, it goes on where it was"
    if kind is Trouble.BUSY:
        return "it was asked again and again: start the same command later, it goes on where it was"
    if uri.startswith("s3://"):
        mends = [mend for pattern, mend in _S3_MENDS.items() if re.search(pattern, str(error))]
        return mends[0] if mends else "check the bucket, the credentials in the environment and AWS_ENDPOINT_URL"
    return "check the address and the network" if kind is Trouble.UNREACHABLE else ""


def check_size(uri: str, size: int, limit: int | None) -> None:
    """Refuse a file that is larger than what is expected of its kind.

    Raises:
        StorageError: saying the size and the limit.
    """
    if limit is not None and size > limit:
        raise StorageError(
            f"{uri}: {size:,} bytes, more than the {limit:,} that such a file may have; check that it is the right one"
        )
