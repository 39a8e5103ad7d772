"""The class that a data scientist subclasses: from schema and rows to a trained network, here or on pods.

Its methods are thin; what they do is in the modules that are imported here.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from marshmallow import fields
from torch import Tensor, nn

from bitfount_model import parameter_lists, parameters, training, updates, weights_files
from bitfount_model.arguments import check_model_arguments, check_no_options, check_positive
from bitfount_model.data import (
    BaseSource,
    BitfountSchema,
    DatasetSplitter,
    DataStructure,
    Loaders,
    PercentageSplitter,
    Preparation,
    StreamedTable,
    datastructure,
    make_loaders,
    make_prediction_loader,
    make_streamed_loaders,
    schema,
)
from bitfount_model.epoch_end_hooks import LegacyEpochEndMixIn, rows_of_each
from bitfount_model.errors import ConfigurationError, MissingSplitError, ModelError, NotInitialisedError, TrainingError
from bitfount_model.federated import run_federated
from bitfount_model.fit_course import EpochRecord
from bitfount_model.metrics import Metric, MetricCollection
from bitfount_model.param_clipping import check_clipping
from bitfount_model.reporting import average_outputs, flatten_outputs
from bitfount_model.seeding import derive_seed, seeded
from bitfount_model.source_code import write_module_source
from bitfount_model.types import DataSplit, EvaluateReturnType, Parameters, PredictReturnType, Problem, TaskContext


class PyTorchBitfountModel(LegacyEpochEndMixIn, ABC):
    """A PyTorch network with its data, its training and its metrics, in the Lightning format.

    Subclass it in a file of its own, together with `PyTorchClassifierMixIn` or `PyTorchRegressorMixIn`, and give
    `create_model`, `forward`, `configure_optimizers`, `training_step`, `validation_step` and `test_step`.

    A batch of a table is `(x, y)`: `x` is `[tabular, support]`, float32 `(rows, features)` and float32 `(rows, 2)` (loss weight,
    ignored class); with image columns `[tabular, image, ..., support]`. `y` is int64 `(rows,)` for classes, float32 for numbers,
    `(rows, targets)` for several target columns.

    Args:
        datastructure: which columns are targets and features; copied.
        schema: the columns' types and categories.
        batch_size: rows of a batch.
        epochs: passes over the training rows per fit; exactly one of `epochs` and `steps`.
        steps: batches per fit, exactly; the next fit goes on with the batch after the last.
        seed: fixes weights, splits, order and dropout, whatever else draws random numbers; the global generators are left as they
            were. None is unseeded.
        param_clipping: `{"prime_q": ..., "precision": ..., "num_workers": ...}`: floating BatchNorm parameters and buffers are
            clipped to +-prime_q / (2 * precision * num_workers) after each epoch.
        kwargs: arguments of the classes further up.

    Attributes:
        metrics: a `MetricCollection`; set by default from the target when the model does not.
        preds: predictions of the most recent test run, `(rows, ...)`.
        target: targets of the most recent test run.
        val_stats: one dict of full floats for each validation epoch.
        preparation: how rows are encoded; fitted on the first training rows, then kept with the weights.
        position: batches trained on since the model was initialised.

    Raises:
        ValueError: both or neither of `epochs` and `steps`, or a value out of range.
    """

    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {
        "batch_size": fields.Integer(strict=True),
        "epochs": fields.Integer(strict=True, allow_none=True),
        "steps": fields.Integer(strict=True, allow_none=True),
        "seed": fields.Integer(strict=True, allow_none=True),
        "param_clipping": fields.Dict(keys=fields.String(), values=fields.Integer(strict=True), allow_none=True),
    }
    nested_fields: ClassVar[dict[str, Mapping[str, type]]] = {
        "datastructure": datastructure.registry,
        "schema": schema.registry,
    }

    num_workers: int = 0
    """Processes that decode images; tables need none."""

    rows_folder: Path | None = None
    """A folder in which encoded rows are kept on disk, for tables larger than memory; None holds them in memory."""

    train_dl: Iterable[Any] | None
    problem: Problem

    def __init__(
        self,
        datastructure: DataStructure,
        schema: BitfountSchema,
        batch_size: int = 32,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
        param_clipping: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        check_model_arguments(batch_size=batch_size, epochs=epochs, steps=steps, seed=seed)
        if param_clipping is not None:
            check_clipping(param_clipping)
        super().__init__(**kwargs)
        # A copy, because input_size is written to it below.
        self.datastructure = copy.copy(datastructure)
        self.schema = schema
        self.batch_size = batch_size
        self.epochs = epochs
        self.steps = steps
        self.seed = seed
        self.param_clipping = param_clipping
        self.metrics: MetricCollection | None = None
        self.val_stats: list[dict[str, float]] = []
        self.preds: np.ndarray | None = None
        self.target: np.ndarray | None = None
        self.preparation: Preparation | None = None
        self.position = 0
        self.train_dl = None
        self.validation_dl: Iterable[Any] | None = None
        self.test_dl: Iterable[Any] | None = None
        self._model: nn.Module | None = None
        self._data: BaseSource | None = None
        self._identifier: str | None = None
        self._test_preds: np.ndarray | None = None
        self._test_targets: np.ndarray | None = None
        self._own_trainer: pl.Trainer | None = None
        self._foreign_steps: training.ForeignSteps | None = None

    # -- what the user's class gives ------------------------------------------------------------------------------------

    @abstractmethod
    def create_model(self) -> nn.Module:
        """Builds the network.

        `self.datastructure.input_size` (features of a row) and, for classifiers, `self.n_classes` are known.
        """

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """Applies the network to a batch's `x`."""

    @abstractmethod
    def configure_optimizers(self) -> Any:
        """The optimiser, or lists of optimisers and learning-rate schedulers, as in Lightning."""

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | dict[str, Any]:
        """One training batch.

        Returns:
            The loss, or a dict that holds it under `loss`.
        """

    @abstractmethod
    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """One validation batch.

        Returns:
            Name -> number: averaged over the rows into `val_stats`. `predictions` and `targets` may be among them: then the
            metrics that `fit` was given are computed from these.
        """

    @abstractmethod
    def test_step(self, batch: Any, batch_idx: int) -> Tensor | dict[str, Any]:
        """One test batch.

        Returns:
            `{"predictions": (rows, ...), "targets": (rows, ...)}`.
        """

    # -- initialisation ---------------------------------------------------------------------------------------------------

    @property
    def is_initialised(self) -> bool:
        """Whether the network has been built."""
        return self._model is not None

    def initialise_model(
        self,
        data: BaseSource | None = None,
        data_splitter: DatasetSplitter | None = None,
        context: TaskContext | None = None,
    ) -> None:
        """Builds the loaders for the data, and the network unless there is one: weights are kept.

        Args:
            data: rows to split into training, validation and test; None builds the network alone.
            data_splitter: how to split; default: the data structure's, else `PercentageSplitter()`.
            context: a modeller has no rows: its `data` is not read.

        Raises:
            DataError: the rows do not fit the schema or the data structure.
        """
        if not hasattr(self, "problem"):
            raise ModelError(
                f"{type(self).__name__} does not say what it predicts: let it inherit PyTorchClassifierMixIn or"
                " PyTorchRegressorMixIn, or give it a `problem`"
            )
        if data_splitter is not None:
            # Kept: a splitter's label column is no feature, neither now nor for rows that are predicted later.
            self.datastructure.data_splitter = data_splitter
        self.datastructure.input_size = self.datastructure.tabular_width(self.schema)
        if data is not None and context is not TaskContext.MODELLER:
            self._load(data)
        if self._model is None:
            with seeded(self.seed_for("weights")):
                self._model = self.create_model()
        if self.metrics is None:
            self.metrics = MetricCollection.create_from_model(self)

    def _load(self, data: BaseSource) -> None:
        loaders = self._held(data) if self.rows_folder is None else self._streamed(data, self.rows_folder)
        self.train_dl, self.validation_dl, self.test_dl = loaders.train, loaders.validation, loaders.test
        self.preparation = loaders.preparation
        self._data = data
        self.position = 0

    def _streamed(self, data: BaseSource, folder: Path) -> Loaders:
        return make_streamed_loaders(
            StreamedTable(data, self.datastructure, self._identifier),
            folder,
            schema=self.schema,
            splitter=self.datastructure.data_splitter,
            problem=self.problem,
            batch_size=self.batch_size,
            seed=self.seed,
            preparation=self.preparation,
        )

    def _held(self, data: BaseSource) -> Loaders:
        return make_loaders(
            self.read(data),
            schema=self.schema,
            datastructure=self.datastructure,
            splitter=self.datastructure.data_splitter or PercentageSplitter(),
            problem=self.problem,
            batch_size=self.batch_size,
            seed=self.seed,
            preparation=self.preparation,
            num_workers=self.num_workers,
        )

    def adopt(self, schema: BitfountSchema, preparation: Preparation, parameters: Parameters) -> None:
        """Takes over what training elsewhere gave; rows that the model was initialised with are let go.

        Args:
            schema: of the rows that it was trained on.
            preparation: how they were encoded.
            parameters: the trained ones.

        Raises:
            ParameterError: they are of another network.
        """
        self.schema, self.preparation = schema, preparation
        self._data = self._model = self._own_trainer = self.metrics = None
        self.train_dl = self.validation_dl = self.test_dl = None
        self.position = 0
        self.initialise_model(context=TaskContext.MODELLER)
        self.update_params(parameters)

    def read(self, data: BaseSource) -> Any:
        """The rows of a source as this model's data structure sees them: its table or query, its transforms."""
        frame = data.read(
            table=self.datastructure.table_for(self._identifier), query=self.datastructure.query_for(self._identifier)
        )
        return self.datastructure.transform(frame)

    def seed_for(self, *purpose: str | int) -> int | None:
        """The seed of one purpose (weights, training, ...), made of the model's own; None where that is None."""
        return None if self.seed is None else derive_seed(self.seed, *purpose)

    def set_datastructure_identifier(self, datastructure_identifier: str) -> None:
        """Says which pod's entries of a per-pod data structure (table, query, types) are meant here.

        Args:
            datastructure_identifier: the pod's identifier.
        """
        self._identifier = datastructure_identifier

    # -- training ---------------------------------------------------------------------------------------------------------

    def fit(
        self,
        data: BaseSource | None = None,
        metrics: dict[str, Metric] | None = None,
        pod_identifiers: list[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, str] | None:
        """Trains on this machine's data, or over pods.

        A fit trains from the present weights with a new optimiser. With pods the present weights are not used unless they are given
        as `pretrained_file`.

        Args:
            data: rows to train on; initialises the model when needed, and when they are another source than before.
            metrics: computed on the validation rows after each epoch, beside what `validation_step` returns.
            pod_identifiers: pods to train over, instead of `data`.
            kwargs: options of federated training; others are hyperparameters of the model on the pods.

        Returns:
            The last epoch's validation metrics, name -> "%.4f"; empty without validation rows.

        Raises:
            ValueError: neither or both of `data` and `pod_identifiers`.
            TrainingError: the parameters are not finite after training.
        """
        self._need_one("fit", data, pod_identifiers)
        if pod_identifiers is not None:
            result: dict[str, str] = run_federated("fit", self, pod_identifiers, metrics=metrics, **kwargs)
            return result
        check_no_options("fit", kwargs)
        records = self.fit_locally(data, metrics=metrics)
        last = next((record.val_stats for record in reversed(records) if record.val_stats), {})
        return {name: f"{value:.4f}" for name, value in last.items()}

    def fit_locally(
        self,
        data: BaseSource | None,
        *,
        metrics: Mapping[str, Metric] | None = None,
        report: Callable[[EpochRecord], None] | None = None,
        checkpoint: Path | None = None,
        callbacks: Sequence[pl.Callback] = (),
    ) -> list[EpochRecord]:
        """`fit` on this machine, with what a pipeline needs beside: see `training.train`.

        Args:
            data: None trains on the rows that the model was initialised with.
            metrics: as for `fit`.
            report: called after each epoch.
            checkpoint: the file that a fit that was killed goes on from.
            callbacks: Lightning callbacks for this fit alone.
        """
        if data is not None and data is not self._data:
            self.initialise_model(data)
        collection = None if metrics is None else MetricCollection.create_from_model(self, metrics)
        if collection is not None:
            self.metrics = collection
        return training.train(self, metrics=collection, report=report, checkpoint=checkpoint, callbacks=callbacks)

    def trainer_init(self) -> pl.Trainer:
        """The Trainer of this model; override it to choose other arguments.

        Its `max_epochs` and `max_steps` are set by each fit from the model's `epochs` or `steps`.

        Returns:
            A Trainer without logger, checkpoints, summary or progress bar, on a GPU where there is one.
        """
        return training.slim_trainer()

    def setup(self, stage: str) -> None:
        """Lightning's hook at the start of a run, the user's own Trainer's too.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            NotInitialisedError: `initialise_model` was not called.
        """
        self._need_network(f"Trainer.{stage}")

    def trainer_for_fit(self) -> pl.Trainer:
        """The Trainer for the next fit: the last one where it can run again, else a new one."""
        if self._own_trainer is None or not training.is_reusable(self._own_trainer):
            self.reset_trainer()
        return self._trainer_of_own()

    def trainer_for_test(self) -> pl.Trainer:
        """The Trainer for the next test run, which has one process: its results are wanted here."""
        trainer = self._trainer_of_own()
        return trainer if trainer.world_size == 1 else training.in_one_process(trainer)

    def _trainer_of_own(self) -> pl.Trainer:
        if self._own_trainer is None:
            self._own_trainer = self.trainer_init()
        return self._own_trainer

    def reset_trainer(self) -> None:
        """Makes a new Trainer; weights and position in the data stay."""
        self._own_trainer = self.trainer_init()

    def forget_training(self) -> None:
        """Gives back what the last fit left behind beside weights and position: gradients, optimisers and what they hold."""
        self.zero_grad(set_to_none=True)
        if self._own_trainer is not None:
            self._own_trainer.strategy.optimizers = []
            self._own_trainer.strategy.lr_scheduler_configs = []

    def set_model_training_iterations(self, iterations: int) -> None:
        """How long the next fits run: in epochs or in steps, whichever the model was constructed with.

        Args:
            iterations: at least 1.
        """
        check_positive("iterations", iterations)
        if self.epochs is not None:
            self.epochs = iterations
        else:
            self.steps = iterations

    def skip_training_batch(self, batch_idx: int) -> bool:
        """Whether `training_step` should pass over this batch: never, for batches trained on before are not delivered.

        Args:
            batch_idx: the index that `training_step` is given.

        Returns:
            False.
        """
        return False

    def foreign_steps(self, loader: Iterable[Any]) -> training.ForeignSteps:
        """The running iteration over a user's own training loader, which fits in steps continue."""
        if self._foreign_steps is None or self._foreign_steps.loader is not loader:
            self._foreign_steps = training.ForeignSteps(loader)
        return self._foreign_steps

    def validation_epoch_end(self, outputs: list[dict[str, Any]]) -> None:
        """Averages the validation steps' numbers over the rows into `val_stats`, and logs each as `avg_<name>`.

        Args:
            outputs: what each `validation_step` returned. Each step counts by its rows; outputs that do not say how many rows they
                saw (a plain list) count equally.

        Raises:
            TrainingError: a value is not a number.
        """
        stats = average_outputs(outputs, rows_of_each(outputs))
        self.val_stats.append(stats)
        # Called by hand, outside a run, there is nothing to log to.
        if self._trainer is not None and self._trainer.evaluating:
            for name, value in stats.items():
                self.log_(f"avg_{name}", value)

    def test_epoch_end(self, outputs: list[dict[str, Tensor | list[str]]]) -> None:
        """Joins the test steps' predictions and targets into `preds` and `target`.

        Args:
            outputs: what each `test_step` returned.
        """
        self._test_preds, self._test_targets = flatten_outputs(outputs)

    def log_(self, name: str, value: Any, **kwargs: Any) -> Any:
        """Logs through Lightning; the same as `self.log`.

        Args:
            name: the metric's name.
            value: a number or a one-element tensor.
            kwargs: arguments of Lightning's `log`.
        """
        return self.log(name, value, **kwargs)

    # -- evaluation and prediction ------------------------------------------------------------------------------------------

    def evaluate(
        self,
        test_dl: Any | None = None,
        pod_identifiers: list[str] | None = None,
        **kwargs: Any,
    ) -> EvaluateReturnType | dict[str, float]:
        """Applies the model to test rows, here or on pods.

        With pods the present weights are not used unless they are given as `pretrained_file`.

        Args:
            test_dl: batches to use instead of the test split's.
            pod_identifiers: pods to evaluate on.
            kwargs: options of federated evaluation.

        Returns:
            Predictions, targets and keys, row by row; with pods, the metrics.

        Raises:
            NotInitialisedError: `initialise_model` was not called (a ValueError).
            MissingSplitError: there are no test rows.
        """
        if pod_identifiers is not None:
            metrics: dict[str, float] = run_federated("evaluate", self, pod_identifiers, **kwargs)
            return metrics
        check_no_options("evaluate", kwargs)
        self._need_network("evaluate")
        loader = self.test_dataloader() if test_dl is None else test_dl
        self.preds, self.target = self._test(loader)
        return EvaluateReturnType(self.preds, self.target, getattr(loader, "keys", None))

    def predict(
        self,
        data: BaseSource | None = None,
        pod_identifiers: list[str] | None = None,
        **kwargs: Any,
    ) -> PredictReturnType | dict[str, list[np.ndarray]]:
        """Applies the model to rows, here or on pods.

        All rows of `data` are predicted, in order; the target column need not be there. With pods the present weights are not used
        unless they are given as `pretrained_file`.

        Args:
            data: rows to predict.
            pod_identifiers: pods to predict on, instead of `data`.
            kwargs: options of federated prediction.

        Returns:
            Predictions and keys, row by row; with pods, pod -> predictions.

        Raises:
            ValueError: neither or both of `data` and `pod_identifiers`, or `initialise_model` was not called.
        """
        self._need_one("predict", data, pod_identifiers)
        if pod_identifiers is not None:
            predictions: dict[str, list[np.ndarray]] = run_federated("predict", self, pod_identifiers, **kwargs)
            return predictions
        check_no_options("predict", kwargs)
        self._need_network("predict")
        loader = self.prediction_loader(data)
        return PredictReturnType(self._test(loader)[0], loader.keys)

    def prediction_loader(self, data: BaseSource | None, *, targets: bool = False) -> Any:
        """Batches of all rows of a source, in order, encoded as the training rows were.

        Args:
            data: the rows.
            targets: whether the rows must hold the targets; otherwise missing ones are zeros.
        """
        if data is None or self.preparation is None:
            raise NotInitialisedError(
                "predict needs to know how the training rows were encoded: call fit or initialise_model with data first,"
                " or deserialize weights that were saved with it"
            )
        return make_prediction_loader(
            self.read(data),
            schema=self.schema,
            datastructure=self.datastructure,
            problem=self.problem,
            batch_size=self.batch_size,
            preparation=self.preparation,
            require_target=targets,
            num_workers=self.num_workers,
        )

    def _test(self, loader: Any) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and targets of a loader's rows."""
        self._test_preds = self._test_targets = None
        training.run_test(self, loader)
        if self._test_preds is None:
            raise TrainingError(
                "test_epoch_end left no predictions: set self._test_preds in your own, or call"
                " super().test_epoch_end(outputs)"
            )
        return np.asarray(self._test_preds), np.asarray(self._test_targets)

    # -- loaders ------------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Any:
        """The training batches.

        Raises:
            MissingSplitError: there are none.
        """
        return self._loader(DataSplit.TRAIN, self.train_dl)

    def val_dataloader(self) -> Any:
        """The validation batches; an empty list where the splitter keeps no rows for validation."""
        self._need_network("val_dataloader")
        return [] if self.validation_dl is None else self.validation_dl

    def test_dataloader(self) -> Any:
        """The test batches.

        Raises:
            MissingSplitError: there are none.
        """
        return self._loader(DataSplit.TEST, self.test_dl)

    def _loader(self, split: DataSplit, loader: Iterable[Any] | None) -> Any:
        self._need_network(f"the {split.value} split")
        if loader is None:
            reason = (
                "the model has no data yet"
                if self._data is None
                else f"the splitter keeps no rows for the {split.value} split"
            )
            raise MissingSplitError(f"there are no {split.value} rows: {reason}")
        return loader

    def tensor_precision(self) -> torch.dtype:
        """The dtype of features: float32."""
        return torch.float32

    # -- parameters -----------------------------------------------------------------------------------------------------------

    def get_param_states(self) -> dict[str, Tensor]:
        """A snapshot of all parameters and buffers, on the CPU; it shares no memory with the model.

        Returns:
            Name -> tensor, a plain dict. Names are those of the network that `create_model` returned.
        """
        self._need_network("get_param_states")
        states = parameters.snapshot(self)
        public = parameters.public_names(states)
        return {public[name]: tensor for name, tensor in states.items()}

    def update_params(self, new_model_params: Parameters) -> None:
        """Replaces all parameters and buffers, or none.

        Args:
            new_model_params: exactly the names, shapes and dtypes of `get_param_states`.

        Raises:
            ParameterError: a name is missing or extra, a shape or dtype differs, or a value is not finite.
        """
        self._need_network("update_params")
        parameters.update_module(self, new_model_params, what="the new parameters")

    @staticmethod
    def diff_params(old_params: Parameters, new_params: Parameters) -> Mapping[str, Tensor]:
        """`new_params - old_params`, name by name; neither is changed.

        Args:
            old_params: name -> tensor.
            new_params: the same names, shapes and dtypes.

        Raises:
            ParameterError: names, shapes or dtypes differ.
        """
        return updates.diff_params(old_params, new_params)

    def apply_weight_updates(self, weight_updates: Sequence[Parameters]) -> Mapping[str, Tensor]:
        """The model's parameters plus the mean of the updates; the model takes them over.

        Args:
            weight_updates: one or more updates, as `diff_params` gives them.

        Returns:
            The new parameters.

        Raises:
            ParameterError: no updates, or one does not fit the model.
        """
        updated = updates.apply_updates(self.get_param_states(), weight_updates)
        self.update_params(updated)
        return updated

    def serialize_params(self, weights: Parameters) -> Mapping[str, list[float]]:
        """Parameters as nested lists of plain numbers, for JSON; see `codec` for the binary form.

        Args:
            weights: name -> tensor.
        """
        return parameter_lists.to_lists(weights)

    def deserialize_params(self, serialized_weights: Mapping[str, list[float]]) -> Mapping[str, Tensor]:
        """The inverse of `serialize_params`, in the model's own dtypes and shapes.

        Args:
            serialized_weights: name -> nested lists.

        Raises:
            ParameterError: names or shapes are not the model's.
        """
        return parameter_lists.from_lists(serialized_weights, self.get_param_states())

    def serialize(self, filename: str | os.PathLike[str]) -> None:
        """Writes the parameters to a file: `.safetensors` by that ending, else a state dict as `torch.save` writes it.

        The preparation (how rows are encoded) travels in the file's metadata.

        Args:
            filename: where to; replaced as a whole or not at all.
        """
        weights_files.write_weights(filename, self.get_param_states(), self.preparation)

    def deserialize(
        self,
        content: str | os.PathLike[str] | bytes | IO[bytes],
        weights_only: bool = True,
        **kwargs: Any,
    ) -> None:
        """Replaces all parameters by those of a file, or none.

        Args:
            content: a path, the bytes, or a binary file object: a state dict or safetensors.
            weights_only: False unpickles whatever the file holds, a whole network too: never for a file from someone else.
            kwargs: arguments of `torch.load`.

        Raises:
            NotInitialisedError: `initialise_model` was not called.
            ParameterError: the file cannot be read, or does not fit the model.
        """
        self._need_network("deserialize")
        saved = weights_files.read_weights(content, self.get_param_states(), weights_only, **kwargs)
        if saved.module is not None:
            parameters.check_finite(saved.parameters, what="the network in the file")
            self._model = saved.module
            return
        self.update_params(saved.parameters)
        self.preparation = saved.preparation or self.preparation

    @classmethod
    def serialize_model_source_code(
        cls, filename: str | os.PathLike[str], extra_imports: list[str] | None = None
    ) -> None:
        """Writes a module that holds this class and what it needs, and imports and runs on its own.

        Args:
            filename: where to.
            extra_imports: import statements to add.

        Raises:
            SourceCodeError: a name that the class uses cannot be found.
        """
        write_module_source(cls, filename, extra_imports)

    # -- conditions ------------------------------------------------------------------------------------------------------------

    def _need_network(self, what: str) -> None:
        if self._model is None:
            raise NotInitialisedError(f"{what} needs an initialised model: call initialise_model or fit first")

    @staticmethod
    def _need_one(method: str, data: Any, pod_identifiers: Any) -> None:
        if (data is None) == (pod_identifiers is None):
            found = "neither" if data is None else "both"
            raise ConfigurationError(f"{method} needs data (this machine) or pod_identifiers (pods), and got {found}")
