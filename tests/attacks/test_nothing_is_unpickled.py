"""Nothing from elsewhere is unpickled: a walk over the source, and bombs where others can write."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitfount_model.errors import BitfountError, ParameterError, StorageError
from bitfount_model.weights_files import read_weights
from tasks.federated import pod_worker
from tasks.federated.exchange import Exchange, delta_name, round_phase
from tasks.federated.rounds import Rounds
from tests.tasks.federated.by_hand import Told, federation_by_hand, update_of
from tests.tasks.federated.team import Team, plain_step

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("bitfount_model", "tasks", "flows") for path in (ROOT / room).rglob("*.py"))
UNPICKLING_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNPICKLING_CALLS = {"load_from_checkpoint", "load_model", "unpickle", "read_pickle", "Unpickler"}
READER_OF_WEIGHTS = ROOT / "bitfount_model" / "weights_files.py"


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def unpickles(path: Path, text: str | None = None) -> Iterator[str]:
    """What in a source unpickles, or could."""
    for node in ast.walk(ast.parse(text if text is not None else path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = {
                name.partition(".")[0] for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else names)
            }
            if modules & UNPICKLING_MODULES:
                yield f"{path.name}:{node.lineno}: imports {', '.join(sorted(modules & UNPICKLING_MODULES))}"
        if not isinstance(node, ast.Call):
            continue
        called, given = dotted(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        if called in ("torch.load", "torch.jit.load", "torch.package.PackageImporter"):
            yield f"{path.name}:{node.lineno}: calls {called}"
        if called.rpartition(".")[2] in UNPICKLING_CALLS:
            yield f"{path.name}:{node.lineno}: calls {called}"
        if called in ("np.load", "numpy.load") and not is_false(given.get("allow_pickle")):
            yield f"{path.name}:{node.lineno}: calls np.load that may unpickle"
        if (
            called == "flow"
            and not is_false(given.get("persist_result"))
            and not is_json(given.get("result_serializer"))
        ):
            yield f"{path.name}:{node.lineno}: a flow whose result is not JSON"


def is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def is_json(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value == "json"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import joblib as j",
        "torch.load(file)",
        "Net.load_from_checkpoint(path)",
        "mlflow.pytorch.load_model(uri)",
        "pd.read_pickle(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "flow(name='x')",
        "flow(name='x', persist_result=True)",
    ],
)
def test_the_walk_finds(text: str) -> None:
    assert list(unpickles(Path("source.py"), text))


def test_the_source_unpickles_nothing_but_in_the_one_reader_of_state_dicts() -> None:
    found = [each for path in SOURCES if path != READER_OF_WEIGHTS for each in unpickles(path)]
    assert len(SOURCES) > 150
    assert found == []


def test_the_one_reader_leaves_it_to_the_caller_and_its_caller_says_no() -> None:
    """`torch.load` is there once, with `weights_only` as it was asked, which `deserialize` defaults to True."""
    tree = ast.parse(READER_OF_WEIGHTS.read_text())
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and dotted(node.func).startswith("torch.load")
    ]
    assert len(calls) == 1
    assert "weights_only" in {keyword.arg for keyword in calls[0].keywords}
    used = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and dotted(node).startswith("pickle.")
    }
    assert used == {"UnpicklingError"}
    model = ast.parse((ROOT / "bitfount_model" / "model.py").read_text())
    (deserialize,) = [
        node for node in ast.walk(model) if isinstance(node, ast.FunctionDef) and node.name == "deserialize"
    ]
    named = dict(
        zip([argument.arg for argument in deserialize.args.kwonlyargs], deserialize.args.kw_defaults, strict=True)
    )
    positional = deserialize.args.args[-len(deserialize.args.defaults) :] if deserialize.args.defaults else []
    named |= dict(zip([argument.arg for argument in positional], deserialize.args.defaults, strict=True))
    default = named["weights_only"]
    assert isinstance(default, ast.Constant) and default.value is True


def bomb(marker: Path) -> bytes:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (marker,)

    return pickle.dumps(Bomb(), protocol=2)


def test_a_bomb_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(bomb(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()


def test_bombs_in_the_exchange_do_not_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, content = tmp_path / "marker", bomb(tmp_path / "marker")
    federation = federation_by_hand(Team(tmp_path), Told(), quorum=4)
    exchange, rounds = federation.exchange, Rounds(federation)
    rounds.open()
    for pod in ("ann", "bob", "cat", "dan"):
        exchange.put_update(update_of(pod, rounds.state.parameters, seed=1))
    phase = round_phase(1)
    note = exchange.update_note(phase, "ann")
    assert note is not None
    exchange.store.put(f"{phase}/updates/eve.json", content)
    record = rounds.aggregate()
    assert set(record.missing) == {"eve"}

    monkeypatch.setattr(pod_worker, "step", plain_step)
    team = Team(tmp_path / "pods")
    joined = team.initialised()
    weights = Rounds(joined).weights
    joined.exchange.store.delete(weights.name)
    joined.exchange.store.put(weights.name, content)
    with pytest.raises(BitfountError):
        Exchange(joined.exchange.url).weights(weights)  # as a pod elsewhere reads them
    joined.exchange.store.put(delta_name(phase, "ann", "0" * 64), content)
    assert not marker.exists()


def test_a_bomb_as_a_weights_file_does_not_go_off(tmp_path: Path) -> None:
    with pytest.raises((ParameterError, StorageError)):
        read_weights(bomb(tmp_path / "marker"), None, True)
    assert not (tmp_path / "marker").exists()
