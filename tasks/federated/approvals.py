"""The models that a pod's owner has approved: one small file a source, looked at anew for each job; no source is ever run here.

<state>/approvals/<sha256>.json      who approved which class of it, and when
<state>/approvals/<sha256>.py        the source, byte for byte
"""

from __future__ import annotations

import ast
import getpass
import hashlib
import importlib.util
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from marshmallow import RAISE, Schema, ValidationError, fields, validate

from bitfount_model.errors import ConfigurationError, IntegrityError, ModelFileError, StorageError
from bitfount_model.federation.book import Approval
from bitfount_model.files import write_atomically

SHA256 = re.compile(r"[0-9a-f]{64}")
MODEL = "PyTorchBitfountModel"


@dataclass(frozen=True)
class ClassFound:
    """A class that a source defines.

    Attributes:
        name: its name.
        line: where it begins, from 1.
        is_model: whether it derives from `PyTorchBitfountModel`, as far as the source itself shows.
    """

    name: str
    line: int
    is_model: bool


class _ApprovalSchema(Schema):
    class Meta:
        unknown = RAISE

    sha256 = fields.String(required=True, validate=validate.Regexp(rf"^{SHA256.pattern}\Z"))
    class_name = fields.String(required=True, data_key="class")
    file_name = fields.String(required=True)
    who = fields.String(required=True)
    when = fields.String(required=True)
    size = fields.Integer(strict=True, required=True, data_key="bytes")


class Approvals:
    """What is approved at one pod.

    Args:
        folder: of the approvals; made by the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, sha256: str) -> Approval | None:
        """What is approved of a source, as of now.

        Args:
            sha256: of its bytes, hex.

        Raises:
            IntegrityError: the file is there and is not what an approval is.
            StorageError: it cannot be read.
        """
        path = self.folder / f"{sha256}.json"
        if not SHA256.fullmatch(sha256):
            return None
        try:
            approval: Approval = Approval(**_ApprovalSchema().load(json.loads(path.read_bytes())))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"the pod's approvals cannot be read: {error.strerror}") from error
        except (ValueError, ValidationError, RecursionError) as error:
            raise _damaged(sha256) from error
        if approval.sha256 != sha256:
            raise _damaged(sha256)
        return approval

    def all(self) -> list[Approval]:
        """All approvals, newest first.

        Raises:
            IntegrityError: one of them is damaged.
        """
        found = [self.of(path.stem) for path in self.folder.glob("*.json")]
        return sorted((each for each in found if each is not None), key=lambda each: each.when, reverse=True)

    def put(self, source: bytes, approval: Approval) -> None:
        """Keeps an approval; the copy of the source first, as the other file is what counts.

        Raises:
            StorageError: it cannot be written.
        """
        write_atomically(self.folder / f"{approval.sha256}.py", source)
        value = _ApprovalSchema().dump(approval)
        write_atomically(self.folder / f"{approval.sha256}.json", json.dumps(value, indent=2).encode() + b"\n")

    def named(self, prefix: str) -> str:
        """The sha256 that begins so.

        Raises:
            ConfigurationError: no approval begins so, or several do.
        """
        known = sorted(path.stem for path in self.folder.glob("*.json") if SHA256.fullmatch(path.stem))
        found = [sha256 for sha256 in known if sha256.startswith(prefix.lower())]
        if len(found) == 1 and prefix:
            return found[0]
        if found:
            raise ConfigurationError(f"{prefix!r} is the beginning of {len(found)} approvals: {', '.join(found)}")
        raise ConfigurationError(f"no approval begins with {prefix!r}; `bitfount-flows pod approvals` lists them")

    def remove(self, sha256: str) -> None:
        """Takes an approval back; the file that counts goes first.

        Raises:
            StorageError: it cannot be removed.
        """
        try:
            (self.folder / f"{sha256}.json").unlink(missing_ok=True)
            (self.folder / f"{sha256}.py").unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"the approval {sha256} cannot be removed: {error.strerror}") from error


def approval_for(source: bytes, file_name: str, class_name: str | None) -> Approval:
    """An approval of a source by whoever runs this process, now.

    Args:
        source: its bytes.
        file_name: what the file is called.
        class_name: the class; None where the source shows only one model class.

    Raises:
        ConfigurationError: the source has no such class, or several, or none.
        ModelFileError: it is not Python.
    """
    classes = classes_in(source)
    names = [each.name for each in classes if (class_name is None and each.is_model) or each.name == class_name]
    if class_name is not None and not names:
        there = ", ".join(each.name for each in classes) or "none"
        raise ConfigurationError(f"{file_name} defines no class {class_name}; its classes are: {there}")
    if len(set(names)) != 1:
        what = f"defines {len(names)} model classes, {', '.join(names)}" if names else "shows no model class"
        raise ConfigurationError(f"{file_name} {what}: say which class is approved with --class NAME")
    return Approval(
        sha256=hashlib.sha256(source).hexdigest(),
        class_name=names[0],
        file_name=file_name,
        who=this_user(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        size=len(source),
    )


def this_user() -> str:
    """user@host of this process."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def classes_in(source: bytes) -> list[ClassFound]:
    """The classes that a source defines at its top level, in order; found by reading it alone.

    Raises:
        ModelFileError: it is not Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelFileError(f"the model's source is not Python: {error}") from error
    models = {MODEL}
    found = []
    for node in _classes(tree.body):
        is_model = any(_last_name(base) in models for base in node.bases)
        if is_model:
            models.add(node.name)
        found.append(ClassFound(node.name, node.lineno, is_model))
    return found


def lines_of(source: bytes) -> Iterator[str]:
    """The source's lines as an owner may read them: characters that do not show, or that change how others show, as escapes.

    Raises:
        ModelFileError: it is not text.
    """
    try:
        text = importlib.util.decode_source(source)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise ModelFileError(f"the model's source is not text: {error}") from error
    for line in text.removesuffix("\n").split("\n"):
        yield "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
            for letter in line.replace("\t", "    ")
        )


def _classes(body: list[ast.stmt]) -> Iterator[ast.ClassDef]:
    """Class statements, also those below `if`, `try` and `with`; not those within functions and classes."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _classes(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _classes(handler.body)


def _last_name(node: ast.expr) -> str | None:
    """`c` of `a.b.c`, or of `c`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def _damaged(sha256: str) -> IntegrityError:
    return IntegrityError(f"the approval of {sha256} is damaged: approve the model again, or revoke it")
