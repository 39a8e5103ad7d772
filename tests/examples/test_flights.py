"""The flights of New York: what their pods hold, and that three airports learn from a sample of them together."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from bitfount_model import BitfountSchema
from tests.examples.test_examples import EXAMPLES, call

FLIGHTS = EXAMPLES / "flights"
AIRPORTS = {"ewr": 117_127, "jfk": 109_079, "lga": 101_140}
SAMPLE = 4000


def make_pods(folder: Path) -> dict[str, Path]:
    """The pods' files, as the example writes them."""
    subprocess.run([sys.executable, FLIGHTS / "make_pods.py", folder], check=True, capture_output=True, timeout=240)
    return {airport: folder / f"{airport}.parquet" for airport in AIRPORTS}


def script() -> ModuleType:
    """`make_pods.py` as a module."""
    spec = importlib.util.spec_from_file_location("make_flights", FLIGHTS / "make_pods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_yaml(name: str) -> Any:
    return YAML(typ="safe").load(FLIGHTS / name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_pods(tmp_path_factory.mktemp("flights"))


@pytest.fixture(scope="module")
def tables(files: dict[str, Path]) -> dict[str, pd.DataFrame]:
    return {airport: pd.read_parquet(file) for airport, file in files.items()}


def test_each_airport_has_its_own_flights_but_those_without_an_arrival(tables: dict[str, pd.DataFrame]) -> None:
    raw = script().read("flights.csv.zip")
    date = pd.to_datetime(raw[["year", "month", "day"]]).dt.strftime("%m%d-")
    raw.index = date + raw["carrier"] + raw["flight"].astype(str) + "-" + raw["dest"]
    for airport, rows in AIRPORTS.items():
        table = tables[airport].set_index("flight")
        delay = raw.loc[(raw["origin"] == airport.upper()) & raw["arr_delay"].notna(), "arr_delay"]
        assert len(table) == rows
        assert table.index.is_unique
        assert ((delay.loc[table.index] > 15) == (table["late"] == "yes")).all()


def test_the_weather_is_that_of_the_hour_before() -> None:
    given, measured = script().weather_before(), script().read("weather.csv")
    later = pd.to_datetime(given["time_hour"]) - pd.to_datetime(measured["time_hour"])
    assert (later == pd.Timedelta(hours=1)).all()
    assert given["temp"].equals(measured["temp"])


@pytest.mark.parametrize("airport", AIRPORTS)
def test_a_pod_lets_models_see_what_is_known_before_a_flight_leaves(
    airport: str, tables: dict[str, pd.DataFrame]
) -> None:
    actual = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}
    selected = set(read_yaml("job.yaml")["datastructure"]["selected_cols"])
    allowed = set(read_yaml(f"pods/{airport}.yaml")["policy"]["columns"])
    assert allowed == selected | {"late"}
    assert set(tables[airport].columns) == allowed | {"flight", "part"}
    assert not allowed & actual


def test_what_was_not_measured_is_missing_in_categories_and_numbers(tables: dict[str, pd.DataFrame]) -> None:
    for table in tables.values():
        missing = set(table.columns[table.isna().any()])
        assert {"maker", "built", "seats", "temp", "wind_gust", "pressure"} <= missing
        assert not missing & {"flight", "part", "late", "carrier", "dest", "month", "weekday", "departure"}


def test_a_day_is_for_training_validation_or_test_at_all_airports(tables: dict[str, pd.DataFrame]) -> None:
    every = pd.concat(tables.values())
    days = every.groupby(every["flight"].str[:4])["part"].agg(["nunique", "first"])
    assert (days["nunique"] == 1).all()
    assert set(days["first"]) == {"TRAIN", "VALIDATION", "TEST"}


def test_the_same_files_are_written_again(files: dict[str, Path], tmp_path: Path) -> None:
    again = make_pods(tmp_path)
    assert all(again[airport].read_bytes() == file.read_bytes() for airport, file in files.items())


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script()

    def not_installed(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", not_installed)
    with pytest.raises(SystemExit, match=r"pip install 'bitfount-flows\[flights\]'"):
        module.main(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_three_airports_learn_together_from_a_sample(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    example = tmp_path / "flights"
    shutil.copytree(FLIGHTS, example, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (example / "data").mkdir()
    sampled = {airport: table.sample(SAMPLE, random_state=0) for airport, table in tables.items()}
    for airport, rows in sampled.items():
        rows.to_parquet(example / "data" / f"{airport}.parquet", index=False)
    changes = ["training.steps=150", "training.steps_between_parameter_updates=50", "training.batch_size=128"]
    options = [option for change in changes for option in ("--set", change)]
    run = call(tmp_path / "here", "train", example / "job.yaml", "--home", tmp_path / "home", *options)
    schema = BitfountSchema.load_from_file(run.job / "schema.yaml")
    places = {airport: set(rows["dest"]) for airport, rows in sampled.items()}
    assert run.summary["rounds"] == 3
    assert set(run.summary["pods"]) == set(AIRPORTS)
    assert run.summary["test_rows"] == sum((rows["part"] == "TEST").sum() for rows in sampled.values())
    known = set(schema.column("dest").categories)
    assert known == set().union(*places.values())
    assert all(here < known for here in places.values())  # no airport flies to all of them
    assert run.summary["metrics"]["AUC"] >= 0.65
