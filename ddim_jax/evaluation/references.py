"""Reference statistics: what samples are compared with, as npz files.

The files are those of pytorch-fid and EDM (`mu`, `sigma`) and of ADM's evaluator (also `mu_s`,
`sigma_s`); ours say in `about` which feature network made them.
"""

import importlib.resources
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddim_jax import files
from ddim_jax.evaluation.features import FeatureNetwork
from ddim_jax.evaluation.metrics import Moments

BUNDLED = ("digits_train", "digits_test")
"""Statistics in the package: of MNIST's 60,000 and 10,000 images, for FDD."""


class Reference(NamedTuple):
    """Statistics of data.

    Attributes:
        name: of the data.
        pool: moments of the pooled features.
        spatial: moments of the spatial features, for sFID; None where the file has none.
        network_sha256: of the feature network's weights; None where the file does not say.
        resize: how the feature network resized pictures; None where the file does not say.
    """

    name: str
    pool: Moments
    spatial: Moments | None = None
    network_sha256: str | None = None
    resize: str | None = None


def save(
    path: str | Path,
    pool: Moments,
    network: FeatureNetwork,
    name: str,
    spatial: Moments | None = None,
) -> None:
    """Writes what `Reference` holds; pytorch-fid and ADM's evaluator read the file too.

    Raises:
        FileExistsError: the file exists; the message names the one for temporaries that holds it.
    """
    about = {
        "name": name,
        "count": pool.count,
        "network": network.name,
        "network_sha256": network.sha256,
        "resize": network.resize,
    }
    arrays = {"mu": pool.mean, "sigma": pool.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    arrays["about"] = json.dumps(about)
    files.save(path, lambda file: np.savez(file, **arrays), new=True)


def load(path: str | Path) -> Reference:
    """Reads reference statistics.

    Args:
        path: an npz of `save`, of pytorch-fid or EDM (mu, sigma) or of ADM (also mu_s, sigma_s),
            or a name in `BUNDLED`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds something else.
    """
    bundled = str(path) in BUNDLED
    folder = importlib.resources.files("ddim_jax.assets")
    path = folder / f"{path}_statistics.npz" if bundled else Path(path)
    if not bundled and not path.exists():
        raise FileNotFoundError(
            f"no statistics at {path}; give an npz with mu and sigma, or one of "
            f"{', '.join(BUNDLED)}, or leave --reference out and name the data by --real"
        )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key != "arr_0"}  # ADM's pictures
    except (ValueError, KeyError, *files.DAMAGED) as error:
        raise ValueError(f"{path} is not a readable npz file: {error}") from None
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(
            f"{path} must hold mu [D] and sigma [D, D], as pytorch-fid and ADM write them; it has "
            f"{', '.join(arrays) or 'nothing'}"
        )
    with files.interpreting(path):
        about = json.loads(str(arrays["about"])) if "about" in arrays else {}
        count = about.get("count")
        return Reference(
            name=about.get("name", path.name),
            pool=_moments(path, arrays, "mu", "sigma", count),
            spatial=_moments(path, arrays, "mu_s", "sigma_s", count) if "mu_s" in arrays else None,
            network_sha256=about.get("network_sha256"),
            resize=about.get("resize"),
        )


def _moments(path, arrays, mean: str, covariance: str, count: int | None) -> Moments:
    mu, sigma = (np.asarray(arrays[key], np.float64) for key in (mean, covariance))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"{path}: {covariance} must be [D, D] for {mean} [D], got shapes {sigma.shape} and "
            f"{mu.shape}"
        )
    return Moments(count, mu, sigma)
