import errno
import json
import os
import shutil

import pytest

from ddim_jax import files
from tests.errors import rejects


def test_a_new_folder_is_whole_or_not_there_and_deletes_nothing(tmp_path):
    path = tmp_path / "deep" / "new"
    ours = [path.with_name(f"new.{end}") for end in ("part", f"{os.getpid()}-1.part")]
    for folder in ours:
        folder.mkdir(parents=True)
        (folder / "mine.txt").touch()
    with pytest.raises(KeyError), files.new_folder(path) as part:
        (part / "half").touch()
        raise KeyError
    assert sorted(path.parent.iterdir()) == sorted(ours)
    with files.new_folder(path) as part:
        (part / "a.txt").touch()
        assert not path.exists()
    assert [*path.iterdir()] == [path / "a.txt"]
    assert all((folder / "mine.txt").exists() for folder in ours)
    assert sorted(path.parent.iterdir()) == sorted([*ours, path])


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


def test_save_makes_the_folder_and_replaces_nothing_if_asked(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.save(path, lambda file: file.write(b"first"), new=True)
    with rejects(FileExistsError, "a.txt could not be written (it exists); it is kept as"):
        files.save(path, lambda file: file.write(b"second"), new=True)
    assert path.read_bytes() == b"first"
    files.save(path, lambda file: file.write(b"third"))
    assert path.read_bytes() == b"third" and [*path.parent.iterdir()] == [path]


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


def test_a_place_is_checked_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "note").touch()
    inside = tmp_path / "note" / "a" / "b"
    for check in (files.check_folder, files.check_new):
        check(tmp_path / "new" / "deeper")
        with rejects(NotADirectoryError, f"{inside} cannot be", f"{tmp_path / 'note'} is a file"):
            check(inside)
    with rejects(IsADirectoryError, "is a folder"):
        files.check_new(tmp_path, overwrite=True)
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with rejects(PermissionError, f"a/b cannot be written: {tmp_path} is read-only"):
        files.check_folder(tmp_path / "a" / "b")
    monkeypatch.undo()
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: full)
    with rejects(OSError, "no space is left"):
        files.check_new(tmp_path / "a")


def test_two_flags_do_not_name_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.check_apart(out="a.png", save=None, latents="b.png")
    with rejects(ValueError, "--out and --trajectory are one file"):
        files.check_apart(out="a.png", trajectory=tmp_path / "." / "a.png")


def test_a_folder_of_other_files_is_not_filled(tmp_path):
    about = tmp_path / "set" / "samples.json"
    about.parent.mkdir()
    files.check_origin(about, {}, "samples")
    for ours in (".hidden", "samples.json.12.part"):
        (about.parent / ours).touch()
    files.check_origin(about, {}, "samples")
    (about.parent / "cat.png").touch()
    with rejects(FileExistsError, "holds other files (cat.png) and no samples.json", "new one"):
        files.check_origin(about, {}, "samples")
    with rejects(NotADirectoryError, "is a file"):
        files.check_origin(about.parent / "cat.png" / "samples.json", {}, "samples")


def test_what_cannot_be_written_is_kept_elsewhere(tmp_path, monkeypatch):
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(spare))
    plain = files.replace

    def full(path, write, durable=True):
        if path.parent != spare:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(path, write, durable)

    monkeypatch.setattr(files, "replace", full)
    with rejects(
        OSError, "a.npz could not be written (No space left", f"kept as {spare}/a-0001.np"
    ):
        files.save(tmp_path / "full" / "a.npz", lambda file: file.write(b"drawn"))
    assert (spare / "a-0001.npz").read_bytes() == b"drawn"
