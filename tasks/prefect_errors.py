"""What Prefect's client raises where its server does not answer, or answers that it cannot now."""

from __future__ import annotations

import httpx
from prefect.exceptions import PrefectHTTPStatusError

UNREACHABLE = (httpx.HTTPError, PrefectHTTPStatusError, OSError)
