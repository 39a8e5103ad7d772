"""What a step leaves behind: a set of files and, last, a manifest that names them with their sha256.

A step whose manifest is there is done: retry, resume and audit all ask the same question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bitfount_model.errors import IntegrityError
from tasks.layout import manifest_name
from tasks.store import Reference, Store


@dataclass(frozen=True)
class Manifest:
    """What a finished step left behind.

    Attributes:
        step: the step's name, e.g. `fit`.
        files: role -> artifact, e.g. `{"weights": ...}`.
        values: small results, plain JSON.
    """

    step: str
    files: Mapping[str, Reference] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(store: Store, manifest: Manifest) -> Manifest:
    """Marks a step as done: the last thing that it writes."""
    store.put(manifest_name(manifest.step), json.dumps(asdict(manifest), indent=1).encode())
    return manifest


def read_manifest(store: Store, step: str) -> Manifest | None:
    """What a step left behind, or None if it has not finished."""
    if not store.has(manifest_name(step)):
        return None
    name = manifest_name(step)
    try:
        value = json.loads(store.get(name))
        files = {role: Reference(**reference) for role, reference in value["files"].items()}
        return Manifest(value["step"], files, value["values"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{name} in {store.url} is not what a step wrote: {error}. Use another job id.") from error


def read_file(store: Store, manifest: Manifest, role: str) -> bytes:
    """One of a step's files, checked against the manifest."""
    reference = manifest.files[role]
    return store.get(reference.name, reference.sha256)
