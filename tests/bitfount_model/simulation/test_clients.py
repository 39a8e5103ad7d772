"""A client's update: that of a pod with the same rows, to the last bit, with or without Lightning's Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bitfount_model.errors import ConfigurationError, DivergedError, ParameterError, TrainingError
from bitfount_model.reference import load_model_class
from bitfount_model.seeding import seeded
from bitfount_model.simulation.clients import Clients, ClientUpdate
from bitfount_model.simulation.partition import iid
from bitfount_model.simulation.slim_fit import reasons_for_trainer
from tests.bitfount_model.simulation.lab import MODEL, Lab, equal

CLIPPING = {"prime_q": 7, "precision": 5, "num_workers": 2}
HOOK = "    def on_before_optimizer_step(self, optimizer):\n        for p in self.parameters():\n            p.grad.mul_(0.5)\n"


def update_of(lab: Lab, client: int, round_number: int) -> ClientUpdate:
    with seeded(0):
        return lab.clients.update(client, round_number, lab.parameters)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": 5, "between_updates": 3},
        {"steps": 17, "between_updates": 5},
        {"proximal_mu": 0.3},
        {"param_clipping": CLIPPING},
    ],
    ids=str,
)
@pytest.mark.parametrize("source", [MODEL, MODEL + HOOK], ids=["slim", "trainer"])
def test_it_has_the_bits_of_a_pod_with_these_rows(source: str, settings: dict[str, Any]) -> None:
    lab = Lab(source=source, **settings)
    assert bool(lab.clients.uses_trainer) is (source != MODEL)
    before = {name: value.clone() for name, value in lab.parameters.items()}
    for client in (4, 1):
        pod = lab.pod(client)
        for round_number in (1, 2):
            mine, theirs = update_of(lab, client, round_number), pod.fit(round_number, lab.parameters)
            assert equal(mine.delta, theirs.delta)
            assert (mine.client, mine.weight, mine.train_loss) == (theirs.pod, theirs.weight, theirs.train_loss)
    assert equal(lab.parameters, before)


def test_it_depends_on_nothing_that_other_clients_did() -> None:
    first = update_of(Lab(), 3, 1)
    lab = Lab()
    for client, round_number in ((0, 1), (5, 2), (3, 3)):
        update_of(lab, client, round_number)
    assert equal(update_of(lab, 3, 1).delta, first.delta)


def with_method(text: str) -> str:
    return MODEL + "\n    " + text.replace("\n", "\n    ") + "\n"


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        (MODEL, []),
        (with_method("def on_validation_epoch_end(self):\n    pass"), []),
        (with_method("def helper(self):\n    return 1"), []),
        (with_method("def on_train_batch_end(self, *args):\n    pass"), ["it overrides on_train_batch_end"]),
        (with_method("def trainer_init(self):\n    return super().trainer_init()"), ["it overrides trainer_init"]),
        (with_method("def optimizer_step(self, *args):\n    pass"), ["it overrides optimizer_step"]),
        (with_method("def training_epoch_end(self, outputs):\n    pass"), ["it overrides training_epoch_end"]),
        (with_method("def helper(self):\n    return self.current_epoch"), ["it uses self.current_epoch"]),
        (with_method("def helper(self):\n    return [self.trainer for _ in (1,)]"), ["it uses self.trainer"]),
    ],
)
def test_what_needs_a_trainer_is_seen_in_the_class(source: str, reasons: list[str]) -> None:
    assert reasons_for_trainer(load_model_class(source.encode(), None)) == reasons


def test_two_optimisers_or_a_scheduler_need_a_trainer() -> None:
    optimiser = "torch.optim.Adam(self.parameters(), lr=0.05)"
    scheduled = f"(lambda o: ([o], [torch.optim.lr_scheduler.ExponentialLR(o, 0.5)]))({optimiser})"
    lab = Lab(source=MODEL.replace(f"return {optimiser}", f"return {scheduled}"))
    assert lab.clients.uses_trainer == ["configure_optimizers returns more than one optimiser"]
    assert equal(update_of(lab, 2, 1).delta, lab.pod(2).fit(1, lab.parameters).delta)


def test_an_optimiser_that_calls_its_closure_several_times_may() -> None:
    lab = Lab(
        source=MODEL.replace("torch.optim.Adam(self.parameters(), lr=0.05)", "torch.optim.LBFGS(self.parameters())")
    )
    assert not lab.clients.uses_trainer
    assert equal(update_of(lab, 2, 1).delta, lab.pod(2).fit(1, lab.parameters).delta)


@pytest.mark.parametrize("source", [MODEL, MODEL + HOOK], ids=["slim", "trainer"])
def test_a_client_that_diverges_is_refused_and_the_next_one_trains(source: str) -> None:
    lab = Lab(source=source.replace("lr=0.05", "lr=float('1e30')"))
    with pytest.raises((ParameterError, DivergedError), match="NaN or infinite"):
        update_of(lab, 1, 1)
    good = Lab(source=source)
    good.clients.update(1, 1, good.parameters)


def test_a_step_without_a_loss_is_named() -> None:
    lab = Lab(source=MODEL.replace('return {"loss": loss}', "return None"))
    with pytest.raises(TrainingError, match="training_step returned NoneType without a loss"):
        update_of(lab, 1, 1)


def test_a_partition_of_other_rows_is_refused() -> None:
    lab = Lab()
    with pytest.raises(ConfigurationError, match="the partition is of 50 rows, the table has 90"):
        Clients(lab.model, iid(50, 5, 1), lab.job)


def test_the_global_generators_are_the_callers() -> None:
    lab = Lab()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    update_of(lab, 1, 1)
    assert torch.equal(torch.get_rng_state(), before)
