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
from typing import BinaryIO

import ml_dtypes  # noqa: F401  numpy has a bfloat16 from here on
import numpy as np
import safetensors

from ddim_jax import files
from ddim_jax.checkpoints.tensors import cast
from ddim_jax.names import few

SUFFIX = ".safetensors"
VARIANTS = ("fp16", "bf16")
DTYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"},
    **{
        f"{kind}{bits}": f"{kind[0].upper()}{bits}"
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
}
"""Of the tensors in a file, by numpy's names."""
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
    listed = files.read_json(folder / name).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(one, str) for one in listed.values()):
        raise ValueError(f"{folder / name} has no weight_map of tensors to files; fetch it again")
    shards = sorted(set(listed.values()))
    for shard in shards:
        if not (folder / shard).exists():
            raise FileNotFoundError(f"{folder} lacks {shard}, which {name} lists; fetch it again")
    return Tensors(folder / shard for shard in shards)


def save(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    dtype: str | None = None,
) -> None:
    """Writes tensors to a file, one after the other: memory holds a copy of one at most.

    The library would ask for all of them as they will lie in the file.

    Args:
        path: of the file.
        tensors: name -> array, which may be a view that lies in any order.
        metadata: text by name.
        dtype: as of `tensors.cast`, of all.

    Raises:
        OSError: it cannot be written; the message names the path.
        ValueError: numbers that are not finite in that dtype.
    """
    kinds = {name: np.dtype(dtype or value.dtype) for name, value in tensors.items()}
    names = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))  # each is aligned
    header, end = {"__metadata__": dict(metadata)} if metadata else {}, 0
    for name in names:
        shape, start, kind = list(tensors[name].shape), end, kinds[name]
        end += tensors[name].size * kind.itemsize
        header[name] = dict(dtype=DTYPES[kind.name], shape=shape, data_offsets=[start, end])
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            value = tensors[name] if dtype is None else cast(tensors[name], dtype, name)
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))

    files.save(path, write)
