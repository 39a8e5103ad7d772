"""What a class needs is written out with it, and what is written runs on its own in a clean interpreter."""

from __future__ import annotations

import ast
import linecache
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from bitfount_model.errors import SourceCodeError, StorageError
from bitfount_model.source_code import module_source, write_module_source

Importer = Callable[..., ModuleType]


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Importer:
    """Writes a file and imports it, as a user's `import my_models` does."""

    def load(text: str, name: str = "my_models", package: str = "") -> ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        spec = spec_from_file_location(f"{package}.{name}" if package else name, path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs cells as IPython does: each compiled under a name of its own, known to linecache alone, in `__main__`."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    before = dict(linecache.cache)

    def run(*cells: str, name: str = "/tmp/ipykernel_4711/{}.py") -> dict[str, Any]:
        flags = 0
        for number, cell in enumerate(cells, start=1):
            text = textwrap.dedent(cell)
            filename = name.format(1000 + number)
            linecache.cache[filename] = (len(text), None, [f"{line}\n" for line in text.splitlines()], filename)
            code = compile(text, filename, "exec", flags=flags, dont_inherit=True)
            assert isinstance(code, CodeType)
            flags |= code.co_flags & 0x1000000  # from __future__ import annotations holds for the cells after it
            exec(code, main.__dict__)
        return main.__dict__

    yield run
    linecache.cache.clear()
    linecache.cache.update(before)


def alone(source: str, tmp_path: Path, check: str) -> str:
    """Runs the written module in a clean interpreter, then `check` beside it; gives what was printed."""
    folder = tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)
    (folder / "written.py").write_text(source, encoding="utf-8")
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\nfrom written import *\nimport written\n{check}"
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{done.stderr}\n{source}"
    return done.stdout.strip()


MODULE = '''\
"""A file as users write them."""
from __future__ import annotations

import json
import math, os as operating_system
import xml.dom
import xml.etree.ElementTree
from collections import OrderedDict, defaultdict as dd
from functools import (
    lru_cache,
    partial,  # not used
)
from typing import TYPE_CHECKING, Any

try:
    import surely_not_installed as fast
except ImportError:
    fast = None

if TYPE_CHECKING:
    from decimal import Decimal
    from fractions import Fraction

RATE = 0.5; UNUSED = json.dumps({})
SIZES = [1, 2]
SIZES.append(3)
TABLE = {"a": 1}
TABLE["b"] = 2
for letter in "cd":
    TABLE[letter] = 3
SECRET = operating_system.environ.get("SURELY_NOT_SET")


def unused() -> None:
    """Says nothing."""


# the helper of a helper
def square(x):
    return x * x


@lru_cache(maxsize=None)
def helper(x, times=RATE):
    return square(x) * times


def plus_one(function):
    def inner(*args):
        return function(*args) + 1
    return inner


class Named:
    def name(self):
        return type(self).__name__


class Base(Named):
    size = len(SIZES)


class Model(Base):
    """A model: with text in several lines
and at the left margin, "quotes", and unicode: schön, 模型."""

    scale = RATE
    double = scale * 2
    tags = [math.floor(s) for s in SIZES]

    def __init__(self, value: Decimal | None = None, sizes=tuple(SIZES)):
        self.sizes = sizes
        self.counts: dd[str, int] = dd(int)

    @plus_one
    def run(self, x: "OrderedDict[str, int]") -> Any:
        def nested(y):
            return [helper(z) for z in (y, *(len(TABLE) for _ in range(1)))]
        return sum(nested(x)) + (fast is None) + len(xml.etree.ElementTree.Element("a"))

    def again(self):
        return super(Model, self).name()


def main():
    Model.serialize("never")


if __name__ == "__main__":
    main()
'''


def test_the_written_module_gives_the_same_answers_in_a_clean_interpreter(imported: Importer, tmp_path: Path) -> None:
    cls = imported(MODULE).Model
    source = module_source(cls)
    check = "m = Model(); print(m.run(3), m.again(), m.size, m.double, m.tags, m.sizes, Model.__doc__)"
    m = cls()
    expected = f"{m.run(3)} {m.again()} {m.size} {m.double} {m.tags} {m.sizes} {cls.__doc__}"
    assert alone(source, tmp_path, check) == expected


