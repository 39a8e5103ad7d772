"""The tutorial, run from top to bottom as a data scientist does."""

from __future__ import annotations

import shutil
from io import StringIO
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The notebook after its cells; one that fails is an error."""
    folder = tmp_path_factory.mktemp("tutorial")
    notebook = nbformat.read(shutil.copy(NOTEBOOK, folder), as_version=4)
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def shown(notebook: nbformat.NotebookNode, beginning: str) -> nbformat.NotebookNode:
    """What the cell shows whose source begins so."""
    (cell,) = [cell for cell in notebook.cells if cell.source.startswith(beginning)]
    return cell.outputs[-1]


def table(output: nbformat.NotebookNode) -> pd.DataFrame:
    """A table as the reader sees it."""
    return pd.read_fwf(StringIO(output.data["text/plain"]), index_col=0)


def test_together_is_better_than_alone(ran: nbformat.NotebookNode) -> None:
    auc = table(shown(ran, "compared ="))["AUC"]
    assert auc["all three, federated"] > auc[[name for name in auc.index if name.endswith(" alone")]].mean()
    assert abs(auc["all three, federated"] - auc["all rows pooled"]) < 0.02


def test_the_learning_curves_are_drawn_and_the_champion_predicts(ran: nbformat.NotebookNode) -> None:
    assert len(shown(ran, "from mlflow import").data["image/png"]) > 5000
    predicted = table(shown(ran, "import mlflow"))
    assert (predicted["prediction"] == predicted["truth"]).mean() > 0.7


def test_no_output_is_kept_in_the_file() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
