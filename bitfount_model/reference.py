"""From a file, bytes or a registry name to a model class: how pods, tasks and tests get the modeller's code.

Loading a model runs its code. Whoever must approve it first compares `BitfountModelReference.sha256`, which runs
nothing; what is run later is exactly the bytes that were hashed.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from bitfount_model.data import BitfountSchema, DataStructure
from bitfount_model.errors import ConfigurationError, ModelFileError
from bitfount_model.model import PyTorchBitfountModel

SOURCE_MODULE = "bitfount_model_source_"
"""How the names of modules begin that models' sources are run as."""
REGISTRY_GROUP = "bitfount_model.registry"
Registry = Callable[[str, int | str | None], bytes]
"""(name, version, alias or None for the newest) -> the bytes of the model's source."""

_REGISTRY_NAME = re.compile(r"[\w.-]+( [\w.-]+)*(@[\w.-]+)?")


def load_model_class(
    path_or_source: str | os.PathLike[str] | bytes, class_name: str | None = None
) -> type[PyTorchBitfountModel]:
    """Runs a model file as a module and returns the model class that it defines.

    The module is kept in `sys.modules`, so that `inspect` and `serialize_model_source_code` work on the class, under a
    name made of the sha256 of the source: loading the same source again runs it again, gives a new class, and takes the
    place of the earlier module, so that there is never more than one entry for one source. No `.pyc` is written.

    Args:
        path_or_source: the path of a file, or, as bytes, its content.
        class_name: which class, if the file defines several.

    Returns:
        The only concrete subclass of `PyTorchBitfountModel` that the file itself defines, or the one that is named.

    Raises:
        ModelFileError: there is no such file; it is not Python; something that it imports is missing; it raises; it
            defines none, or several, or not the named class; the class lacks methods.
    """
    if isinstance(path_or_source, bytes):
        return _model_class(_executed(path_or_source, None), class_name)
    path = Path(path_or_source)
    return _model_class(_executed(_read(path), path.absolute()), class_name)