def test_the_future_line_constants_and_helpers_are_there_and_nothing_else_is(imported: Importer) -> None:
    source = module_source(imported(MODULE).Model)
    assert source.startswith("from __future__ import annotations\n")
    tree = ast.parse(source)
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert names == {"square", "helper", "plus_one", "Named", "Base", "Model"}
    for gone in (
        "UNUSED",
        "json",
        "SECRET",
        "partial",
        "Fraction",
        "unused",
        "__main__",
        "def main",
        "operating_system",
    ):
        assert gone not in source
    for kept in ("# the helper of a helper", "    from decimal import Decimal", "RATE = 0.5", "import OrderedDict"):
        assert kept in source


def test_writing_is_deterministic_and_stable_when_what_was_written_is_written_again(imported: Importer) -> None:
    first = module_source(imported(MODULE).Model)
    again = module_source(imported(first, name="again").Model)
    assert first == module_source(imported(MODULE).Model) == again


def test_the_class_of_the_defect_table_runs_on_its_own(imported: Importer, tmp_path: Path) -> None:
    """Future line, module constant, helper function: all three were left out by the original."""
    module = imported(
        """\
        from __future__ import annotations
        from math import sqrt
        HIDDEN = 16
        def width(n: NotImportedAnywhere) -> int:
            return int(sqrt(n)) * HIDDEN
        class Model:
            def forward(self, x: AlsoNot):
                return width(x)
        """
    )
    target = tmp_path / "model; touch pwned.py"
    write_module_source(module.Model, target)
    assert alone(target.read_text(encoding="utf-8"), tmp_path, "print(Model().forward(4))") == "32"
    assert [path.name for path in tmp_path.iterdir() if "pwned" in path.name] == [target.name]


