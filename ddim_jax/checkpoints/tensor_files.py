"""The files of published tensors: which of a folder's are read, and each tensor when asked for.

    tensors = in_folder(folder / "unet", "diffusion_pytorch_model")
    tensors["conv_in.weight"]                                        # read now

A folder holds `stem.safetensors`, shards that `stem.safetensors.index.json` lists, or a variant of
either in half precision, `stem.fp16.safetensors`. Only safetensors are read: pickles run code.
"""

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  numpy has a bfloat16 from here on
import numpy as np
import safetensors
import safetensors.numpy

from ddim_jax import files
from ddim_jax.names import few

SUFFIX = ".safetensors"
VARIANTS = ("fp16", "bf16")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5")


class Tensors(Mapping[str, np.ndarray]):
    """Name -> array of all tensors in some files, each read when it is asked for.

    Attributes:
        paths: of the files.
        metadata: text by name, of all files.

    Args:
        paths: of the files.

    Raises:
        ValueError: one cannot be read, or two hold a tensor of one name.
    """

    def __init__(self, paths: Iterable[Path]):
        self.paths, self._file, self.metadata = tuple(paths), {}, {}
        for path in self.paths:
            with reading(path):
                file = safetensors.safe_open(path, framework="numpy")
                names = file.keys()
                self.metadata |= file.metadata() or {}
            for name in names:
                if name in self._file:
                    raise ValueError(f"{path} holds {name}, as another file of its folder does")
                self._file[name] = file

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads a tensor."""
        with reading(self.paths[0]):
            return self._file[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        """Whether a file holds it; reads nothing."""
        return name in self._file

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._file)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._file)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read; ValueError where there is none."""
        if name not in self:
            raise ValueError(f"the file lacks {name}")
        return tuple(self._file[name].get_slice(name).get_shape())


class Under(Mapping[str, np.ndarray]):
    """Those tensors whose names begin with a prefix, by the rest of their names.

    Args:
        tensors: of a file.
        prefix: of the names.
        without: a prefix of the rest, of what is left out; "" for nothing.
    """

    def __init__(self, tensors: Tensors, prefix: str, without: str = ""):
        self.prefix, self._tensors = prefix, tensors
        rest = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
        self._names = {name: None for name in rest if not (without and name.startswith(without))}

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads a tensor."""
        return self._tensors[self.prefix + name]

    def __contains__(self, name: object) -> bool:
        """Whether the file holds it."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """As of `Tensors`."""
        return self._tensors.shape(self.prefix + name)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what safetensors raises into a ValueError that names the file."""
    try:
        yield
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def choose(names: Collection[str], stem: str, dtype: str | None = None) -> str | None:
    """Which of a folder's files holds or lists the weights; None if none does.

    Args:
        names: of the files.
        stem: how the weights' names begin.
        dtype: that is wanted: of float16 the fp16 variant comes first, else the full precision.
    """
    variants = ["", *(f".{variant}" for variant in VARIANTS)]
    if dtype == "float16":
        variants = [".fp16", "", ".bf16"]
    for variant in variants:
        single, index = f"{stem}{variant}{SUFFIX}", f"{stem}{SUFFIX}.index{variant}.json"
        for name in (single, index, f"{stem}{variant}{SUFFIX}.index.json"):
            if name in names:
                return name
    return None


def in_folder(folder: Path, stem: str, dtype: str | None = None) -> Tensors:
    """The tensors of a folder; arguments as of `choose`.

    Raises:
        FileNotFoundError: it has no weights in safetensors, or lacks a shard.
        ValueError: a file is damaged.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    name = choose(names, stem, dtype)
    if name is None:
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        only = f", only {few(pickles)}, which is not opened" if pickles else ""
        raise FileNotFoundError(
            f"{folder} has no {stem}{SUFFIX}{only}; save the weights again where they came from, "
            "by save_pretrained(FOLDER, safe_serialization=True)"
        )
    if name.endswith(SUFFIX):
        return Tensors([folder / name])
    shards = sorted(set(json.loads((folder / name).read_text())["weight_map"].values()))
    for shard in shards:
        if not (folder / shard).exists():
            raise FileNotFoundError(f"{folder} lacks {shard}, which {name} lists; fetch it again")
    return Tensors(folder / shard for shard in shards)


def save(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes tensors to a file, without a copy of the file in memory.

    Raises:
        OSError: it cannot be written; the message names the path.
    """
    # safetensors writes the memory of a view as it lies
    content = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    metadata = dict(metadata)
    files.save(path, lambda file: safetensors.numpy.save_file(content, file.name, metadata))
