"""A model file, its bytes or its registered name become the model class, or an error that says what to mend."""

from __future__ import annotations

import hashlib
import inspect
import json
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from bitfount_model import reference
from bitfount_model.data import BitfountSchema, DataStructure
from bitfount_model.errors import ConfigurationError, ModelFileError
from bitfount_model.model import PyTorchBitfountModel
from bitfount_model.reference import REGISTRY_GROUP, BitfountModelReference, load_model_class
from bitfount_model.source_code import module_source

NET = '''\
from __future__ import annotations

from typing import Any

import torch
from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn
from torch import nn
from torch.nn import functional as F

HIDDEN = 8
LAYERS = {"relu": nn.ReLU}
LAYERS["tanh"] = nn.Tanh
UNUSED = 1


def block(inputs: int, activation: str) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), LAYERS[activation]())


class Steps:
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"validation_loss": self.training_step(batch, batch_idx)}

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        return {"predictions": self(x).softmax(1), "targets": y}


class Net(Steps, PyTorchClassifierMixIn, PyTorchBitfountModel):
    """Ein Netz: 模型."""

    def __init__(self, activation: str = "relu", lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation = activation
        self.lr = lr

    def create_model(self) -> nn.Module:
        return nn.Sequential(block(self.datastructure.input_size, self.activation), nn.Linear(HIDDEN, self.n_classes))

    def forward(self, x: Any) -> Any:
        x, sup = x
        return self._model(x)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)
'''

TRAIN = """\
import json, sys
import numpy as np, pandas as pd
from bitfount_model.data import BitfountSchema, DataFrameSource, DataStructure
from bitfount_model.reference import BitfountModelReference

rows = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
rows["y"] = (rows.a > 0).astype(int)
schema = BitfountSchema()
schema.generate_full_schema(rows, force_stypes={"categorical": ["y"]})
ref = BitfountModelReference(sys.argv[1], DataStructure(target="y"), schema, hyperparameters={"lr": 0.2})
model = ref.build(epochs=2, seed=1, activation="tanh")
model.fit(DataFrameSource(rows))
if len(sys.argv) > 2:
    type(model).serialize_model_source_code(sys.argv[2])
print(json.dumps([model.val_stats, {k: v.tolist() for k, v in model.get_param_states().items()}]))
"""

STUB = """\
from bitfount_model.model import PyTorchBitfountModel

class {name}(PyTorchBitfountModel):
    def create_model(self): ...
    def forward(self, x): ...
    def configure_optimizers(self): ...
    def training_step(self, batch, batch_idx): ...
    def validation_step(self, batch, batch_idx): ...
    def test_step(self, batch, batch_idx): ...
"""


def stub(*names: str, tail: str = "") -> bytes:
    return ("\n".join(STUB.format(name=name) for name in names) + textwrap.dedent(tail)).encode()


@pytest.fixture
def schema() -> BitfountSchema:
    return BitfountSchema()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "model.py") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refusal(path_or_source: Any, class_name: str | None = None) -> str:
    before = dict(sys.modules)
    with pytest.raises(ModelFileError) as caught:
        load_model_class(path_or_source, class_name)
    left = {name for name in sys.modules.keys() - before.keys() if name.startswith("bitfount_model_source")}
    assert len(left) <= 1  # the module stays only where it ran to its end
    return str(caught.value)


# Loading


def test_a_model_trains_the_same_from_its_file_and_from_its_written_source_in_fresh_interpreters(
    tmp_path: Path,
) -> None:
    original, written, script = tmp_path / "net.py", tmp_path / "it's; written.py", tmp_path / "train.py"
    original.write_text(NET, encoding="utf-8")
    script.write_text(TRAIN)

    def train(*arguments: Path) -> Any:
        done = subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=250
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().split("\n")[-1])

    first = train(original, written)
    text = written.read_text(encoding="utf-8")
    assert text.startswith("from __future__ import annotations\n")
    assert "HIDDEN = 8" in text and "def block" in text and "class Steps" in text and "UNUSED" not in text
    original.unlink()
    assert train(written) == first
    assert len(first[0]) == 2


def test_a_file_its_path_as_text_and_its_bytes_give_the_class(file: Callable[..., Path]) -> None:
    path = file(NET)
    for given in (path, str(path), path.read_bytes()):
        cls = load_model_class(given)
        assert cls.__name__ == "Net" and issubclass(cls, PyTorchBitfountModel)
        assert cls.__doc__ == "Ein Netz: 模型."


def test_the_class_can_be_inspected_and_its_source_written(file: Callable[..., Path]) -> None:
    for given in (file(NET), NET.encode()):
        cls = load_model_class(given)
        assert "def create_model" in inspect.getsource(cls)
        assert inspect.getmodule(cls) is sys.modules[cls.__module__]
        again = load_model_class(module_source(cls).encode())
        assert module_source(again) == module_source(cls)


