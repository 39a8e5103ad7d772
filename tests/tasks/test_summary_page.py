"""What Prefect's page of a finished job says of its run in MLflow."""

from __future__ import annotations

import pytest

from tasks.summary_page import summary


def recorded(uri: str) -> dict[str, object]:
    return {"values": {"tracking_uri": uri, "experiment_id": "3", "run_id": "abc"}}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (
            recorded("http://mlflow:5000/"),
            "(http://mlflow:5000/#/experiments/3/runs/abc?workflowType=machine_learning)",
        ),
        (
            recorded("https://me:secret@mlflow"),
            "(https://me:***@mlflow/#/experiments/3/runs/abc?workflowType=machine_learning)",
        ),
        (recorded("sqlite:////home/me/mlflow.db"), "run `abc` in `sqlite:////home/me/mlflow.db`"),
        (None, "Not recorded in MLflow yet"),
    ],
)
def test_a_run_is_a_link_where_it_has_an_address(manifest: dict[str, object] | None, words: str) -> None:
    page = summary("tumours", "**Model** `Net`", manifest)
    assert page.startswith("# tumours\n\n**Model** `Net`\n\n")
    assert words in page and "secret" not in page
