import errno
import json

import pytest

from ddim_jax import files
from tests.errors import rejects


def test_check_new(tmp_path):
    free, taken = tmp_path / "free.png", tmp_path / "taken.png"
    taken.touch()
    assert files.check_new(str(free)) == free
    assert files.check_new(free, suffixes=(".npz", ".png")) == free
    assert files.check_new(taken, overwrite=True) == taken


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "{path} exists; choose another name, or pass overwrite=True"),
        ({"what": "the report"}, "the report {path} exists; choose another name, or pass overw"),
        ({"what": "--out"}, "--out {path} exists; choose another name, or pass --overwrite"),
        ({"what": "beside --out,"}, "beside --out, {path} exists; choose another name, or pass --"),
        ({"overwrite": None}, "{path} exists; choose another name, or remove it"),
    ],
)
def test_check_new_keeps_what_exists(tmp_path, options, message):
    path = tmp_path / "taken.png"
    path.touch()
    with rejects(FileExistsError, message.format(path=path)):
        files.check_new(path, **options)


def test_check_new_checks_the_ending():
    with rejects(ValueError, "--out must end in .png or .npz, got a.jpg"):
        files.check_new("a.jpg", what="--out", suffixes=(".png", ".npz"), overwrite=True)
    with rejects(ValueError, "the file must end in .json, got a"):
        files.check_new("a", suffixes=(".json",))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("no"), SystemExit(1)])
def test_replace_leaves_the_old_file_where_writing_fails(tmp_path, error):
    path = tmp_path / "a.txt"
    files.replace(path, lambda file: file.write(b"old"))

    def write(file):
        file.write(b"half of the ne")
        raise error

    with pytest.raises(type(error)) as raised:
        files.replace(path, write)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"old"
    if isinstance(error, OSError):
        assert raised.value.filename == str(path)
    files.replace(path, lambda file: file.write(b"new"), durable=False)
    assert path.read_bytes() == b"new"


def test_next_free(tmp_path):
    assert files.next_free(tmp_path, "digits").name == "digits-0001.png"
    (tmp_path / "digits-0001.png").touch()
    assert files.next_free(tmp_path, "digits").name == "digits-0002.png"
    assert files.next_free(tmp_path, "digits", ".npz").name == "digits-0001.npz"


def test_check_origin(tmp_path):
    path = tmp_path / "set" / "about.json"
    files.check_origin(path, {"seed": 0}, "samples")
    path.parent.mkdir()
    files.write_json(path, {"seed": 0, "scale": (1, 2), "count": 8})
    assert json.loads(path.read_text()) == {"seed": 0, "scale": [1, 2], "count": 8}
    files.check_origin(path, {"seed": 0, "scale": (1, 2)}, "samples")
    with rejects(
        ValueError, str(path.parent), "samples that were drawn with another scale and seed"
    ):
        files.check_origin(path, {"seed": 1, "scale": (1, 3)}, "samples")
    path.write_text("{")
    with rejects(ValueError, str(path), "damaged", "samples", "move the folder away"):
        files.check_origin(path, {"seed": 0}, "samples")


def test_missing_part(tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "note.txt").touch()
    assert files.missing_part(tmp_path / "faces") == " (it is a folder)"
    assert files.missing_part(tmp_path / "note.txt") == " (it is a file)"
    has_none = f" ({tmp_path.resolve()} has no 'face', close matches: faces)"
    assert files.missing_part(tmp_path / "face" / "deep.npz") == has_none
    assert files.missing_part(tmp_path / "note.txt" / "a") == ""