def test_loading_again_gives_a_new_class_and_no_further_module(file: Callable[..., Path]) -> None:
    path = file(stub("Net", tail="\nloaded = []\n"))
    first = load_model_class(path)
    count = len(sys.modules)
    classes = {id(cls): cls for cls in (load_model_class(path) for _ in range(20))}
    assert len(sys.modules) == count and len(classes) == 20
    assert first not in classes.values()


def test_an_edited_file_is_run_as_edited_and_leaves_no_bytecode(file: Callable[..., Path], tmp_path: Path) -> None:
    assert load_model_class(file(stub("Net", tail="Net.size = 1\n"))).size == 1  # type: ignore[attr-defined]
    assert load_model_class(file(stub("Net", tail="Net.size = 2\n"))).size == 2  # type: ignore[attr-defined]
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


def test_a_file_that_fails_leaves_an_earlier_module_in_place(tmp_path: Path) -> None:
    flag = tmp_path / "fail"
    source = stub("Net", tail=f"\nimport pathlib\nif pathlib.Path({str(flag)!r}).exists():\n    raise OSError('now')\n")
    cls = load_model_class(source)
    module = sys.modules[cls.__module__]
    flag.touch()
    assert "raised OSError" in refusal(source)
    assert sys.modules[cls.__module__] is module


@pytest.mark.parametrize(
    "name", ["with space.py", "quo'te\".py", "semi;touch x.py", "$(touch x).py", "模型.py", "noend"]
)
def test_any_file_name_is_only_a_file_name(name: str, file: Callable[..., Path], tmp_path: Path) -> None:
    path = file(stub("Net"), name)
    assert load_model_class(path).__name__ == "Net"
    assert BitfountModelReference(path).model_class().__name__ == "Net"
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "name", ["__import__('os').system('touch x')", "os.system", "Net; import os", "", "__builtins__"]
)
def test_any_class_name_is_only_looked_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(stub("Net"), name)
    assert repr(name) in message and "its model classes are ['Net']" in message
    assert list(tmp_path.iterdir()) == []


# What is refused


def test_a_missing_file_is_named_with_one_like_it(file: Callable[..., Path], tmp_path: Path) -> None:
    file(stub("Net"), "my_model.py")
    message = refusal(tmp_path / "my_modle.py")
    assert "cannot read the model file" in message and "No such file" in message
    assert f"Did you mean '{tmp_path / 'my_model.py'}'?" in message
    assert "Is a directory" in refusal(tmp_path)
    assert "null byte" in refusal("a\0b")


def test_a_syntax_error_is_shown_with_its_line(file: Callable[..., Path]) -> None:
    path = file("import math\n\ndef f(:\n    pass\n")
    assert refusal(path) == f"model file {str(path)!r} is not Python: line 3: def f(: (invalid syntax)."


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"x = '\xff'\n", "is not Python"),
        (b"# coding: nonsense\n", "unknown encoding: nonsense"),
        (b"x = 1\0\n", "is not Python"),
        (b"(" * 10_000, "is not Python"),
        (b"x = " + b"-" * 100_000 + b"1", "is not Python"),
        (b"PK\x03\x04" + bytes(range(128, 256)), "is not Python"),
        (b"\x80\x04\x95\x0b\x00", "is not Python"),
    ],
)
def test_bytes_that_are_no_python_are_refused(source: bytes, expected: str) -> None:
    assert expected in refusal(source)


def test_a_missing_package_is_named() -> None:
    message = refusal(b"import math\nfrom surely_not_there.deep import x\n")
    assert "needs the module 'surely_not_there', which is not here" in message
    assert "line 2: from surely_not_there.deep import x" in message and "install 'surely_not_there'" in message


def test_a_file_of_the_original_system_is_told_its_new_import() -> None:
    message = refusal(b"from bitfount import PyTorchBitfountModel\n")
    assert "line 1" in message and "write `from bitfount_model import ...`" in message


def test_a_missing_name_of_a_package_is_shown() -> None:
    message = refusal(b"from math import nonsense\n")
    assert "line 1: from math import nonsense" in message and "'math'" in message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\ny = x / 0", "raised ZeroDivisionError when it was loaded (line 2: y = x / 0): division by zero"),
        ("import sys\nsys.exit(3)", "raised SystemExit when it was loaded (line 2: sys.exit(3)): 3"),
        ("def f():\n    raise Warning('w')\nf()", "raised Warning when it was loaded (line 2: raise Warning('w')): w"),
        ("from . import x", "imports what is not there (line 1: from . import x)"),
    ],
)
def test_code_that_raises_is_shown_with_its_line(source: str, expected: str) -> None:
    assert expected in refusal(source.encode())


