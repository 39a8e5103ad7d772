"""From the text of a module to its top-level statements and what each does with names: the ground of `source_code`.

What a statement binds and reads is taken from its compiled code, so that Python's own scoping decides.
"""

from __future__ import annotations
import __future__

import ast
import dis
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import CodeType

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_LOADS = frozenset({"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"})


@dataclass(frozen=True)
class Names:
    """What code does with the names of its module.

    Attributes:
        stored: names that it binds while it runs.
        stored_later: names that a function in it binds when called, through `global`.
        read: names that must be there, while it runs or when a function in it is called.
        read_now: names that must be there while it runs.
    """

    stored: frozenset[str] = frozenset()
    stored_later: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    read_now: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SourceText:
    """A file, or one cell of a notebook.

    Attributes:
        filename: the name that its code carries.
        source: its text, with `\\n` at the ends of lines.
        tree: the text, parsed.
        package: the package that relative imports start from, or "".
    """

    filename: str
    source: str
    tree: ast.Module
    package: str = ""

    @property
    def features(self) -> frozenset[str]:
        """Names imported from `__future__`."""
        return frozenset(name for node in self.tree.body for name in future_names(node))


@dataclass(frozen=True)
class Statement:
    """One top-level statement, or one name of an import statement.

    Attributes:
        node: the top-level statement that it is, or is part of.
        text: what to write.
        binds: names that it defines.
        names: what it does with names.
        hints: names that only its annotations use.
        changes: names whose attributes or items it assigns or deletes.
        calls: names that it calls a method of, for the effect alone.
        guard: the test of the `if TYPE_CHECKING:` around it, or "".
        relative: the relative import in it, or "".
    """

    node: ast.stmt
    text: str
    binds: frozenset[str]
    names: Names = Names()
    hints: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()
    calls: frozenset[str] = frozenset()
    guard: str = ""
    relative: str = ""

    @property
    def mentions(self) -> frozenset[str]:
        """Names that it reads, hints at or changes."""
        return self.names.read | self.hints | self.changes | self.calls

    @property
    def is_import(self) -> bool:
        """Whether it is one name of an import statement."""
        return isinstance(self.node, ast.Import | ast.ImportFrom)

    @property
    def replaces(self) -> bool:
        """Whether what its names stood for before is gone after it."""
        if isinstance(self.node, ast.Assign):
            return all(isinstance(target, ast.Name) for target in self.node.targets)
        return self.is_import or isinstance(self.node, Definition | ast.AnnAssign)


def names_of(code: CodeType) -> Names:
    """What compiled code, and the functions and classes in it, do with the names of their module."""
    stored_later: set[str] = set()
    read: set[str] = set()
    read_now: set[str] = set()
    blocks = [(code, True)]
    while blocks:
        block, runs_now = blocks.pop()
        runs_now = runs_now and not block.co_flags & inspect.CO_OPTIMIZED
        bound: set[str] = set()  # a module or class body reads its own name once it has bound it
        for step in dis.get_instructions(block):
            if step.opname == "STORE_NAME":
                bound.add(step.argval)
            elif step.opname == "STORE_GLOBAL":
                stored_later.add(step.argval)
            elif step.opname in _LOADS and step.argval not in bound:
                read.add(step.argval)
                read_now.update({step.argval} if runs_now else ())
        blocks += [(part, runs_now) for part in block.co_consts if isinstance(part, CodeType)]
    stored = frozenset(step.argval for step in dis.get_instructions(code) if step.opname == "STORE_NAME")
    return Names(stored, frozenset(stored_later), frozenset(read), frozenset(read_now))


def compiled(node: ast.stmt, filename: str, features: frozenset[str]) -> CodeType:
    """The code of one statement, under the given `from __future__` features; notebooks may await at their top."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    for feature in features:
        flags |= getattr(__future__, feature).compiler_flag
    module = ast.Module(body=[node], type_ignores=[])
    code: CodeType = compile(module, filename, "exec", flags=flags, dont_inherit=True)
    return code


def future_names(node: ast.stmt) -> list[str]:
    """The names that a `from __future__ import ...` statement imports; none for any other statement."""
    if isinstance(node, ast.ImportFrom) and node.module == "__future__" and node.level == 0:
        return [alias.name for alias in node.names]
    return []


def first_line(node: Definition) -> int:
    """The line on which a definition starts, decorators included: what its code object says."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def same_scope(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, except the insides of functions and classes."""
    pending = [node]
    while pending:
        each = pending.pop()
        yield each
        if not isinstance(each, Definition | ast.Lambda):
            pending += reversed(list(ast.iter_child_nodes(each)))


def statements_of(text: SourceText, features: frozenset[str]) -> Iterator[Statement]:
    """The statements of a module in their order, without `from __future__` and `if __name__ == "__main__":`.

    Args:
        text: the module, or a cell.
        features: the `from __future__` features in force.
    """
    for node in text.tree.body:
        yield from _parts(node, text, features)


