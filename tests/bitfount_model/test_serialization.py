"""What is dumped is plain JSON and loads back equal; what is not right is refused, all at once, by path."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import fields, validate

from bitfount_model import PyTorchBitfountModel, PyTorchClassifierMixIn
from bitfount_model.data import BitfountSchema, DataStructure, PercentageSplitter, SplitterDefinedInData
from bitfount_model.data import datastructure as datastructure_module
from bitfount_model.data import schema as schema_module
from bitfount_model.data import splitters as splitters_module
from bitfount_model.errors import ConfigurationError, SerializationError
from bitfount_model.serialization import dump, load


class Part:
    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {
        "size": fields.Integer(strict=True, validate=validate.Range(min=1))
    }

    def __init__(self, size: int) -> None:
        if size == 13:
            raise ConfigurationError("13 is no size.")
        self.size = size

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class BigPart(Part):
    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {"colour": fields.String(allow_none=True)}

    def __init__(self, size: int, colour: str | None = None) -> None:
        super().__init__(size)
        self.colour = colour


PARTS: Mapping[str, type[Part]] = {"Part": Part, "BigPart": BigPart}


class Whole(Part):
    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {
        "class_name": fields.String(),
        "rates": fields.List(fields.Float()),
        "options": fields.Dict(keys=fields.String()),
    }
    nested_fields: ClassVar[dict[str, Mapping[str, type]]] = {"part": PARTS}

    def __init__(self, part: Part | None, rates: Any = (), options: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part = part
        self.rates = rates
        self.options = options or {}


CLASSES = {"Whole": Whole}


def whole(**changes: Any) -> dict[str, Any]:
    return {
        "class_name": "Whole",
        "size": 3,
        "rates": [0.1, 2.0],
        "options": {"deep": [{"a": None}]},
        "part": {"class_name": "BigPart", "size": 2, "colour": "red"},
        **changes,
    }


def problems(data: Any) -> list[str]:
    with pytest.raises(SerializationError) as caught:
        load(data, CLASSES)
    head, *lines = str(caught.value).split("\n")
    assert head == f"cannot load: {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
    return [line.strip() for line in lines]


def test_an_object_dumps_to_its_class_name_and_the_fields_of_all_its_bases() -> None:
    obj = Whole(BigPart(2, "red"), [0.1, 2.0], {"deep": [{"a": None}]}, size=3)
    assert dump(obj) == whole()


def test_what_is_dumped_is_json_and_loads_back_equal() -> None:
    obj = Whole(BigPart(2), [0.1, 1e300], {"deep": {"é": [True, None, "x", 2**70]}}, size=3)
    assert load(json.loads(json.dumps(dump(obj), allow_nan=False)), CLASSES) == obj
    assert load(dump(Whole(None, size=1)), CLASSES).part is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    ),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
)
def test_any_json_value_survives(value: Any, rates: list[float]) -> None:
    obj = Whole(Part(1), rates, {"value": value}, size=1)
    assert load(json.loads(json.dumps(dump(obj))), CLASSES) == obj


def test_neither_the_object_nor_the_data_is_changed_or_shared() -> None:
    obj = Whole(Part(1), [1.0], {"deep": [1]}, size=3)
    dumped = dump(obj)
    dumped["options"]["deep"].append(2)
    assert obj.options == {"deep": [1]}
    data = whole()
    before = copy.deepcopy(data)
    first, second = load(data, CLASSES), load(data, CLASSES)
    first.options["deep"].clear()
    assert data == before and first != second


def test_absent_keys_take_the_constructors_defaults() -> None:
    assert load({"class_name": "Whole", "size": 1, "part": None}, CLASSES) == Whole(None, size=1)


def test_all_problems_are_listed_together_with_their_paths() -> None:
    data = whole(
        size="three", rates=[1, "x"], colour=1, part={"class_name": "BigPart", "size": 0, "colour": 5, "sice": 1}
    )
    assert sorted(problems(data)) == [
        "colour: Unknown field; known: ['options', 'part', 'rates', 'size'].",
        "part.colour: Not a valid string.",
        "part.sice: Unknown field; known: ['colour', 'size'].",
        "part.size: Must be greater than or equal to 1.",
        "rates.1: Not a valid number.",
        "size: Not a valid integer.",
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "class_name: Missing; known: ['Whole']."),
        (whole(class_name="Hole"), "class_name: Unknown class 'Hole'; known: ['Whole']. Did you mean 'Whole'?"),
        (whole(class_name="os.system"), "class_name: Unknown class 'os.system'; known: ['Whole']."),
        (whole(class_name=["Whole"]), "class_name: Unknown class ['Whole']; known: ['Whole']."),
        ([], "must be an object with a 'class_name', is a list."),
        (whole(part=3), "part: must be an object with a 'class_name', is a int."),
        (whole(part={"class_name": "Whole"}), "part.class_name: Unknown class 'Whole'; known: ['BigPart', 'Part']."),
        (whole(part={"class_name": "Part"}), "part.size: Missing, and the constructor has no default for it."),
        (whole(part={"class_name": "Part", "size": 13}), "part: Part refuses these values: 13 is no size."),
        (whole(size=True), "size: Not a valid integer."),
        (whole(options={"a": float("nan")}), "options.a: nan is not a finite number."),
        (whole(options={"a": {1: 2}}), "options.a: keys must be strings, found [1]."),
        (whole(options={"a": b"x"}), "options.a: a bytes is not plain JSON."),
    ],
)
def test_what_is_wrong_is_named(data: Any, expected: str) -> None:
    assert problems(data) == [expected]


def test_a_missing_argument_of_a_constructor_is_named_together_with_other_problems() -> None:
    assert problems({"class_name": "Whole", "rates": 1, "size": 1}) == [
        "rates: Not a valid list.",
        "part: Missing, and the constructor has no default for it.",
    ]


def test_an_argument_that_kwargs_hide_is_refused_by_the_constructor() -> None:
    (problem,) = problems({"class_name": "Whole", "part": None})
    assert problem.startswith("Whole refuses these values: ") and "'size'" in problem


@pytest.mark.parametrize("bomb", [[], {}])
def test_data_of_endless_depth_is_refused(bomb: Any) -> None:
    for _ in range(100_000):
        bomb = [bomb] if isinstance(bomb, list) else {"a": bomb}
    (problem,) = problems(whole(options={"a": bomb}))
    assert problem.endswith("nested deeper than 64 levels.")


def test_values_that_would_not_come_back_are_refused_when_dumping() -> None:
    class Stranger(Part):
        pass

    broken = Whole(Stranger(1), ["x"], {"a": pd.Timestamp(0)}, size=3)
    with pytest.raises(SerializationError) as caught:
        dump(broken)
    assert "part: a Stranger is not one of the known classes: ['BigPart', 'Part']." in str(caught.value)
    assert "rates: does not suit its field: could not convert string to float: 'x'" in str(caught.value)
    with pytest.raises(SerializationError, match=r"options\.a: a Timestamp is not plain JSON"):
        dump(Whole(None, options={"a": pd.Timestamp(0)}, size=3))


def test_an_attribute_that_is_missing_or_wrongly_none_is_refused_when_dumping() -> None:
    obj = Whole(BigPart(1), size=1)
    assert isinstance(obj.part, BigPart)
    del obj.part.colour
    obj.size = None  # type: ignore[assignment]
    with pytest.raises(SerializationError) as caught:
        dump(obj)
    assert "size: is None, which its field would refuse to load" in str(caught.value)
    assert "part.colour: the object has no such attribute." in str(caught.value)


def test_a_class_that_declares_nothing_is_refused_by_name() -> None:
    with pytest.raises(SerializationError, match="dict declares no fields_dict"):
        dump({})
    with pytest.raises(SerializationError, match="int declares no fields_dict"):
        load({"class_name": "int"}, {"int": int})


# The library's own classes


@pytest.mark.parametrize(
    "splitter",
    [
        PercentageSplitter(),
        PercentageSplitter(12.5, 0, stratify=True, seed=3),
        PercentageSplitter(20, 30, shuffle=False, time_series_sort_by="zeit"),
        SplitterDefinedInData("teil", training_set_label="T"),
        None,
    ],
)
def test_splitters_come_back_equal_within_a_datastructure(splitter: Any) -> None:
    datastructure = DataStructure(
        table={"pod-a": "t1", "pod-b": "t2"},
        target="y",
        ignore_cols=["id"],
        schema_types_override={"categorical": ["a"]},
        data_splitter=splitter,
        dataset_transforms=[{"addition": {"name": "c", "arg1": "a", "arg2": 2.5}}],
    )
    again = load(json.loads(json.dumps(dump(datastructure))), datastructure_module.registry)
    assert again == datastructure and type(again.data_splitter) is type(splitter)
    if splitter is not None:
        assert load(dump(splitter), splitters_module.registry) == splitter


def test_a_schema_comes_back_equal() -> None:
    schema = BitfountSchema(name="Tabelle é")
    schema.generate_full_schema(pd.DataFrame({"a": [1.5, 2], "b": ["x", "ÿ"], "c": [True, False], "y": [0, 1]}))
    assert load(json.loads(json.dumps(dump(schema))), schema_module.registry) == schema


class Net(PyTorchClassifierMixIn, PyTorchBitfountModel):
    fields_dict: ClassVar[dict[str, fields.Field[Any]]] = {"lr": fields.Float()}

    def __init__(self, lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lr = lr

    create_model = forward = configure_optimizers = training_step = validation_step = test_step = lambda *_: None  # type: ignore[assignment]


def test_a_model_comes_back_with_its_settings_its_datastructure_and_its_schema() -> None:
    schema = BitfountSchema(name="t")
    schema.generate_full_schema(pd.DataFrame({"a": [1.5, 2], "y": ["n", "j"]}))
    clipping = {"prime_q": 13, "precision": 1000, "num_workers": 2}
    datastructure = DataStructure(target="y", data_splitter=PercentageSplitter(20, 20))
    model = Net(0.25, datastructure=datastructure, schema=schema, steps=7, seed=3, param_clipping=clipping)
    again = load(json.loads(json.dumps(dump(model))), {"Net": Net})
    assert again.datastructure == datastructure and again.schema == schema
    for name in ("lr", "multilabel", "batch_size", "epochs", "steps", "seed", "param_clipping"):
        assert getattr(again, name) == getattr(model, name)
    with pytest.raises(SerializationError, match=r"Net refuses these values: .*epochs and steps"):
        load({**dump(model), "epochs": 1}, {"Net": Net})


def test_problems_of_the_librarys_own_classes_have_paths() -> None:
    data = dump(DataStructure(target="y", data_splitter=PercentageSplitter()))
    data["data_splitter"] = {**data["data_splitter"], "validation_percentage": 101, "shuffel": True}
    data["selected_columns"] = []
    with pytest.raises(SerializationError) as caught:
        load(data, datastructure_module.registry)
    assert "data_splitter.shuffel: Unknown field" in str(caught.value)
    assert "selected_columns: Unknown field" in str(caught.value)
    del data["data_splitter"]["shuffel"], data["selected_columns"]
    with pytest.raises(SerializationError, match=r"data_splitter: PercentageSplitter refuses these values: .*101"):
        load(data, datastructure_module.registry)
