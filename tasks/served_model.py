"""The code that MLflow runs to serve a registered model; it is copied into the model's folder, and no pickle with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from tasks.registered import DESCRIPTION, open_model


class ServedModel(PythonModel):
    """Raw columns in, predictions out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Opens the model from the files of its folder."""
        self._opened = open_model(Path(context.artifacts[DESCRIPTION]).parent)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """The prediction of each row: see `tasks.registered.OpenModel.table`; without keys.

        Args:
            context: of MLflow.
            model_input: one row a row to predict, with the columns of the model's signature.
            params: none are taken.
        """
        return self._opened.table(model_input).drop(columns="key")


set_model(ServedModel())
