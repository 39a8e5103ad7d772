"""From a job to its model and its metrics, the same at a pod and at the modeller."""

from __future__ import annotations

from collections.abc import Sequence

from bitfount_model.data import BitfountSchema, DataStructure
from bitfount_model.errors import ConfigurationError
from bitfount_model.federation.job import FederatedJob
from bitfount_model.metrics import Metric, default_metrics
from bitfount_model.model import PyTorchBitfountModel


def chosen_metrics(model: PyTorchBitfountModel, names: Sequence[str] | None) -> dict[str, Metric]:
    """The default metrics of a model's problem, or those of them that are named.

    Raises:
        ConfigurationError: there is no such metric for the problem.
    """
    known = default_metrics(model.problem)
    wanted = known if names is None else names
    if missing := [name for name in wanted if name not in known]:
        raise ConfigurationError(f"metrics: no {', '.join(missing)} for this problem; there are {', '.join(known)}")
    return {name: known[name] for name in wanted}


def build_model(
    cls: type[PyTorchBitfountModel],
    job: FederatedJob,
    schema: BitfountSchema,
    datastructure: DataStructure,
    *,
    seed: int,
) -> PyTorchBitfountModel:
    """A job's model, at a pod or at the modeller, not yet initialised.

    Args:
        cls: the model class.
        job: gives hyperparameters and length of a round.
        schema: the common one.
        datastructure: the job's.
        seed: the modeller's is the job's own, each pod's is derived from it.
    """
    length: dict[str, int] = {"epochs" if job.epochs is not None else "steps": job.between_updates}
    return cls(
        datastructure=datastructure,
        schema=schema,
        batch_size=job.batch_size,
        seed=seed,
        param_clipping=job.param_clipping,
        **length,
        **job.hyperparameters,
    )
