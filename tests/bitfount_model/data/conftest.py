"""A real PostgreSQL for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from tests.postgres import postgres


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[URL]:
    """URL, with a password, of an empty database of a running PostgreSQL server."""
    with postgres() as url:
        yield url
