"""A client's update: that of a pod with the same rows, to the last bit, with or without Lightning's Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from bitfount_model import PyTorchBitfountModel
from bitfount_model.errors import ConfigurationError, DivergedError, TrainingError
from bitfount_model.seeding import seeded
from bitfount_model.simulation.clients import Clients, ClientUpdate
from bitfount_model.simulation.partition import iid
from bitfount_model.training import slim_trainer
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
    with pytest.raises(DivergedError, match="NaN or infinite"):
        update_of(lab, 1, 1)
    good = Lab(source=source)
    good.clients.update(1, 1, good.parameters)


def test_a_step_without_a_loss_is_named() -> None:
    lab = Lab(source=MODEL.replace('return {"loss": loss}', "return {}"))
    with pytest.raises(TrainingError, match="training_step returned dict without a loss"):
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


OWN_TRAINER = MODEL + "\n    def trainer_init(self):\n        return super().trainer_init()\n"


def test_clients_of_a_model_that_asks_for_several_processes_are_refused() -> None:
    lab = Lab(source=OWN_TRAINER)
    lab.model.trainer_init = two_processes  # type: ignore[method-assign]
    lab.model.reset_trainer()
    with pytest.raises(ConfigurationError, match="simulated clients train in one process, .*trainer_init asks for 2"):
        Clients(lab.model, lab.partition, lab.job)


def test_a_pod_whose_model_asks_for_several_processes_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PyTorchBitfountModel, "trainer_init", lambda model: two_processes())
    lab = Lab(source=OWN_TRAINER)
    with pytest.raises(ConfigurationError, match="pods train in one process, .*trainer_init asks for 2.*devices=1"):
        lab.pod(1)


def two_processes() -> pl.Trainer:
    return slim_trainer(accelerator="cpu", devices=2, strategy="ddp_fork")
