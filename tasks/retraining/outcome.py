"""What becomes of a challenger: promoted or not, and who is told."""

from __future__ import annotations

from typing import Any

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from bitfount_model.errors import ConfigurationError, TrackingError
from tasks.aliases import promote
from tasks.manifest import Manifest, read_manifest, write_manifest
from tasks.mlflow_client import connect, tracking_errors, with_password
from tasks.retraining.decisions import Decision
from tasks.step import step
from tasks.store import Store

WEBHOOK_SECONDS = 10.0
VERSION_TAGS = ("bitfount.decision", "bitfount.why")


def settle(store: Store, name: str, version: int, decision: Decision, tracking_uri: str) -> Manifest:
    """Moves the alias if the challenger is better, and writes at its version why it is or is not the champion; once.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    if done := read_manifest(store, "promote"):
        return done
    if decision.yes:
        promote(tracking_uri, name, version)
    uri = with_password(tracking_uri)
    with tracking_errors(uri):
        client = connect(uri)
        for tag, value in zip(VERSION_TAGS, ("promoted" if decision.yes else "kept", decision.why), strict=True):
            client.set_model_version_tag(name, str(version), tag, value[:5000])
    return write_manifest(store, Manifest("promote", {}, {"promoted": decision.yes, "why": decision.why}))


def show_in_prefect(markdown: str, model: str) -> None:
    """Makes the flow run's page of the retraining."""
    create_markdown_artifact(markdown, key="retraining", description=f"Retraining of {model}")


def tell_automations(outcome: str, model: str, payload: dict[str, Any]) -> None:
    """Sends the event `bitfount.retraining.<outcome>` of the model, which Prefect's automations can act on."""
    resource = {"prefect.resource.id": f"bitfount.model.{model}", "prefect.resource.name": model}
    emit_event(f"bitfount.retraining.{outcome}", resource, payload=payload)


@step("notify")
def post(url: str, message: dict[str, Any]) -> None:
    """Posts a message to a webhook, as JSON.

    Raises:
        TrackingError: nobody takes it; tried again a few times.
        ConfigurationError: the URL is refused.
    """
    try:
        answer = httpx.post(url, json=message, timeout=WEBHOOK_SECONDS)
    except httpx.HTTPError as error:
        raise TrackingError(f"the webhook cannot be reached: {type(error).__name__}") from None
    except httpx.InvalidURL:
        raise ConfigurationError("the webhook is no URL") from None
    if answer.is_server_error:
        raise TrackingError(f"the webhook answered {answer.status_code}")
    if not answer.is_success:
        raise ConfigurationError(f"the webhook answered {answer.status_code}: wanted a URL that takes a POST of JSON")
