"""Plain JSON objects <-> YAML text: the written form of a schema."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from bitfount_model.errors import SerializationError
from bitfount_model.types import JSON


class _Representer(SafeRepresenter):
    """Keeps odd characters: ruamel folds some line breaks of Unicode unless text is in double quotes."""

    def represent_text(self, text: str) -> ScalarNode:
        style = None if text.isprintable() else '"'
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", text, style=style)
        return node


_Representer.add_representer(str, _Representer.represent_text)


def to_yaml(data: JSON) -> str:
    """Write a JSON object as YAML, keys in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # a switch, annotated as None
    text = io.StringIO()
    yaml.dump(data, text)
    return text.getvalue()


def from_yaml(text: str) -> Any:
    """Read YAML; nothing but plain data is ever built.

    Raises:
        SerializationError: the text is no YAML, repeats a key, or names a tag of another language.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise SerializationError(f"the text is no YAML: {error}") from error
