"""Writes the first rows of scikit-learn's breast-cancer table as a CSV file, as if patients came in over time.

python examples/retraining/make_rows.py 300      # then train or retrain; then with more rows
python examples/retraining/make_rows.py 569 --wrong-labels     # as if a device had been misread since
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

TARGET = Path(__file__).parent / "data" / "tumours.csv"


def main() -> None:
    """Parses the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int, help="how many rows there are by now, up to 569")
    parser.add_argument("--wrong-labels", action="store_true", help="give the newer half of the rows random labels")
    parser.add_argument("--to", type=Path, default=TARGET, help="CSV file to write")
    given = parser.parse_args()
    frame = load_breast_cancer(as_frame=True).frame.iloc[: given.rows].rename_axis("patient").reset_index()
    if given.wrong_labels:
        newer = len(frame) // 2
        frame.loc[newer:, "target"] = np.random.default_rng(0).integers(0, 2, len(frame) - newer)
    given.to.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(given.to, index=False)
    print(f"{len(frame)} rows -> {given.to}")


if __name__ == "__main__":
    main()
