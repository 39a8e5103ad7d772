"""A real PostgreSQL beside SQLite and folders, for the places that predictions go to."""

from __future__ import annotations

from tests.bitfount_model.data.conftest import postgres_url

__all__ = ["postgres_url"]
