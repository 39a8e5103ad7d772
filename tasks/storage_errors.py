"""Which errors come from reading and writing, and which of them may pass by themselves."""

from __future__ import annotations

import errno
from collections.abc import Mapping

# What may pass by itself. s3fs says EBUSY for SlowDown and 503, EREMOTEIO for 500, EIO for codes that it does not know.
PASSING_ERRNOS = frozenset(
    {
        errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH,
        errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, getattr(errno, "EREMOTEIO", errno.EIO),
    }
)  # fmt: skip
PASSING_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Errors of reading and writing that are no OSErrors, by name since their packages need not be installed: whether they may pass.
FOREIGN_ERRORS: Mapping[str, bool] = {
    "aiohttp.client_exceptions.ClientConnectionError": True,
    "aiohttp.client_exceptions.ClientPayloadError": True,
    "botocore.exceptions.BotoCoreError": False,
    "botocore.exceptions.ConnectionError": True,
    "botocore.exceptions.HTTPClientError": True,
    "botocore.exceptions.IncompleteReadError": True,
    "botocore.parsers.ResponseParserError": True,
    "requests.exceptions.ConnectionError": True,
    "requests.exceptions.Timeout": True,
    "urllib3.exceptions.HTTPError": True,
}


def _names(error: BaseException | None) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def is_of_storage(error: BaseException) -> bool:
    """Whether it comes from reading or writing, rather than from a bug."""
    return isinstance(error, OSError) or not FOREIGN_ERRORS.keys().isdisjoint(_names(error))


def may_pass(error: BaseException | None) -> bool:
    """Whether the same call may succeed in a moment."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    status = http_status(error)
    if status is not None:
        return status in PASSING_STATUSES
    return getattr(error, "errno", None) in PASSING_ERRNOS or any(FOREIGN_ERRORS.get(name) for name in _names(error))


def http_status(error: BaseException | None) -> int | None:
    """The server's answer to a call of botocore, which s3fs keeps as the error's cause."""
    response = getattr(getattr(error, "__cause__", None), "response", None)
    if not isinstance(response, Mapping):
        return None
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None