@pytest.mark.parametrize(
    "name",
    [
        "with space.py",
        "quo'te\".py",
        "semi;colon && echo.py",
        "$(touch pwned).py",
        "`touch pwned`.py",
        "-rf.py",
        "模型 schön.py",
        "new\nline.py",
        "|pipe>.py",
        "%s{0}.py",
        "a" * 250 + ".py",
    ],
)
def test_any_file_name_is_only_a_file_name(
    name: str, imported: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = imported("class Model:\n    x = 1\n").Model
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_module_source(cls, name)
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text(encoding="utf-8") == "class Model:\n    x = 1\n"


def test_a_file_that_is_there_is_replaced_whole_or_left_alone(imported: Importer, tmp_path: Path) -> None:
    target = tmp_path / "out" / "model.py"
    target.parent.mkdir()
    target.write_text("old")
    bad = imported("class Model:\n    def f(self):\n        return nowhere\n").Model
    with pytest.raises(SourceCodeError, match="`nowhere`"):
        write_module_source(bad, target)
    assert target.read_text() == "old"
    write_module_source(imported("class Model: pass\n").Model, target)
    assert target.read_text() == "class Model: pass\n"
    assert list(target.parent.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_named(imported: Importer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_module_source(imported("class Model: pass\n").Model, tmp_path / "file" / "model.py")


# Imports


def test_extra_imports_are_written_and_supply_names(imported: Importer, tmp_path: Path) -> None:
    cls = imported("class Model:\n    def f(self):\n        return math.pi, deque((1,))\n").Model
    with pytest.raises(SourceCodeError, match=r"`deque`, `math`.*extra_imports"):
        module_source(cls)
    extra = ["import math", "from collections import deque, Counter", "from __future__ import annotations"]
    source = module_source(cls, extra)
    assert source.startswith(
        "from __future__ import annotations\n\nimport math\nfrom collections import deque, Counter\n"
    )
    assert alone(source, tmp_path, "print(Model().f())") == "(3.141592653589793, deque([1]))"


def test_an_extra_import_that_is_there_already_is_written_once(imported: Importer) -> None:
    cls = imported("import math\nclass Model:\n    pi = math.pi\n").Model
    assert module_source(cls, ["import math"]).count("import math") == 1


@pytest.mark.parametrize(
    "extra",
    [
        "import os; os.system('touch pwned')",
        "x = 1",
        "import",
        "",
        "from . import a",
        "from math import *",
        "\0",
        "1\nimport a",
    ],
)
def test_an_extra_import_that_is_anything_else_is_refused(extra: str, imported: Importer) -> None:
    with pytest.raises(SourceCodeError, match="extra import"):
        module_source(imported("class Model: pass\n").Model, [extra])


def test_a_star_import_becomes_the_names_in_use(imported: Importer, tmp_path: Path) -> None:
    cls = imported("from math import *\nfrom json import *\nclass Model:\n    x = floor(pi)\n    y = dumps({})\n").Model
    source = module_source(cls)
    assert "from math import floor, pi\n" in source and "from json import dumps\n" in source
    assert alone(source, tmp_path, "print(Model.x, Model.y)") == "3 {}"


def test_a_star_import_within_try_is_kept_whole(imported: Importer, tmp_path: Path) -> None:
    cls = imported(
        "try:\n    from math import *\nexcept ImportError:\n    pi = 3\nclass Model:\n    x = floor(pi)\n"
    ).Model
    assert alone(module_source(cls), tmp_path, "print(Model.x)") == "3"


@pytest.mark.parametrize(
    "text",
    [
        "from .layers import Block\nclass Model:\n    x = Block\n",
        "from .layers import *\nclass Model:\n    x = Block\n",
        "try:\n    from .layers import Block\nexcept ImportError:\n    Block = None\nclass Model:\n    x = Block\n",
        "class Model:\n    def f(self):\n        from .layers import Block\n        return Block\n",
    ],
)
def test_a_relative_import_in_use_is_refused_by_name(
    text: str, imported: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pkg", ModuleType("pkg"))
    layers = ModuleType("pkg.layers")
    layers.Block = int  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pkg.layers", layers)
    with pytest.raises(SourceCodeError, match=r"from \.layers import"):
        module_source(imported(text, package="pkg").Model)


def test_a_relative_import_that_is_not_used_or_only_in_annotations_does_no_harm(
    imported: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pkg", ModuleType("pkg"))
    layers = ModuleType("pkg.layers")
    layers.Block = layers.Other = int  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pkg.layers", layers)
    cls = imported(
        """\
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from .layers import Block
        if TYPE_CHECKING:
            from .layers import Other
        class Model:
            def f(self, x: Block, y: Other) -> int:
                return 1
        """,
        package="pkg",
    ).Model
    assert alone(module_source(cls), tmp_path, "print(Model().f(1, 2))") == "1"


# What counts as needed


def test_names_of_annotations_alone_are_kept_so_that_type_hints_resolve(imported: Importer, tmp_path: Path) -> None:
    cls = imported(
        """\
        from __future__ import annotations
        import typing as t
        from decimal import Decimal
        from fractions import Fraction
        from typing import Literal
        Pair = t.Tuple[int, int]
        train = print("must not run again")
        class Config: ...
        class Model:
            pair: Pair
            mode: Literal["train"]
            def f(self, x: "Decimal", *rest: Fraction, config: t.Optional["Config"] = None) -> None: ...
        """
    ).Model
    source = module_source(cls)
    assert "must not" not in source
    check = "import typing; print(sorted(typing.get_type_hints(Model.f)), *typing.get_type_hints(Model))"
    assert alone(source, tmp_path, check) == "['config', 'rest', 'return', 'x'] pair mode"


def test_names_that_python_scoping_makes_local_pull_nothing_in(imported: Importer, tmp_path: Path) -> None:
    cls = imported(
        """\
        i = j = k = e = f = name = total = print("must not run again")
        LIMIT = 2
        class Model:
            total = 0
            for i in range(LIMIT):
                total = total + i
            def run(self, k, *, f=lambda e: e + LIMIT):
                name = [j for j in range(k)]
                try:
                    raise ValueError
                except ValueError as e:
                    with open(__name__ and "/dev/null") as f2:
                        del e
                match name:
                    case [first, *others]:
                        return first, others, f(k)
        """
    ).Model
    source = module_source(cls)
    assert "must not" not in source
    assert alone(source, tmp_path, "print(Model().run(3), Model.total)") == "(0, [1, 2], 5) 1"


def test_a_class_body_that_reads_a_module_name_before_it_binds_it_gets_it(imported: Importer, tmp_path: Path) -> None:
    cls = imported("width = 3\nclass Model:\n    width = width + 1\n").Model
    assert alone(module_source(cls), tmp_path, "print(Model.width)") == "4"


def test_work_done_with_the_class_is_not_part_of_it(imported: Importer) -> None:
    cls = imported(
        """\
        CONFIG = {"a": 1}
        class Model:
            config = CONFIG
            runs = []
            def fit(self): self.runs.append(1)
        Model.extra = 5
        model = Model()
        model.fit()
        for CONFIG["seed"] in range(3):
            Model().fit()
        CONFIG.update(fitted=Model().fit())
        """
    ).Model
    source = module_source(cls)
    assert "Model()" not in source and "model.fit" not in source
    assert "Model.extra = 5" in source


def test_names_bound_by_if_with_walrus_global_and_augmented_assignment_are_found(
    imported: Importer, tmp_path: Path
) -> None:
    cls = imported(
        """\
        import contextlib
        import sys
        if sys.version_info > (3, 0):
            def decode(x): return x + OFFSET
        else:
            decode = None
        OFFSET = 1
        OFFSET += 1
        with contextlib.suppress(ValueError):
            SAFE = int("7")
        if (FOUND := OFFSET * 10): pass
        COUNT = 0
        a, (b, *c) = 1, (2, 3)
        class Model:
            def f(self):
                global COUNT, LATER
                COUNT += 1
                LATER = 4
                return decode(1), SAFE, FOUND, COUNT, LATER, c
        """
    ).Model
    assert alone(module_source(cls), tmp_path, "print(Model().f())") == "(3, 7, 20, 1, 4, [3])"


def test_metaclasses_decorators_keywords_and_dataclasses_are_followed(imported: Importer, tmp_path: Path) -> None:
    cls = imported(
        """\
        import dataclasses
        from abc import ABCMeta
        class Meta(ABCMeta):
            def __new__(mcls, name, bases, space, tag):
                return super().__new__(mcls, name, bases, {**space, "tag": tag})
        TAG = "t"
        FIELD = dataclasses.field(default=2)
        def register(cls):
            cls.registered = True
            return cls
        @register
        @dataclasses.dataclass
        class Model(metaclass=Meta, tag=TAG):
            x: int = FIELD
            @property
            def twice(self): return self.x * 2
            @staticmethod
            def s(): return TAG
            @classmethod
            def c(cls): return cls.s()
        """
    ).Model
    check = "print(Model().twice, Model.c(), Model.registered, Model.tag)"
    assert alone(module_source(cls), tmp_path, check) == "4 t True t"


def test_a_definition_that_is_replaced_before_it_is_used_is_left_out(imported: Importer, tmp_path: Path) -> None:
    module = imported(
        """\
        def helper(): return 1
        def helper(): return 2
        class Model:
            x = helper()
            def f(self): return helper()
        def helper(): return 3
        class Other: pass
        First = Model
        class Model(Other):
            pass
        """
    )
    source = module_source(module.First)
    assert "return 1" not in source and "Other" not in source
    assert alone(source, tmp_path, "print(Model.x, Model().f())") == "2 3"
    assert "helper" not in module_source(module.Model)


def test_an_import_that_is_repeated_is_written_once_and_submodules_all_are(imported: Importer, tmp_path: Path) -> None:
    cls = imported(
        """\
        import xml
        import xml.dom
        import xml.etree.ElementTree
        import math, math
        import math
        pi = math.pi
        def math(): return 1
        import math
        import xml.dom
        class Model:
            x = pi, math.e > 2, xml.etree.ElementTree.Element("a").tag
        """
    ).Model
    source = module_source(cls)
    counts = {name: source.count(f"import {name}\n") for name in ("xml", "xml.dom", "xml.etree.ElementTree", "math")}
    assert counts == {"xml": 1, "xml.dom": 1, "xml.etree.ElementTree": 1, "math": 2}
    assert alone(source, tmp_path, "print(Model.x)") == str(cls.x)


def test_a_long_history_and_deep_expressions_are_no_burden(notebook: Callable[..., dict[str, Any]]) -> None:
    cells = [f"def helper(): return {number}" for number in range(300)]
    cells += [f"class Model:\n    run = {number}\n    def f(self): return helper(), TERMS" for number in range(300)]
    space = notebook("TERMS = " + " + ".join(["1"] * 900), *cells)
    source = module_source(space["Model"])
    assert source.count("def helper") == source.count("class Model") == 1
    assert "return 299" in source and "run = 299" in source


def test_a_hostile_class_name_is_only_a_name(imported: Importer, tmp_path: Path) -> None:
    cls = imported("class Model:\n    def f(self): return 1\n").Model
    cls.__name__ = cls.__qualname__ = "Model: pass\nimport os; exec('raise')\nclass X"
    with pytest.raises(SourceCodeError, match="no statement `class Model: pass"):
        module_source(cls)


def test_statements_that_share_a_line_are_separated(imported: Importer, tmp_path: Path) -> None:
    cls = imported("é = 1; b = 'ß'; c = é  # three\nclass Model: x = b; y = c\n").Model
    source = module_source(cls)
    assert alone(source, tmp_path, "print(Model.x, Model.y)") == "ß 1"


def test_a_file_of_another_encoding_with_form_feeds_is_written_as_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "latin.py"
    path.write_bytes(
        "# -*- coding: latin-1 -*-\n\x0c\nX = 'é'\r\n\x0c\r\nclass Model:\r\n    def f(self): return X\r\n".encode(
            "latin-1"
        )
    )
    spec = spec_from_file_location("latin", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "latin", module)
    spec.loader.exec_module(module)
    assert alone(module_source(module.Model), tmp_path, "print(Model().f())") == "é"


# What cannot be written


def test_names_of_a_function_around_the_class_are_refused_by_name(imported: Importer) -> None:
    module = imported(
        """\
        rate = 5
        def make(rate, size):
            from json import dumps
            class Base: ...
            class Model(Base):
                width = size
                def f(self): return rate, dumps
            return Model
        """
    )
    with pytest.raises(SourceCodeError, match=r"`Base`, `dumps`, `rate`, `size` of the function `make`.*top level"):
        module_source(module.make(1, 2))


def test_a_class_within_a_function_that_uses_none_of_its_names_is_written(imported: Importer, tmp_path: Path) -> None:
    module = imported(
        '''\
        import math
        RATE = 2
        def outer():
            def make():
                class Model:
                    """Text
            with a smaller margin than the class
        and none."""
                    def f(self):
                        return super(Model, self).__init__() or math.floor(RATE)  # a comment
                return Model
            return make()
        '''
    )
    cls = module.outer()
    assert alone(module_source(cls), tmp_path, "print(Model().f(), Model.__doc__)") == f"2 {cls.__doc__}"


def test_a_class_within_a_class_is_refused(imported: Importer) -> None:
    with pytest.raises(SourceCodeError, match=r"Outer\.Model is defined within a class"):
        module_source(imported("class Outer:\n    class Model:\n        pass\n").Outer.Model)


def test_a_name_that_nothing_defines_is_named(imported: Importer) -> None:
    module = imported("class Model:\n    def f(self):\n        return lambda: [helper(x) for x in RATES]\n")
    module.helper = abs  # type: ignore[attr-defined]  # set from outside: no statement of the file makes it
    with pytest.raises(SourceCodeError, match="Model uses `RATES`, `helper`, which no statement"):
        module_source(module.Model)


def test_a_name_of_a_notebook_is_not_taken_for_a_builtin(imported: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.get_ipython", print, raising=False)
    with pytest.raises(SourceCodeError, match="`get_ipython`"):
        module_source(imported("class Model:\n    def f(self): get_ipython()\n").Model)


def test_files_beside_the_module_are_refused(imported: Importer) -> None:
    with pytest.raises(SourceCodeError, match=r"`__file__`.*do not travel"):
        module_source(imported("class Model:\n    folder = __file__\n").Model)


def test_a_file_that_changed_since_the_import_is_refused(imported: Importer, tmp_path: Path) -> None:
    cls = imported("class Model:\n    def f(self): return 1\n").Model
    (tmp_path / "my_models.py").write_text("import math\n\nclass Model:\n    def f(self): return math.pi\n")
    with pytest.raises(SourceCodeError, match="has changed since Model was made"):
        module_source(cls)


@pytest.mark.parametrize("make", ["type('Model', (), {})", "__import__('collections').namedtuple('Model', 'a')"])
def test_a_class_without_a_class_statement_is_refused(make: str, imported: Importer) -> None:
    cls = imported(f"Model = {make}\nModel.__module__ = __name__\n").Model
    with pytest.raises(SourceCodeError, match="no statement `class Model`"):
        module_source(cls)


def test_a_class_without_a_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    generated = "<attrs generated methods somewhere.Else>"
    monkeypatch.setitem(linecache.cache, generated, (6, None, ["a = 1\n"], generated))
    space: dict[str, Any] = {"__name__": "nowhere"}
    exec("class Model:\n    def f(self): pass", space)
    with pytest.raises(SourceCodeError, match=r"Model is not to be found.*notebook cell"):
        module_source(space["Model"])
    with pytest.raises(SourceCodeError, match="int is not to be found"):
        module_source(int)
    with pytest.raises(SourceCodeError, match="a class is wanted, got a str"):
        module_source("Model")  # type: ignore[arg-type]


def test_a_class_of_a_script_is_written_without_the_script_and_one_under_its_main_guard_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """\
            from bitfount_model.source_code import module_source
            RATE = 2
            class Model:
                def f(self): return RATE
            if __name__ == "__main__":
                class Late:
                    def f(self): return RATE
                print(module_source(Model), flush=True)
                module_source(Late)
            """
        )
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "SourceCodeError: Late is defined under `if __name__ == '__main__':`" in done.stderr
    assert alone(done.stdout, tmp_path, "print(Model().f())") == "2"
    assert "import" not in done.stdout


# Notebooks


@pytest.mark.parametrize("name", ["/tmp/ipykernel_4711/{}.py", "<ipython-input-{}-0a1b2c3d>", "<python-input-{}>"])
def test_a_class_of_a_notebook_is_written_with_what_other_cells_define(
    name: str, notebook: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    linecache.cache["<attrs generated init Model>"] = (
        1,
        None,
        ["RATE = 'of a tool'\n"],
        "<attrs generated init Model>",
    )
    linecache.cache["/tmp/ipykernel_0/1.py"] = (1, None, ["RATE = 'of another notebook'\n"], "/tmp/ipykernel_0/1.py")
    space = notebook(
        "from __future__ import annotations\nimport math\nimport json",
        "RATE = 2\nprint(end='a cell that is only run')",
        "class Base:\n    def area(self, x: Missing): return math.pi * x * RATE",
        "class Model(Base):\n    pass",
        "model = Model()\nmodel.area(1)",
        name=name,
    )
    source = module_source(space["Model"])
    assert source.startswith("from __future__ import annotations\n\nimport math\n")
    assert "json" not in source and "print" not in source
    assert float(alone(source, tmp_path, "print(Model().area(1))")) == space["Model"]().area(1)


def test_of_cells_that_ran_again_the_last_run_counts(notebook: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    space = notebook(
        "def helper(): return 'first'",
        "class Model:\n    def f(self): return helper() + 'first'",
        "class Model:\n    def f(self): return helper() + 'second'",
        "def helper(): return 'second'",
        "class Model:\n    def f(self): return helper() + 'third'",
    )
    source = module_source(space["Model"])
    assert "first" not in source and source.count("class Model") == 1
    assert alone(source, tmp_path, "print(Model().f())") == "secondthird"


def test_cells_that_never_compiled_are_passed_over(notebook: Callable[..., dict[str, Any]]) -> None:
    linecache.cache["/tmp/ipykernel_4711/1.py"] = (1, None, ["def broken(:\n"], "/tmp/ipykernel_4711/1.py")
    space = notebook("class Model:\n    def f(self): return 1")
    assert module_source(space["Model"]) == "class Model:\n    def f(self): return 1\n"


def test_a_cell_that_awaits_at_its_top_is_read_but_not_written(notebook: Callable[..., dict[str, Any]]) -> None:
    linecache.cache["/tmp/ipykernel_4711/1.py"] = (1, None, ["Y = await thing()\n"], "/tmp/ipykernel_4711/1.py")
    space = notebook("X = 1\nclass Model:\n    def f(self): return 1", "class Reader:\n    def f(self): return Y")
    assert "await" not in module_source(space["Model"])
    with pytest.raises(SourceCodeError, match="does not compile on its own"):
        module_source(space["Reader"])


def test_a_closure_in_a_notebook_is_refused(notebook: Callable[..., dict[str, Any]]) -> None:
    space = notebook(
        "def make(rate):\n    class Model:\n        def f(self): return rate\n    return Model\nM = make(1)"
    )
    with pytest.raises(SourceCodeError, match="`rate` of the function `make`"):
        module_source(space["M"])