def test_the_users_own_traceback_is_kept(file: Callable[..., Path]) -> None:
    path = file("def deep():\n    return {}['key']\ndeep()\n")
    with pytest.raises(ModelFileError) as caught:
        load_model_class(path)
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    assert "return {}['key']" in "".join(traceback.format_exception(cause))


def test_an_interrupt_passes_and_leaves_no_module() -> None:
    before = set(sys.modules)
    with pytest.raises(KeyboardInterrupt):
        load_model_class(b"raise KeyboardInterrupt\n")
    assert set(sys.modules) == before


def test_a_file_without_a_model_class_says_what_to_write() -> None:
    assert "defines no subclass of PyTorchBitfountModel" in refusal(b"x = 1\n")
    imported = "defines no subclass of PyTorchBitfountModel"
    assert imported in refusal(b"from bitfount_model.model import PyTorchBitfountModel\n")


def test_several_model_classes_are_listed_and_one_can_be_named() -> None:
    source = stub("Small", "Large", tail="\nalias = Small\n")
    assert "defines 2 model classes, ['Large', 'Small']: say which as class_name" in refusal(source)
    assert load_model_class(source, "Large").__name__ == "Large"
    assert load_model_class(stub("Net", tail="\nalias = Net\n")).__name__ == "Net"


def test_a_named_class_must_be_a_model_class_of_the_file_itself() -> None:
    source = stub("Net", tail="\nfrom collections import OrderedDict\nsize = 1\n")
    for name in ("PyTorchBitfountModel", "OrderedDict", "size"):
        message = refusal(source, name)
        assert f"class {name!r} is wanted" in message and "not as a model class of its own" in message
    assert "the file does not define it" in refusal(source, "Nett")


def test_an_abstract_class_is_refused_with_the_methods_that_it_lacks() -> None:
    source = stub("Net").split(b"    def create_model")[0] + b"    def forward(self, x): ...\n"
    expected = (
        "Net lacks ['configure_optimizers', 'create_model', 'test_step', 'training_step', 'validation_step']:"
        " give it these methods."
    )
    assert expected in refusal(source)
    assert expected in refusal(source, "Net")


def test_an_abstract_base_beside_a_concrete_class_is_passed_over() -> None:
    source = (
        b"from bitfount_model.model import PyTorchBitfountModel\nclass Base(PyTorchBitfountModel):\n    size = 1\n"
    ) + stub("Net").replace(b"Net(PyTorchBitfountModel)", b"Net(Base)")
    assert load_model_class(source).__name__ == "Net"


# References


def test_the_digest_is_of_the_exact_bytes_and_runs_none_of_them(file: Callable[..., Path], tmp_path: Path) -> None:
    content = b"import pathlib\r\npathlib.Path(__file__).with_name('ran').touch()\r\n" + stub("Net")
    ref = BitfountModelReference(file(content))
    assert ref.source() == content
    assert ref.sha256 == hashlib.sha256(content).hexdigest()
    assert not (tmp_path / "ran").exists()
    ref.model_class()
    assert (tmp_path / "ran").exists()


def test_what_runs_is_what_was_hashed_though_the_file_changes(file: Callable[..., Path]) -> None:
    ref = BitfountModelReference(file(stub("Approved")))
    digest = ref.sha256
    file(stub("Swapped"))
    assert ref.model_class().__name__ == "Approved" and ref.sha256 == digest
    assert ref.model_class() is ref.model_class()


def test_build_passes_hyperparameters_and_lets_the_call_override(file: Callable[..., Path], schema: Any) -> None:
    hyperparameters = {"lr": 0.5, "epochs": 1, "multilabel": False, "batch_size": 4}
    ref = BitfountModelReference(file(NET), DataStructure(target="y"), schema, hyperparameters=hyperparameters)
    model: Any = ref.build(batch_size=8)
    assert (model.lr, model.epochs, model.batch_size, model.schema) == (0.5, 1, 8, schema)
    assert hyperparameters == {"lr": 0.5, "epochs": 1, "multilabel": False, "batch_size": 4}
    other = DataStructure(target="z")
    assert ref.build(datastructure=other).datastructure == other


def test_unknown_hyperparameters_are_all_listed_with_what_is_like_them(file: Callable[..., Path], schema: Any) -> None:
    ref = BitfountModelReference(file(NET), DataStructure(target="y"), schema, hyperparameters={"activaton": "relu"})
    with pytest.raises(ConfigurationError) as caught:
        ref.build(epoch=1)
    message = str(caught.value)
    assert "no argument 'activaton' (did you mean 'activation'?)" in message
    assert "no argument 'epoch' (did you mean 'epochs'?)" in message
    assert "'multilabel'" in message and "'param_clipping'" in message  # of the bases, through **kwargs


