"""Flow runs whose process was killed: Prefect would show them as running for ever."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

LIVE = (StateType.RUNNING, StateType.PENDING)


def end_stale_runs(reason: str, *, flow: str, deployment: str | None = None, name: str | None = None) -> int:
    """Marks runs as crashed.

    Args:
        reason: why their processes are known to be gone.
        flow: name of the flow.
        deployment: only runs of this deployment.
        name: only runs of this name.

    Returns:
        How many there were.
    """
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
            flow_run_filter=FlowRunFilter(
                name=None if name is None else FlowRunFilterName(any_=[name]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(LIVE))),
            ),
            deployment_filter=None
            if deployment is None
            else DeploymentFilter(name=DeploymentFilterName(any_=[deployment])),
        )
        for run in runs:
            client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
    return len(runs)
