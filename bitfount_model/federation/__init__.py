"""The science of a federation: pods' schemas and statistics -> sampled pods -> aggregated updates -> server step -> stop?

Values in, values out: nothing here reads a file, a clock or a network, and what is random is a function of the seed.
"""

from __future__ import annotations

from bitfount_model.data.moments import Moments
from bitfount_model.federation.aggregation import RunningMean, apply_mean
from bitfount_model.federation.early_stopping import EarlyStopping, EarlyStoppingState
from bitfount_model.federation.metric_sums import MetricSums
from bitfount_model.federation.sampling import sample_pods
from bitfount_model.federation.schemas import merge_schemas
from bitfount_model.federation.server_optimisers import PUBLISHED, SERVER_OPTIMISERS, ServerSettings, server_settings
from bitfount_model.federation.statistics import PodStatistics, merge_statistics, pod_statistics

__all__ = [
    "PUBLISHED",
    "SERVER_OPTIMISERS",
    "EarlyStopping",
    "EarlyStoppingState",
    "MetricSums",
    "Moments",
    "PodStatistics",
    "RunningMean",
    "ServerSettings",
    "apply_mean",
    "merge_schemas",
    "merge_statistics",
    "pod_statistics",
    "sample_pods",
    "server_settings",
]