def test_arguments_that_are_missing_or_not_passed_on_are_listed(file: Callable[..., Path]) -> None:
    init = b"""
    def __init__(self, datastructure, schema, lr):
        super().__init__(datastructure, schema, epochs=1)
"""
    ref = BitfountModelReference(file(stub("Net") + init))
    with pytest.raises(ConfigurationError) as caught:
        ref.build(epochs=3)
    for part in ("no argument 'epochs'", "'datastructure' is missing", "'schema' is missing", "'lr' is missing"):
        assert part in str(caught.value)
    model = ref.build(DataStructure(target="y"), BitfountSchema(), lr=1)
    assert model.epochs == 1


def test_the_models_own_checks_speak_for_themselves(file: Callable[..., Path], schema: Any) -> None:
    with pytest.raises(ValueError, match="one and only one of epochs and steps"):
        BitfountModelReference(file(NET), DataStructure(target="y"), schema).build()


def test_a_class_is_named_where_a_file_has_several(file: Callable[..., Path]) -> None:
    path = file(stub("Small", "Large"))
    assert BitfountModelReference(path, class_name="Small").model_class().__name__ == "Small"
    with pytest.raises(ModelFileError, match="2 model classes"):
        BitfountModelReference(path).model_class()


# Registries


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int | str | None]]]:
    """Declares entry points, as installed distributions do, and records what is asked of the registry."""
    asked: list[tuple[str, int | str | None]] = []

    def registry(name: str, version: int | str | None) -> bytes:
        asked.append((name, version))
        return stub(f"Version{version}")

    def declare(*values: str) -> list[tuple[str, int | str | None]]:
        points = EntryPoints(EntryPoint(value, value, REGISTRY_GROUP) for value in values)
        monkeypatch.setattr(reference, "entry_points", lambda *, group: points.select(group=group))
        return asked

    monkeypatch.setitem(sys.modules, "a_registry", type(sys)("a_registry"))
    monkeypatch.setattr(sys.modules["a_registry"], "fetch", registry, raising=False)
    monkeypatch.setattr(sys.modules["a_registry"], "wrong", lambda name, version: "text", raising=False)
    return declare


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("churn", None, ("churn", None)),
        ("churn@champion", None, ("churn", "champion")),
        ("churn", 3, ("churn", 3)),
        ("churn", 0, ("churn", 0)),
        ("Churn model-2.b", None, ("Churn model-2.b", None)),
        ("team/churn", 2, ("team/churn", 2)),
    ],
)
def test_a_name_is_resolved_by_the_installed_registry(
    name: str, version: int | None, expected: tuple[str, Any], registries: Any
) -> None:
    asked = registries("a_registry:fetch")
    ref = BitfountModelReference(name, model_version=version)
    assert ref.path is None
    assert ref.model_class().__name__ == f"Version{expected[1]}"
    assert ref.sha256 == hashlib.sha256(ref.source()).hexdigest()
    assert asked == [expected]


def test_a_file_of_that_name_goes_before_the_registry(
    file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file(stub("Net"), "churn")
    monkeypatch.chdir(tmp_path)
    assert BitfountModelReference("churn").model_class().__name__ == "Net"


@pytest.mark.parametrize("name", ["models/churn.py", "churn.py", "./churn", "../churn", "a\\b; rm", ""])
def test_what_looks_like_a_path_is_a_missing_file_and_no_name(name: str, registries: Any, tmp_path: Path) -> None:
    asked = registries("a_registry:fetch")
    with pytest.raises(ModelFileError, match="cannot read the model file"):
        BitfountModelReference(name).source()
    assert asked == []


def test_without_a_registry_the_message_says_what_to_install(registries: Any) -> None:
    registries()
    with pytest.raises(ModelFileError, match=r"'churn' is no file here.*none is installed.*Install bitfount-flows"):
        BitfountModelReference("churn").source()


def test_several_registries_are_listed(registries: Any) -> None:
    registries("a_registry:fetch", "another:fetch")
    with pytest.raises(ModelFileError, match=r"2 are installed: \['a_registry:fetch', 'another:fetch'\]"):
        BitfountModelReference("churn").source()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("surely_not_there:fetch", "'surely_not_there:fetch' cannot be loaded: No module named"),
        ("a_registry:nothing", "'a_registry:nothing' cannot be loaded"),
        ("a_registry:wrong", "gave a str for model 'churn', not bytes"),
    ],
)
def test_a_registry_that_does_not_work_is_named(value: str, expected: str, registries: Any) -> None:
    registries(value)
    with pytest.raises(ModelFileError, match=expected):
        BitfountModelReference("churn").source()


def test_a_version_beside_an_alias_or_a_file_is_refused(file: Callable[..., Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"model_version=3 with 'churn@champion', an alias: give one"):
        BitfountModelReference("churn@champion", model_version=3)
    with pytest.raises(ConfigurationError, match=r"a file: give one"):
        BitfountModelReference(str(file(NET)), model_version=3)
