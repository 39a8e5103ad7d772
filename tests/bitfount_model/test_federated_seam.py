"""`pod_identifiers=[...]`: handed, with all that was given, to whatever package is installed for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitfount_model import DataFrameSource
from bitfount_model.errors import ConfigurationError
from tests.bitfount_model.models import classifier, table

CALLS = ("fit", "evaluate", "predict")

PACKAGE = """
import numpy as np

def fit(model, pod_identifiers, **options):
    model.given = (pod_identifiers, options)
    model.update_params({name: value * 0 for name, value in model.get_param_states().items()})
    return {"AUC": "0.9000"}

def evaluate(model, pod_identifiers, **options):
    model.given = (pod_identifiers, options)
    return {"AUC": 0.9}

def predict(model, pod_identifiers, **options):
    model.given = (pod_identifiers, options)
    return {name: [np.ones(2)] for name in pod_identifiers}
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that reaches pods, installed as any package is: a module and its entry points."""
    (tmp_path / "pods_for_tests.py").write_text(PACKAGE)
    metadata = tmp_path / "pods_for_tests-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pods-for-tests\nVersion: 1.0\n")
    lines = [f"{name} = pods_for_tests:{name}" for name in CALLS]
    (metadata / "entry_points.txt").write_text("\n".join(["[bitfount_model.federated]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pods_for_tests", raising=False)


@pytest.mark.usefixtures("installed")
def test_fit_passes_everything_on_and_leaves_the_final_weights_in_the_callers_model() -> None:
    model = classifier(epochs=2)
    model.initialise_model(DataFrameSource(table()))
    result = model.fit(
        pod_identifiers=["a", "b"],
        pretrained_file="w.pt",
        auto_eval=True,
        epochs_between_parameter_updates=2,
        learning_rate=0.5,
    )
    assert result == {"AUC": "0.9000"}
    assert model.given == (
        ["a", "b"],
        {
            "metrics": None,
            "pretrained_file": "w.pt",
            "auto_eval": True,
            "epochs_between_parameter_updates": 2,
            "learning_rate": 0.5,
        },
    )
    assert all(torch.equal(value, torch.zeros_like(value)) for value in model.get_param_states().values())


@pytest.mark.usefixtures("installed")
def test_evaluate_and_predict_pass_everything_on() -> None:
    model = classifier(epochs=2)
    assert model.evaluate(pod_identifiers=["a"], pretrained_file="w.pt") == {"AUC": 0.9}
    assert model.given == (["a"], {"pretrained_file": "w.pt"})
    assert {name: np.stack(rows).tolist() for name, rows in model.predict(pod_identifiers=["a"]).items()} == {
        "a": [[1.0, 1.0]]
    }


@pytest.mark.parametrize("call", CALLS)
def test_without_such_a_package_it_is_said_what_is_missing(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitfount_model.federated.GROUP", "bitfount_model.nothing_is_installed_here")
    with pytest.raises(ConfigurationError, match=f"{call} with pod_identifiers needs a package that reaches pods"):
        getattr(classifier(epochs=1), call)(pod_identifiers=["a"])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("pods", [[], ["a", "a"]], ids=str)
def test_no_pods_and_pods_named_twice_are_refused(call: str, pods: Any) -> None:
    with pytest.raises(ValueError, match="one pod or more, each once"):
        getattr(classifier(epochs=1), call)(pod_identifiers=pods)


@pytest.mark.parametrize("call", ["fit", "predict"])
def test_data_and_pods_together_are_refused(call: str) -> None:
    with pytest.raises(ValueError, match="and got both"):
        getattr(classifier(epochs=1), call)(DataFrameSource(table()), pod_identifiers=["a"])
