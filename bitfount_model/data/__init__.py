"""Rows: datasource -> schema, datastructure -> split -> prepared numbers -> batches."""

from __future__ import annotations

from bitfount_model.data.database_url import literal_secrets
from bitfount_model.data.dataloaders import BaseLoader, Batch, Order, StepLoader, TabularDataLoader
from bitfount_model.data.datastructure import DataStructure, FeatureColumns
from bitfount_model.data.drift import TableProfile, drift, profile_of, row_digests
from bitfount_model.data.image_loader import ImageDataLoader
from bitfount_model.data.loading import Loaders, make_loaders, make_prediction_loader, split_rows
from bitfount_model.data.preparation import Preparation, encode_features, encode_support, encode_target, fit_preparation
from bitfount_model.data.schema import BitfountSchema, Column, SemanticType
from bitfount_model.data.sources import (
    BaseSource,
    CSVSource,
    DataFrameSource,
    ParquetSource,
    SklearnSource,
    SQLSource,
    digest,
    source_from_config,
)
from bitfount_model.data.splitters import DatasetSplitter, PercentageSplitter, SplitterDefinedInData
from bitfount_model.data.streamed_loader import StreamedDataLoader
from bitfount_model.data.streaming import StreamedTable, kept_rows, make_streamed_loaders

__all__ = [
    "BaseLoader",
    "BaseSource",
    "Batch",
    "BitfountSchema",
    "CSVSource",
    "Column",
    "DataFrameSource",
    "DataStructure",
    "DatasetSplitter",
    "FeatureColumns",
    "ImageDataLoader",
    "Loaders",
    "Order",
    "ParquetSource",
    "PercentageSplitter",
    "Preparation",
    "SQLSource",
    "SemanticType",
    "SklearnSource",
    "SplitterDefinedInData",
    "StepLoader",
    "StreamedDataLoader",
    "StreamedTable",
    "TableProfile",
    "TabularDataLoader",
    "digest",
    "drift",
    "encode_features",
    "encode_support",
    "encode_target",
    "fit_preparation",
    "kept_rows",
    "literal_secrets",
    "make_loaders",
    "make_prediction_loader",
    "make_streamed_loaders",
    "profile_of",
    "row_digests",
    "source_from_config",
    "split_rows",
]
