"""From a live class to the text of a module that runs on its own: what a modeller sends, approves and registers.

Of the class's module (a file, or the cells of a notebook) the statements are kept that the class needs, directly or
through one another. Names that `globals()`, `exec` or `setattr` make are not seen.
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import inspect
import linecache
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from bitfount_model.errors import SourceCodeError
from bitfount_model.files import write_atomically
from bitfount_model.statements import (
    Definition,
    SourceText,
    Statement,
    compiled,
    first_line,
    future_names,
    names_of,
    same_scope,
    statement_of,
    statements_of,
)

# Every module has these without a statement. `__file__` is left out on purpose: files beside the module do not travel.
_IMPLICIT = frozenset({"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__annotations__"})
# Notebooks put these among the builtins.
_NOTEBOOK_ONLY = frozenset({"get_ipython", "display", "__IPYTHON__", "_"})

CELL = re.compile(r"/|[A-Za-z]:|<(ipython|python)-input")
"""How notebooks and consoles name their cells: as files that are not there, or by their number."""


def module_source(cls: type[Any], extra_imports: Sequence[str] | None = None) -> str:
    """Writes the source of a module that defines a class and runs on its own.

    The text holds the `from __future__` imports of the class's module, then `extra_imports`, then the imports,
    constants, helper functions and base classes that the class uses, directly or through one another, and the class, in
    the order in which they stand in the module. Of an import only the names in use are kept; `from x import *` becomes
    the names in use. Statements that change a constant that is kept (`TABLE["a"] = 1`, `LAYERS.append(3)`) stay.

    Args:
        cls: a class at the top of a file or of a notebook cell; or within a function, if it uses none of its names.
        extra_imports: import statements to add, one a string.

    Returns:
        The text, ending with a newline.

    Raises:
        SourceCodeError: the source cannot be found, or has changed since the class was made; the class is defined
            within another class; it uses a name of a function around it, a relative import, or a name that nothing
            defines; an extra import is no import statement. The message names what is missing.
    """
    if not isinstance(cls, type):
        raise SourceCodeError(f"the source of a class is wanted, got a {type(cls).__name__}: {cls!r}.")
    extra_features, extras = _extra_imports(extra_imports or ())
    features, statements, own = _statements_around(cls)
    chosen = _selected(statements, own, cls.__name__)
    for statement in chosen:
        if statement.relative:
            raise SourceCodeError(
                f"{cls.__name__} uses `{statement.relative}`, which a module of its own cannot follow: import from an"
                f" installed package by its full name, or move what is imported into the file of {cls.__name__}."
            )
    known = {statement.text for statement in chosen}
    written = [*(extra for extra in extras if extra.text not in known), *chosen]
    source = _rendered(features | extra_features, written)
    _check_runs_alone(source, cls, frozenset().union(*(statement.binds for statement in written)))
    return source


def write_module_source(
    cls: type[Any], filename: str | os.PathLike[str], extra_imports: Sequence[str] | None = None
) -> None:
    """Writes `module_source(cls, extra_imports)` to a file, as UTF-8; the whole file or none of it.

    Args:
        cls: the class.
        filename: where to: any name that the file system takes. A file that is there is replaced.
        extra_imports: import statements to add, one a string.

    Raises:
        SourceCodeError: as `module_source`; nothing is written.
        StorageError: the file cannot be written.
    """
    write_atomically(filename, module_source(cls, extra_imports).encode())


def _extra_imports(texts: Sequence[str]) -> tuple[frozenset[str], list[Statement]]:
    features: set[str] = set()
    extras: list[Statement] = []
    for text in texts:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            raise SourceCodeError(f"extra import {text!r} is not Python: {error}.") from error
        parts = list(statements_of(SourceText("extra imports", text, tree), frozenset()))
        if not all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body) or not tree.body:
            raise SourceCodeError(f"extra import {text!r} is not an import statement, such as 'import math'.")
        if any(part.relative for part in parts) or "*" in text:
            raise SourceCodeError(f"extra import {text!r} must name a full module and the names wanted of it.")
        features.update(name for node in tree.body for name in future_names(node))
        extras += parts
    return frozenset(features), extras


# Which text holds the class, and where


def _statements_around(cls: type[Any]) -> tuple[frozenset[str], list[Statement], Statement]:
    """The `from __future__` features, the statements of the class's module, and the class's own among them."""
    scopes = cls.__qualname__.split(".")
    path = scopes[::2]
    if len(scopes) % 2 == 0 or any(scope != "<locals>" for scope in scopes[1::2]):
        raise SourceCodeError(f"{cls.__qualname__} is defined within a class: move it to the top level of its module.")
    texts = _texts(cls)
    features = frozenset(feature for text in texts for feature in text.features)
    text, top, node = _place(cls, texts, path)
    statements = [statement for each in texts for statement in statements_of(each, features)]
    if top is not node and len(path) > 1:
        own = statement_of(node, text, features)
        enclosed = _function_names(compiled(top, text.filename, features), path[:-1])
        closure = (own.names.read & enclosed) - {cls.__name__}
        if closure:
            raise SourceCodeError(
                f"{cls.__name__} uses {_quoted(closure)} of the function `{path[-2]}` around it, which a module of its"
                f" own does not have: move the class, and what it uses, to the top level of {text.filename}."
            )
        return features, [*(each for each in statements if cls.__name__ not in each.binds), own], own
    place = next((place for place, each in enumerate(statements) if each.node is top), None)
    if place is None:
        raise SourceCodeError(
            f"{cls.__name__} is defined under `if __name__ == '__main__':`, which does not run where a module is"
            " loaded: move it out of there."
        )
    # a class of the same name further down is not the one that is asked for
    others = {id(each) for each in statements[place + 1 :] if _replaces(each, cls.__name__)}
    return features, [each for each in statements if id(each) not in others], statements[place]


def _methods(cls: type[Any]) -> Iterator[FunctionType]:
    """The functions that the class statement itself defines."""
    for value in vars(cls).values():
        for function in (value, getattr(value, "__func__", None), getattr(value, "fget", None)):
            bare = inspect.unwrap(function) if callable(function) else None
            if (
                isinstance(bare, FunctionType)
                and bare.__module__ == cls.__module__
                and bare.__qualname__ == f"{cls.__qualname__}.{bare.__name__}"
                and bare.__code__.co_name == bare.__name__ != "<lambda>"
                and bare.__code__.co_filename != "<string>"
            ):
                yield bare


def _texts(cls: type[Any]) -> list[SourceText]:
    """The file of the class; or the cells of its notebook, in the order in which they ran first."""
    module = sys.modules.get(cls.__module__)
    method = next(_methods(cls), None)
    namespace: Mapping[str, Any] = method.__globals__ if method else vars(module) if module else {}
    file = namespace.get("__file__")
    filename = method.__code__.co_filename if method else file
    if filename and file and Path(filename).absolute() == Path(file).absolute():
        found = [(filename, _module_text(filename, namespace))]
    else:
        found = _cells(filename)
    package = namespace.get("__package__") or ""
    texts = [text for name, source in found if (text := _parsed(name, source, package))]
    if not any(filename in (None, text.filename) and text.tree.body for text in texts):
        raise SourceCodeError(
            f"the source of {cls.__qualname__} is not to be found (module {cls.__module__}, file {filename}):"
            " define the class in a file or in a notebook cell, not through exec, `python -c` or type()."
        )
    return texts


def _module_text(filename: str, namespace: Mapping[str, Any]) -> str:
    loader = namespace.get("__loader__")
    if isinstance(loader, importlib.abc.InspectLoader):
        try:
            return loader.get_source(namespace["__name__"]) or ""
        except (ImportError, OSError):
            pass  # linecache looks in more places
    linecache.checkcache(filename)
    return "".join(linecache.getlines(filename))


def _cells(filename: str | None) -> list[tuple[str, str]]:
    """The cells of a session, from linecache, where notebooks and consoles put them; all, if none is named."""

    def session(name: str) -> str:
        return str(Path(name).parent) if Path(name).is_absolute() else re.split(r"\d", name, maxsplit=1)[0]

    # entries without a modification time stand for no file on disk
    cells = {name: entry[2] for name, entry in linecache.cache.items() if len(entry) == 4 and entry[1] is None}
    return [
        (name, "".join(lines))
        for name, lines in cells.items()
        # libraries leave the code that they generate in linecache too, under names of their own
        if (CELL.match(name) if filename is None else session(name) == session(filename))
    ]


def _parsed(filename: str, source: str, package: str) -> SourceText | None:
    try:
        return SourceText(filename, source, ast.parse(source), package)
    except (SyntaxError, ValueError):
        return None  # a cell that never ran


def _place(
    cls: type[Any], texts: Sequence[SourceText], path: Sequence[str]
) -> tuple[SourceText, ast.stmt, ast.ClassDef]:
    """The text, the top-level statement and the class statement of a class: the last that its methods came from."""
    codes = [method.__code__ for method in _methods(cls)]
    candidates = [(text, top, node) for text in texts for top in text.tree.body for node in _classes(top, path)]
    for text, top, node in reversed(candidates):
        lines = {first_line(below) for below in ast.walk(node) if isinstance(below, Definition)}
        if all(code.co_filename == text.filename and code.co_firstlineno in lines for code in codes):
            return text, top, node
    if candidates:
        raise SourceCodeError(
            f"{codes[0].co_filename} has changed since {cls.__name__} was made from it: import it again, or restart."
        )
    raise SourceCodeError(
        f"no statement `class {cls.__name__}` in {texts[-1].filename}: write the class out, where type() or a decorator"
        " makes it now."
    )


def _classes(node: ast.AST, path: Sequence[str]) -> Iterator[ast.ClassDef]:
    for each in same_scope(node):
        if isinstance(each, ast.ClassDef) and [each.name] == list(path):
            yield each
        elif isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name == path[0] and len(path) > 1:
            for below in each.body:
                yield from _classes(below, path[1:])


def _function_names(code: CodeType, path: Sequence[str]) -> frozenset[str]:
    """The names of the functions on a path of nested functions."""
    if not path:
        return frozenset()
    inner = [part for part in code.co_consts if isinstance(part, CodeType) and part.co_name == path[0]]
    own = [{*part.co_varnames, *part.co_cellvars} | _function_names(part, path[1:]) for part in inner]
    return frozenset().union(*own)


# Which statements the class needs


def _selected(statements: Sequence[Statement], own: Statement, name: str) -> list[Statement]:
    """The statements to write for the class `name`, whose own statement is `own`, in their order."""
    candidates = list(statements)
    while True:
        chosen = _needed(candidates, own, name)
        needless = {
            id(each)
            for place, each in enumerate(chosen)
            if each is not own and (_is_superseded(place, chosen) or _is_repeated(place, chosen))
        }
        if not needless:
            return chosen
        candidates = [each for each in candidates if id(each) not in needless]


def _needed(statements: Sequence[Statement], own: Statement, name: str) -> list[Statement]:
    """The statement of the class `name` and those that it needs, in their order."""
    chosen = {id(own)}
    while True:
        so_far = [each for each in statements if id(each) in chosen]
        must = {name}.union(*(each.names.read for each in so_far))
        may = must.union(*(each.hints for each in so_far))
        made_here = [each for each in so_far if not each.is_import and not each.guard]
        objects = {bound for each in made_here for bound in each.binds}
        values = {bound for each in made_here for bound in each.binds if not isinstance(each.node, Definition)}
        more = {
            id(each)
            for each in statements
            if each.binds & must
            or (each.binds & may and not each.relative)
            or (each.changes & objects and _is_part_of_the_module(each, name))
            or (each.calls & values and name not in each.names.read)
        }
        if more <= chosen:
            return so_far
        chosen |= more


def _is_part_of_the_module(statement: Statement, name: str) -> bool:
    """Whether a change belongs to the definitions: a loop that uses the class itself is work done with it."""
    return isinstance(statement.node, ast.Assign | ast.AugAssign | ast.AnnAssign) or name not in statement.names.read


def _replaces(statement: Statement, name: str) -> bool:
    return statement.replaces and name in statement.binds and name not in statement.names.read_now


def _is_superseded(place: int, chosen: Sequence[Statement]) -> bool:
    """Whether later definitions take the place of this one before anything uses it, as when a cell ran twice."""
    statement = chosen[place]
    if statement.is_import or not statement.replaces:
        return False  # of imports all count: two of submodules bind the same name
    return all(_name_is_superseded(name, place, chosen) for name in statement.binds)


def _is_repeated(place: int, chosen: Sequence[Statement]) -> bool:
    """Whether this is an import that was done before, with nothing since that binds its name anew."""
    statement = chosen[place]
    for earlier in reversed(chosen[:place]):
        if statement.is_import and earlier.is_import and earlier.text == statement.text:
            return True
        # `import a.b` binds `a` to what `import a.c` binds it to
        same_package = earlier.is_import and earlier.text.startswith("import ") and " as " not in earlier.text
        if earlier.binds & statement.binds and not same_package:
            return False
    return False


def _name_is_superseded(name: str, place: int, chosen: Sequence[Statement]) -> bool:
    for later in range(place + 1, len(chosen)):
        if _replaces(chosen[later], name):
            before = [*chosen[:place], *chosen[place + 1 : later]]
            return not any(name in each.mentions for each in before)
    return False


# From statements to the text


def _rendered(features: Iterable[str], statements: Sequence[Statement]) -> str:
    blocks = [(True, f"from __future__ import {feature}") for feature in sorted(features)]
    for guard, group in groupby(statements, key=lambda each: each.guard):
        inner = [block for node, parts in groupby(group, key=lambda each: each.node) for block in _blocks(list(parts))]
        if guard:
            body = textwrap.indent("\n".join(text for _, text in inner), "    ")
            inner = [(False, f"if {guard}:\n{body}")]
        blocks += inner
    gaps = ["\n" if earlier[0] and later[0] else "\n\n\n" for earlier, later in pairwise(blocks)]
    if features and gaps:
        gaps[len(set(features)) - 1] = "\n\n"
    return "".join(text + gap for (_, text), gap in zip(blocks, [*gaps, "\n"], strict=True))


def _blocks(parts: Sequence[Statement]) -> Iterator[tuple[bool, str]]:
    """The parts of one statement as (stands close to its neighbours, text); names of one import are joined again."""
    trees = [ast.parse(part.text).body[0] for part in parts]
    if len(parts) > 1 and all(isinstance(tree, ast.ImportFrom) for tree in trees):
        first = trees[0]
        names = [alias for tree in trees if isinstance(tree, ast.ImportFrom) for alias in tree.names]
        if isinstance(first, ast.ImportFrom):
            yield True, ast.unparse(ast.ImportFrom(first.module, names, first.level))
        return
    for part, tree in zip(parts, trees, strict=True):
        yield not isinstance(tree, Definition), part.text


def _check_runs_alone(source: str, cls: type[Any], bound: frozenset[str]) -> None:
    try:
        code = compile(source, f"<source of {cls.__name__}>", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise SourceCodeError(f"the source of {cls.__name__} does not compile on its own: {error}.") from error
    names = names_of(code)
    there = (set(dir(builtins)) - _NOTEBOOK_ONLY) | _IMPLICIT | bound | names.stored_later
    undefined = names.read - there
    if undefined:
        beside = " Files beside the module (`__file__`) do not travel with it." if "__file__" in undefined else ""
        raise SourceCodeError(
            f"{cls.__name__} uses {_quoted(undefined)}, which no statement of its module defines: define it at the top"
            f" level there, or import it through extra_imports.{beside}"
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