@dataclass(frozen=True)
class BitfountModelReference:
    """A model that is written elsewhere: in a file, or in a model registry.

    The source is read once, when it is first asked for: what is hashed, approved and run are the same bytes.

    Args:
        model_ref: the path of a model file; or the name of a registered model, `name` or `name@alias`.
        datastructure: for `build`.
        schema: for `build`.
        model_version: of a registered model; None for the newest.
        hyperparameters: arguments of the model's constructor, for `build`.
        class_name: which class, if the file defines several.

    Raises:
        ConfigurationError: a version beside an alias, or of a file.
    """

    model_ref: str | Path
    datastructure: DataStructure | None = None
    schema: BitfountSchema | None = None
    model_version: int | None = None
    hyperparameters: Mapping[str, Any] | None = None
    class_name: str | None = None

    def __post_init__(self) -> None:
        if self.model_version is not None and (self.path is not None or "@" in str(self.model_ref)):
            other = "a file" if self.path else "an alias"
            raise ConfigurationError(
                f"model_version={self.model_version} with {str(self.model_ref)!r}, {other}: give one."
            )

    @property
    def path(self) -> Path | None:
        """The file, or None for the name of a registered model."""
        text = str(self.model_ref)
        is_name = self.model_version is not None or (_REGISTRY_NAME.fullmatch(text) and not text.endswith(".py"))
        if isinstance(self.model_ref, str) and is_name and not _is_file(Path(text)):
            return None
        return Path(self.model_ref)

    def source(self) -> bytes:
        """The bytes of the model's source; runs none of them.

        Raises:
            ModelFileError: no such file, no such registered model, or no registry installed.
        """
        return self._source

    @property
    def sha256(self) -> str:
        """The digest of `source()`, in hex: what a pod's owner approves."""
        return hashlib.sha256(self._source).hexdigest()

    def model_class(self) -> type[PyTorchBitfountModel]:
        """Runs the source, as `load_model_class`, and returns its class; the same one at each call.

        Raises:
            ModelFileError: as `load_model_class`.
        """
        return self._class

    def build(
        self, datastructure: DataStructure | None = None, schema: BitfountSchema | None = None, **overrides: Any
    ) -> PyTorchBitfountModel:
        """Constructs the model.

        Args:
            datastructure: instead of the reference's own.
            schema: instead of the reference's own.
            overrides: arguments of the constructor, before those of `hyperparameters`.

        Returns:
            The model, not initialised.

        Raises:
            ModelFileError: as `load_model_class`.
            ConfigurationError: arguments that the constructor does not take, or lacks; all are listed.
        """
        given = {
            "datastructure": self.datastructure if datastructure is None else datastructure,
            "schema": self.schema if schema is None else schema,
        }
        arguments = {
            **(self.hyperparameters or {}),
            **overrides,
            **{name: value for name, value in given.items() if value is not None},
        }
        cls = self.model_class()
        problems = list(argument_problems(cls, arguments))
        if problems:
            raise ConfigurationError(f"{cls.__name__} cannot be constructed: {'; '.join(problems)}.")
        return cls(**arguments)

    @cached_property
    def _source(self) -> bytes:
        if self.path is not None:
            return _read(self.path)
        name, _, alias = str(self.model_ref).partition("@")
        source = _registry(name)(name, self.model_version if self.model_version is not None else alias or None)
        if not isinstance(source, bytes):
            raise ModelFileError(f"the registry gave a {type(source).__name__} for model {name!r}, not bytes.")
        return source

    @cached_property
    def _class(self) -> type[PyTorchBitfountModel]:
        path = self.path.absolute() if self.path else None
        return _model_class(_executed(self._source, path), self.class_name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        beside = sorted(other.name for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        close = get_close_matches(path.name, beside, n=1)
        hint = f" Did you mean {str(path.parent / close[0])!r}?" if close else " Give the path of a Python file."
        raise ModelFileError(f"cannot read the model file {str(path)!r}: {reason}.{hint}") from error


def _registry(name: str) -> Registry:
    found = list(entry_points(group=REGISTRY_GROUP))
    if len(found) != 1:
        there = f"{len(found)} are installed: {sorted(each.value for each in found)}" if found else "none is installed"
        raise ModelFileError(
            f"{name!r} is no file here, so it is taken for the name of a registered model: one model registry is"
            f" wanted, {there}. Install bitfount-flows, or another package with an entry point in the group"
            f" {REGISTRY_GROUP!r}; or give the path of a file."
        )
    try:
        registry: Registry = found[0].load()
    except (ImportError, AttributeError) as error:
        raise ModelFileError(f"the model registry {found[0].value!r} cannot be loaded: {error}.") from error
    return registry


# From bytes to a module


class _SourceLoader(importlib.abc.ExecutionLoader):
    """Runs a text that is in memory already, so that nothing is read twice and no bytecode is left beside the file."""

    def __init__(self, source: str, filename: str) -> None:
        self.source = source
        self.filename = filename

    def get_source(self, fullname: str) -> str:
        return self.source

    def get_filename(self, fullname: str) -> str:
        return self.filename


def _executed(source: bytes, path: Path | None) -> ModuleType:
    name = f"{SOURCE_MODULE}{hashlib.sha256(source).hexdigest()[:32]}"
    filename = f"{name}.py" if path is None else str(path)
    shown = "the model source" if path is None else f"model file {filename!r}"
    try:
        loader = _SourceLoader(importlib.util.decode_source(source), filename)
        code = compile(loader.source, filename, "exec", dont_inherit=True)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{shown} is not Python: {_place_of(error)}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ModelFileError(f"{shown} is not Python that can be compiled: {error}.") from error
    spec = ModuleSpec(name, loader, origin=filename)
    spec.has_location = True  # gives the module its __file__
    module = importlib.util.module_from_spec(spec)
    earlier = sys.modules.get(name)
    sys.modules[name] = module
    try:
        exec(code, vars(module))  # noqa: S102 (to run the model's code is what this is for)
    except BaseException as error:
        sys.modules.pop(name, None)
        if earlier is not None:
            sys.modules[name] = earlier
        if isinstance(error, Exception | SystemExit):  # anything that someone else's code may raise
            raise ModelFileError(f"{shown} {_failure(error, filename, loader.source)}") from error
        raise
    return module


def _place_of(error: SyntaxError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8. Save it as UTF-8."
    text = f": {error.text.strip()}" if error.text else ""
    return f"line {error.lineno}{text} ({error.msg})." if error.lineno else f"{error.msg}."


def _failure(error: BaseException, filename: str, source: str) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    line = lines[-1] if lines else None
    text = source.split("\n")[line - 1].strip() if line else ""
    where = f"line {line}: {text}" if line else "in code that it calls"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split(".")[0]
        if package == "bitfount":
            return f"imports {error.name!r} ({where}): write `from bitfount_model import ...` instead."
        return f"needs the module {error.name!r}, which is not here ({where}): install {package!r}, or do without it."
    if isinstance(error, ImportError):
        return f"imports what is not there ({where}): {error}. Compare the installed version of {error.name!r}."
    return f"raised {type(error).__name__} when it was loaded ({where}): {error}. Mend the file."


# From a module to its class


def _model_class(module: ModuleType, class_name: str | None) -> type[PyTorchBitfountModel]:
    shown = f"model file {module.__file__!r}"
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, PyTorchBitfountModel) and value.__module__ == module.__name__
    }
    if class_name is not None:
        if class_name not in own:
            found = vars(module).get(class_name)
            what = "does not define it" if found is None else "has it, but not as a model class of its own"
            raise ModelFileError(f"{shown}: class {class_name!r} is wanted, the file {what}; {_listing(own)}.")
        _refuse_abstract(own[class_name], shown)
        return own[class_name]
    concrete = {id(cls): cls for cls in own.values() if not inspect.isabstract(cls)}
    if len(concrete) == 1:
        return next(iter(concrete.values()))
    if concrete:
        names = sorted({cls.__name__ for cls in concrete.values()})
        raise ModelFileError(f"{shown} defines {len(concrete)} model classes, {names}: say which as class_name.")
    for cls in own.values():
        _refuse_abstract(cls, shown)
    raise ModelFileError(
        f"{shown} defines no subclass of PyTorchBitfountModel: write `class Model(PyTorchBitfountModel): ...` in it"
        " (a class that it only imports does not count)."
    )


def _listing(own: Collection[str]) -> str:
    return f"its model classes are {sorted(own)}" if own else "it has no model classes"


def _refuse_abstract(cls: type[PyTorchBitfountModel], shown: str) -> None:
    if inspect.isabstract(cls):
        missing = sorted(cls.__abstractmethods__)
        raise ModelFileError(f"{shown}: {cls.__name__} lacks {missing}: give it these methods.")


# From a class to a model


def argument_problems(cls: type[Any], arguments: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a class from being constructed with these arguments: names that it does not take, or that it lacks."""
    taken = _constructor_arguments(cls)
    for name in sorted(arguments.keys() - taken):
        close = get_close_matches(name, taken, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        yield f"it takes no argument {name!r}{hint}; it takes {sorted(taken)}"
    for name, parameter in inspect.signature(cls).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not variadic and name not in arguments:
            yield f"argument {name!r} is missing"


def _constructor_arguments(cls: type[Any]) -> frozenset[str]:
    """The names that the constructor takes, and its bases' constructors as far as `**kwargs` passes names on."""
    taken: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            taken |= {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                break
    return frozenset(taken)
