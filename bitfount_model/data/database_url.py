"""URLs of databases: secrets stay in environment variables, and are masked wherever a URL is shown."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from bitfount_model.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import URL

_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
_SECRET_WORDS = ("pass", "pwd", "secret", "token", "key", "credential")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def parsed_url(url: str) -> URL:
    """A URL as SQLAlchemy takes it, for PostgreSQL with psycopg 3.

    Raises:
        ConfigurationError: it cannot be read; the message does not repeat it.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # the cause quotes the URL, which may hold a password
        raise ConfigurationError("the URL cannot be read, wanted driver://user:password@host:port/database") from None
    return parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))


def literal_secrets(url: str) -> list[str]:
    """Which parts of a URL hold a secret as it is, rather than the name of an environment variable, `${NAME}`.

    Args:
        url: as `SQLSource` takes it.

    Returns:
        "password", and the names of query arguments.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    return [name for name, secret in _secrets(parsed_url(url)).items() if not _VARIABLE.fullmatch(secret)]


def resolved_url(url: URL) -> URL:
    """The URL with the values of the environment variables that it names.

    Raises:
        ConfigurationError: one of them is not set.
    """

    def filled(text: str) -> str:
        return _VARIABLE.sub(lambda found: _variable(found[1], url), text)

    return url.set(
        username=filled(url.username or "") or None,
        password=filled(str(url.password or "")) or None,
        host=filled(url.host or "") or None,
        database=filled(url.database or "") or None,
        query={
            name: filled(value) if isinstance(value, str) else tuple(filled(text) for text in value)
            for name, value in url.query.items()
        },
    )


def masked_url(url: URL) -> str:
    """The URL for people, without its secrets."""
    names = [name for name in url.query if _is_secret(name)]
    return url.update_query_dict(dict.fromkeys(names, "***")).render_as_string(hide_password=True)


def without_secrets(text: str, url: URL) -> str:
    """A database's own words without the secrets of its URL."""
    for secret in _secrets(url).values():
        text = text.replace(secret, "***")
    return text.strip()


def _variable(name: str, url: URL) -> str:
    value = os.environ.get(name)
    if value is None:
        raise ConfigurationError(
            f"{masked_url(url)}: the environment variable {name} is not set; set it and start again"
        )
    return value


def _secrets(url: URL) -> dict[str, str]:
    """Name of a part -> its secret."""
    hidden = {name: _one(value) for name, value in url.query.items() if _is_secret(name)}
    return {name: text for name, text in {"password": str(url.password or ""), **hidden}.items() if text}


def _one(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else " ".join(value)


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)
