"""`model.fit`, `evaluate` and `predict` over pods: what they take from the model, what they give back, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitfount_model import BitfountSchema, DataStructure, PyTorchBitfountModel, load_model_class
from bitfount_model.data import CSVSource
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.early_stopping import EarlyStopping
from tests.flows.federated.site import Site

Build = Callable[..., PyTorchBitfountModel]


@pytest.fixture
def build(site: Site) -> Build:
    """A model of the site's class."""
    cls = load_model_class(site.folder / "model.py")

    def call(**arguments: Any) -> PyTorchBitfountModel:
        given = {"epochs": 2, "batch_size": 16, "seed": 5, "datastructure": DataStructure(target="target")}
        return cls(schema=BitfountSchema(), **{**given, **arguments})

    return call


@pytest.fixture
def options(site: Site, home: Path, prefect_url: str) -> dict[str, Any]:
    """For pods that run in this process."""
    return {
        "pods": [site.folder / f"{pod}.yaml" for pod in site.names],
        "home": home,
        "pod_identifiers": list(site.names),
    }


def test_after_fit_the_model_holds_what_was_trained(
    build: Build, options: dict[str, Any], site: Site, tmp_path: Path
) -> None:
    for pod in site.names:
        site.write_pod(pod, policy={"predictions_may_leave": True})
    out = tmp_path / "final.pt"
    model = build(width=12)

    stats = model.fit(**options, model_out=out)

    assert stats is not None and all(
        isinstance(value, str) and len(value.split(".")[1]) == 4 for value in stats.values()
    )
    saved = build(width=12)
    saved.schema = model.schema
    saved.initialise_model()
    saved.deserialize(out)
    for name, value in model.get_param_states().items():
        assert torch.equal(value, saved.get_param_states()[name]), name
    predicted = model.predict(**options, pretrained_file=out)
    here = model.predict(CSVSource(site.folder / "bob.csv"))
    assert isinstance(predicted, dict) and set(predicted) == set(site.names)
    np.testing.assert_array_equal(np.stack(predicted["bob"]), here.preds)
    tested = model.evaluate(**options, pretrained_file=out)
    assert isinstance(tested, dict) and 0.0 <= tested["AUC"] <= 1.0


def test_the_same_job_id_goes_on_and_other_hyperparameters_make_another_job(
    build: Build, options: dict[str, Any]
) -> None:
    first = build().fit(**options, job_id="mine", lr=0.01)
    assert build().fit(**options, job_id="mine", lr=0.01) == first
    with pytest.raises(ConfigurationError, match="belongs to a job with other settings"):
        build().fit(**options, job_id="mine", lr=0.02)


def test_a_secure_sum_gives_the_plain_jobs_parameters(build: Build, options: dict[str, Any]) -> None:
    plain, secure = build(), build()
    plain.fit(**options, job_id="plain")
    secure.fit(**options, job_id="secure", secure_aggregation=True)
    found, wanted = secure.get_param_states(), plain.get_param_states()
    for name, value in wanted.items():
        assert (found[name].double() - value.double()).abs().max() <= 2**-25, name


def test_settings_of_the_protocol_are_honoured(build: Build, options: dict[str, Any], home: Path) -> None:
    stopping = EarlyStopping("AUC", patience=1, minimum_change=10.0)
    build(epochs=6).fit(
        **options,
        job_id="stops",
        early_stopping=stopping,
        aggregator={"optimiser": "FedAvgM", "weighted": False},
        epochs_between_parameter_updates=2,
        auto_eval=False,
    )
    assert len(list((home / "jobs" / "stops" / "rounds").glob("?????.json"))) == 2
    assert not (home / "jobs" / "stops" / "steps" / "evaluate.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"secure_aggregation": True, "quorum": 2}, "a secure sum needs at least 3 of both"),
        ({"pretrained_fil": "w.pt"}, "Did you mean the option 'pretrained_file'"),
        ({"pod_identifiers": ["ann", "bob"]}, "the files in `pods` are of"),
        ({"steps_between_parameter_updates": 2}, "counts in epochs"),
        ({"aggregator": "FedSomething"}, "Must be one of"),
        ({"aggregator": {"quorum": 1}}, "give quorum as options of their own"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    build: Build, options: dict[str, Any], home: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build().fit(**{**options, **given})
    assert not (home / "jobs").exists()


def test_pods_compute_the_metrics_that_are_named_and_refuse_those_that_there_are_not(
    build: Build, options: dict[str, Any]
) -> None:
    model = build()
    stats = model.fit(**options, metrics={"AUC": None})
    assert stats is not None and stats.keys() == {"AUC", "validation_loss"}
    with pytest.raises(ConfigurationError, match="no Luck"):
        model.fit(**options, metrics={"Luck": None})
    with pytest.raises(ConfigurationError, match="no Luck"):
        build().fit(**options, metrics={"Luck": None})


def test_untrained_weights_are_evaluated_with_a_warning_and_not_used_to_predict(
    build: Build, options: dict[str, Any]
) -> None:
    with pytest.warns(UserWarning, match="untrained weights"):
        build().evaluate(**options)
    with pytest.raises(ConfigurationError, match="pretrained_file"):
        build().predict(**options)