def statement_of(node: ast.stmt, text: SourceText, features: frozenset[str]) -> Statement:
    """One whole statement of a text, at its top or further in; `text` of the result stands at the left margin."""
    names = names_of(compiled(node, text.filename, features))
    scope = list(same_scope(node))
    imports = [each for each in ast.walk(node) if isinstance(each, ast.ImportFrom)]
    stars = {name for each in scope if isinstance(each, ast.ImportFrom) for name in _star_names(each, text.package)}
    stores = [each for each in scope if isinstance(getattr(each, "ctx", None), ast.Store | ast.Del)]
    calls = [each.value.func for each in scope if isinstance(each, ast.Expr) and isinstance(each.value, ast.Call)]
    return Statement(
        node=node,
        text=_written(node, text),
        binds=names.stored | stars,
        names=names,
        hints=_annotation_names(node),
        changes=frozenset(root for each in stores if (root := _root(each))),
        calls=frozenset(root for each in calls if (root := _root(each))),
        relative=next((ast.unparse(each) for each in imports if each.level), ""),
    )


def _parts(node: ast.stmt, text: SourceText, features: frozenset[str]) -> Iterator[Statement]:
    if future_names(node) or _is_main_guard(node):
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from _import_parts(node, text.package)
    elif isinstance(node, ast.If) and not node.orelse and _root_path(node.test)[-1:] == ["TYPE_CHECKING"]:
        test = ast.copy_location(ast.Expr(node.test), node.test)
        condition = names_of(compiled(test, text.filename, features))
        for part in (part for below in node.body for part in _parts(below, text, features)):
            # never run: what it reads are hints, and a relative import does no harm
            hints = part.hints | part.names.read
            yield replace(part, node=node, names=condition, hints=hints, guard=ast.unparse(node.test), relative="")
    else:
        yield statement_of(node, text, features)


def _import_parts(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[Statement]:
    """One statement a name, so that only those in use are written; a star gives one for each of its names."""
    for alias in node.names:
        for name in sorted(_star_names(node, package)) if alias.name == "*" else [alias.name]:
            single = ast.alias(name, alias.asname)
            if isinstance(node, ast.Import):
                part: ast.Import | ast.ImportFrom = ast.Import([single])
            else:
                part = ast.ImportFrom(node.module, [single], node.level)
            bound = alias.asname or (name.split(".")[0] if isinstance(node, ast.Import) else name)
            text = ast.unparse(part)
            relative = text if isinstance(node, ast.ImportFrom) and node.level else ""
            yield Statement(node, text, frozenset({bound}), relative=relative)


def _star_names(node: ast.Import | ast.ImportFrom, package: str) -> set[str]:
    """What `from m import *` binds: the module is there, since the class's own module ran."""
    if isinstance(node, ast.Import) or node.names[0].name != "*":
        return set()
    name = "." * node.level + (node.module or "")
    try:
        module = sys.modules.get(importlib.util.resolve_name(name, package))
    except ImportError:
        return set()
    public = [each for each in vars(module) if not each.startswith("_")] if module else []
    return set(getattr(module, "__all__", public))


def _is_main_guard(node: ast.stmt) -> bool:
    if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
        return False
    return {ast.unparse(part) for part in (node.test.left, *node.test.comparators)} == {"__name__", "'__main__'"}


def _root_path(node: ast.AST) -> list[str]:
    """`["a", "b"]` of `a.b`, through subscripts; nothing of anything else."""
    if isinstance(node, ast.Attribute):
        below = _root_path(node.value)
        return [*below, node.attr] if below else []
    if isinstance(node, ast.Subscript):
        return _root_path(node.value)
    return [node.id] if isinstance(node, ast.Name) else []


def _root(node: ast.AST) -> str | None:
    """`a` of `a.b` and of `a[c].d`; nothing of a bare `a`."""
    path = _root_path(node)
    return path[0] if path and not isinstance(node, ast.Name) else None


def _annotation_names(node: ast.AST) -> frozenset[str]:
    """Names in the annotations of a statement, in quotes or not."""
    found: set[str] = set()
    pending: list[ast.AST] = []
    for below in ast.walk(node):
        pending += [part for key in ("annotation", "returns") if isinstance(part := getattr(below, key, None), ast.AST)]
    while pending:
        part = pending.pop()
        if isinstance(part, ast.Subscript) and _root_path(part.value)[-1:] == ["Literal"]:
            pending.append(part.value)  # what is in the brackets are values
            continue
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            pending += _quoted_annotation(part.value)
        pending += ast.iter_child_nodes(part)
    return frozenset(found)


def _quoted_annotation(text: str) -> Sequence[ast.AST]:
    try:
        return [ast.parse(text.strip(), mode="eval")]
    except (SyntaxError, ValueError):
        return []  # words, as in Annotated[float, "metres per second"]


def _written(node: ast.stmt, text: SourceText) -> str:
    """The text of a statement as it was typed, with the comment lines right above it."""
    lines = text.source.split("\n")
    start = (first_line(node) if isinstance(node, Definition) else node.lineno) - 1
    end = node.end_lineno or node.lineno
    before = lines[start].encode()[: node.col_offset].strip()
    after = lines[end - 1].encode()[node.end_col_offset :].strip()
    if (before and start == node.lineno - 1) or (after and not after.startswith(b"#")):
        return ast.get_source_segment(text.source, node) or ast.unparse(node)  # shares its lines with another
    if node.col_offset:
        moved = textwrap.dedent("\n".join(lines[start:end]))
        return moved if _parses_as(moved, node) else ast.unparse(node)  # not so with strings of several lines
    while start > 0 and lines[start - 1].startswith("#") and not lines[start - 1].startswith(("#!", "# -*-")):
        start -= 1
    return "\n".join(lines[start:end])


def _parses_as(text: str, node: ast.stmt) -> bool:
    try:
        return ast.dump(ast.Module([node], [])) == ast.dump(ast.parse(text))
    except SyntaxError:
        return False
