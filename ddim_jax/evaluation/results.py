"""The results of a sweep as files: NAME.json, NAME.csv, and DDIM's Table 1."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddim_jax import files
from ddim_jax.names import parse_options, parse_value

Record = dict[str, Any]


def write(base: Path, about: dict[str, Any], records: list[Record]) -> None:
    """Writes the records to NAME.json and NAME.csv."""
    files.write_json(base.with_suffix(".json"), {"about": about, "records": records})
    columns = list(dict.fromkeys(name for record in records for name in record))
    with open(base.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for record in records:
            options = ";".join(f"{k}={v}" for k, v in record["solver_options"].items())
            writer.writerow(record | {"solver_options": options})


def read(paths: Iterable[str | Path], num_samples: int, quality: str) -> list[Record]:
    """Reads the records of CSV files of `write`, all of so many samples and with that metric.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: it holds something else.
    """
    records = []
    for path in paths:
        if not Path(path).exists():
            raise FileNotFoundError(f"no results of an earlier sweep at {path}; give its NAME.csv")
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if None in row or not {"solver", "nfe", "num_samples", quality} <= set(row):
                raise ValueError(f"{path} is not a CSV file of a sweep with {quality}")
            if int(row["num_samples"]) != num_samples:
                raise ValueError(
                    f"{path} holds cells of {row['num_samples']} samples, not {num_samples}; only "
                    "equal numbers can be compared"
                )
            options = parse_options(row["solver_options"].split(";"), "solver_options")
            values = {name: parse_value(text) for name, text in row.items() if text}
            records.append(values | {"solver_options": options})
    return records


def check_name(base: Path, cells: list[str], num_samples: int) -> None:
    """Raises ValueError if results of another sweep, which would be lost, have that name."""
    if not (path := base.with_suffix(".json")).exists():
        return
    try:
        about = json.loads(path.read_text())["about"]
        kept, count = set(about["cells"]), about["num_samples"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} does not hold a sweep; choose another --name") from None
    if missing := kept - set(cells):
        raise ValueError(
            f"{path} holds a sweep with other cells, such as {sorted(missing)[0]}, which this one "
            "would lose; choose another --name"
        )
    if count != num_samples:
        raise ValueError(
            f"{path} holds a sweep of {count} samples a cell, not {num_samples}; choose another "
            "--name (their samples are shared)"
        )


def paper_table(records: list[Record], quality: str) -> str:
    """Returns DDIM's Table 1 in markdown: rows of eta and sigma-hat, columns of steps."""
    steps = sorted({record["steps"] for record in records})
    rows: dict[str, dict[int, float]] = {}
    for record in records:
        eta = f"eta = {record['solver_options'].get('eta', 0):g}"
        name = {"ddpm": "eta = 1", "ddpm_large": "sigma-hat"}.get(record["solver"], eta)
        rows.setdefault(name, {})[record["steps"]] = record[quality]
    lines = [f"| {quality} | " + " | ".join(f"S = {s}" for s in steps) + " |"]
    lines.append("|---" * (len(steps) + 1) + "|")
    for name, values in rows.items():
        shown = [f"{values[s]:.3f}" if s in values else "" for s in steps]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
