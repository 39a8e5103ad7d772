"""Deals the patients of scikit-learn's breast-cancer table to three unlike hospitals: python make_pods.py [FOLDER].

The 569 patients are real and each goes to one hospital; which one is made up, always in the same way:

- north screens healthy women: small tumours, one in sixteen malignant;
- south is where large tumours are sent: five in six malignant;
- west is a small hospital that sees some of everything.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

PATIENTS = {"benign": {"north": 296, "west": 30}, "malignant": {"north": 20, "west": 24}}
"""Who goes where; south has the others."""


def deal(malignant: np.ndarray, radius: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The hospital of each patient.

    Within a class west takes any, north those who look small, and south the rest. Doctors err: a tumour looks as large
    as its radius plus a standard deviation of chance.

    Args:
        malignant: `(rows,)` booleans.
        radius: `(rows,)` mean radius of the cells' nuclei.
        random: draws the chance.

    Returns:
        `(rows,)` names.
    """
    looks = (radius - radius.mean()) / radius.std() + random.standard_normal(len(radius))
    order = random.permutation(len(radius))
    hospital = np.full(len(radius), "south")
    for name, is_class in (("benign", ~malignant), ("malignant", malignant)):
        patients = order[is_class[order]]
        west, others = np.split(patients, [PATIENTS[name]["west"]])
        hospital[west] = "west"
        hospital[others[np.argsort(looks[others], kind="stable")][: PATIENTS[name]["north"]]] = "north"
    return hospital


def main(folder: Path) -> None:
    """Writes FOLDER/north.csv, south.csv and west.csv with a key, the target and 30 measurements."""
    table = load_breast_cancer(as_frame=True)
    malignant = (table.target == list(table.target_names).index("malignant")).to_numpy()
    hospital = deal(malignant, table.data["mean radius"].to_numpy(), np.random.default_rng(0))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("north", "south", "west"):
        here = hospital == name
        keys = [f"{name}-{number:03d}" for number in range(1, here.sum() + 1)]
        first = pd.DataFrame({"patient": keys, "malignant": malignant[here].astype(int)})
        rows = pd.concat([first, table.data[here].reset_index(drop=True)], axis="columns")
        rows.to_csv(folder / f"{name}.csv", index=False)
        print(f"{name}: {len(rows)} patients, {malignant[here].sum()} malignant -> {folder / f'{name}.csv'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")
