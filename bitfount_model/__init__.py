"""Federated and local training of PyTorch models: the model class, its data, and the science behind both."""

from __future__ import annotations

from bitfount_model.collector import collector_paused

with collector_paused():
    from bitfount_model.data import (
        BaseSource,
        BitfountSchema,
        CSVSource,
        DataFrameSource,
        DatasetSplitter,
        DataStructure,
        ParquetSource,
        PercentageSplitter,
        SemanticType,
        SklearnSource,
        SplitterDefinedInData,
        SQLSource,
    )
    from bitfount_model.errors import BitfountError
    from bitfount_model.metrics import Metric, MetricCollection
    from bitfount_model.mixins import PyTorchClassifierMixIn, PyTorchRegressorMixIn
    from bitfount_model.model import PyTorchBitfountModel
    from bitfount_model.reference import BitfountModelReference, load_model_class
    from bitfount_model.types import DataSplit, EvaluateReturnType, PredictReturnType, Problem, TaskContext

__version__ = "0.1.0"

__all__ = [
    "BaseSource",
    "BitfountError",
    "BitfountModelReference",
    "BitfountSchema",
    "CSVSource",
    "DataFrameSource",
    "DataSplit",
    "DataStructure",
    "DatasetSplitter",
    "EvaluateReturnType",
    "Metric",
    "MetricCollection",
    "ParquetSource",
    "PercentageSplitter",
    "PredictReturnType",
    "Problem",
    "PyTorchBitfountModel",
    "PyTorchClassifierMixIn",
    "PyTorchRegressorMixIn",
    "SQLSource",
    "SemanticType",
    "SklearnSource",
    "SplitterDefinedInData",
    "TaskContext",
    "load_model_class",
]
