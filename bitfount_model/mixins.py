"""What a model predicts: classes or numbers. A user's class inherits one of these beside `PyTorchBitfountModel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from marshmallow import fields

from bitfount_model.errors import DataError
from bitfount_model.types import Problem

if TYPE_CHECKING:
    from bitfount_model.data import BitfountSchema, DataStructure


class PyTorchClassifierMixIn:
    """A classifier: targets are class numbers, int64, `(rows,)`, or 0/1 per label, `(rows, labels)`.

    Args:
        multilabel: several target columns, each a label that is there or not.
        kwargs: arguments of the model class that follows in the class's bases.

    Attributes:
        n_classes: the number of categories of the schema's target; with `multilabel`, the number of labels.
    """

    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {"multilabel": fields.Boolean()}

    datastructure: DataStructure
    schema: BitfountSchema
    multilabel: bool = False

    def __init__(self, multilabel: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.multilabel = multilabel

    @property
    def n_classes(self) -> int:
        """The number of classes (or labels) to predict.

        Raises:
            DataError: the schema's target is not categorical, or there is none.
        """
        targets = self.datastructure.targets
        if self.multilabel:
            return len(targets)
        if len(targets) != 1:
            raise DataError(
                f"a classifier needs one target column, the data structure names {len(targets)}: {targets}."
                " For several labels a row, construct the model with multilabel=True."
            )
        return self.schema.get_categorical_feature_size(targets[0])

    @property
    def problem(self) -> Problem:
        """Binary, multi-class or multi-label."""
        if self.multilabel:
            return Problem.MULTILABEL
        return Problem.BINARY if self.n_classes <= 2 else Problem.MULTICLASS


class PyTorchRegressorMixIn:
    """A regressor: targets are float32, `(rows,)`, or `(rows, targets)` for several target columns."""

    @property
    def problem(self) -> Problem:
        """Regression."""
        return Problem.REGRESSION
