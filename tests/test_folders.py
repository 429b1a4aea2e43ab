import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddim_jax import command_line, data
from ddim_jax.data.images import to_pil
from tests.errors import rejects
from tests.pictures import equal, noise


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else to_pil(image)).save(path, **options)


def test_folder_of_classes(tmp_path):
    images = {f"{c}/{i}.png": noise(8, 8, 3) for c in ("cat", "ant") for i in range(2)}
    for name, image in images.items():
        write(tmp_path / name, image)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "._0.png").write_bytes(b"left behind by a file manager")
    source = data.load(f"folder:{tmp_path}")
    assert (source.image_shape, source.num_classes, len(source)) == ((8, 8, 3), 2, 4)
    for i, name in enumerate(["ant/0.png", "ant/1.png", "cat/0.png", "cat/1.png"]):
        assert equal(source[i], {"image": images[name], "label": i // 2})


def test_flat_folder_formats_and_grey(tmp_path):
    image = noise(8, 8, 3)
    write(tmp_path / "a.PNG", image)
    write(tmp_path / "b.webp", image, lossless=True)
    write(tmp_path / "c.jpg", np.full((8, 8, 3), 77, np.uint8), quality=95)
    source = data.load(f"folder:{tmp_path}")
    assert (source.num_classes, len(source)) == (0, 3)
    assert equal(source[0], source[1]) and equal(source[0], {"image": image, "label": 0})
    assert abs(source[2]["image"].astype(int) - 77).max() <= 2
    grey = data.load(f"folder:{tmp_path}", channels=1)
    assert grey.image_shape == grey[0]["image"].shape == (8, 8, 1)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert abs(grey[0]["image"][..., 0] - luma).max() <= 1


def test_folder_crops_the_centre_and_antialiases(tmp_path):
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, 16:80:2] = 255  # one pixel wide, inside the central square
    stripes[:, :16] = stripes[:, 80:] = [255, 0, 0]  # to be cropped away
    write(tmp_path / "a.png", stripes)
    write(tmp_path / "b.png", stripes.transpose(1, 0, 2))
    source = data.load(f"folder:{tmp_path}", image_size=16)
    assert source.image_shape == (16, 16, 3)
    for example in (source[0], source[1]):
        inner = example["image"][2:-2, 2:-2].astype(int)
        assert abs(inner - 127).max() <= 4  # point sampling would give 0 or 255
        assert np.ptp(example["image"].astype(int), axis=-1).max() == 0  # no red left


def test_folder_transparency_and_orientation(tmp_path):
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = [10, 20, 30, 255]
    write(tmp_path / "clear" / "a.png", Image.fromarray(clear))
    image = data.load(f"folder:{tmp_path / 'clear'}")[0]["image"]
    assert (image[:2] == [10, 20, 30]).all() and (image[2:] == 255).all()

    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    wide = noise(4, 6, 3)
    write(tmp_path / "turned" / "a.png", to_pil(wide), exif=exif)
    source = data.load(f"folder:{tmp_path / 'turned'}")
    assert source.image_shape == (6, 4, 3)
    assert np.array_equal(source[0]["image"], np.rot90(wide, -1))


def test_folder_splits(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for i in range(count):
            write(tmp_path / split / "cat" / f"{i}.png", noise(4, 4, 3))
    # Classes inside the splits, so the sub-folders themselves hold no images.
    assert len(data.load(f"folder:{tmp_path}")) == 3
    assert len(data.load(f"folder:{tmp_path}", "test")) == 1
    with rejects(ValueError, "no split 'val'", "test, train", "choose another split"):
        data.load(f"folder:{tmp_path}", "val")
    # "train" beside "car" is a class.
    for name in ("car", "train"):
        write(tmp_path / "vehicles" / name / "0.png", noise(4, 4, 3))
    assert data.load(f"folder:{tmp_path / 'vehicles'}").num_classes == 2
    with rejects(ValueError, "vehicles", "no split 'test'", "make the sub-folder 'test'"):
        data.load(f"folder:{tmp_path / 'vehicles'}", "test")


def test_folder_errors(tmp_path):
    with rejects(FileNotFoundError, "nowhere", "does not exist", "folder:PATH"):
        data.load(f"folder:{tmp_path / 'nowhere' / 'deep'}")
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with rejects(ValueError, "empty", "no images", ".png", "1 sub-folders", "point folder:PATH"):
        data.load(f"folder:{tmp_path / 'empty'}")

    write(tmp_path / "mixed" / "a.png", noise(4, 4, 3))
    write(tmp_path / "mixed" / "cat" / "b.png", noise(4, 4, 3))
    with rejects(ValueError, "mixed", "1 images beside 1 sub-folders", "(cat)", "move"):
        data.load(f"folder:{tmp_path / 'mixed'}")

    write(tmp_path / "holes" / "ant" / "a.png", noise(4, 4, 3))
    write(tmp_path / "holes" / "bee" / "more" / "a.png", noise(4, 4, 3))
    with rejects(ValueError, "1 of the 2 class sub-folders", "(bee)", "fill, flatten or remove"):
        data.load(f"folder:{tmp_path / 'holes'}")

    write(tmp_path / "sizes" / "a.png", noise(4, 4, 3))
    write(tmp_path / "sizes" / "b.png", noise(4, 6, 3))
    with rejects(ValueError, "2 different sizes", "4 x 4, 6 x 4", "image_size"):
        data.load(f"folder:{tmp_path / 'sizes'}")
    assert data.load(f"folder:{tmp_path / 'sizes'}", image_size=4)[1]["image"].shape == (4, 4, 3)


def test_unreadable_files_are_found_before_training(tmp_path):
    photo = np.repeat(np.repeat(noise(8, 8, 3), 8, 0), 8, 1)
    write(tmp_path / "good.jpg", photo)
    with open(tmp_path / "good.jpg", "ab") as file:
        file.write(bytes(100))  # as some cameras leave after the end marker
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        write(tmp_path / name, photo)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-40])  # the header stays whole
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    write(tmp_path / "deep.tif", Image.fromarray(np.zeros((64, 64), np.float32)))
    with rejects(
        ValueError, "6 of 7", "cut.jpg", "cut.png", "cut.webp", "; ...", "skip_unreadable"
    ):
        data.load(f"folder:{tmp_path}")
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        (tmp_path / name).unlink()
    with rejects(ValueError, "3 of 4", "deep.tif", "32 bits", "empty.png", "text.jpg: cannot"):
        data.load(f"folder:{tmp_path}")
    for name in ("deep.tif", "empty.png", "text.jpg"):
        (tmp_path / name).unlink()
    source = data.load(f"folder:{tmp_path}")
    (tmp_path / "good.jpg").write_bytes(b"gone bad")
    with rejects(ValueError, "good.jpg", "cannot be decoded", "start again"):
        source[0]


def test_unreadable_files_are_listed_and_can_be_skipped(tmp_path):
    for name in ("ant", "bee"):
        write(tmp_path / name / "good.png", noise(4, 4, 3))
    for number in range(5):
        (tmp_path / "ant" / f"bad{number}.png").write_bytes(b"")
    (tmp_path / "ant" / "notes.txt").write_text("x")
    write(tmp_path / "bee" / "deeper" / "other.heic.png", noise(4, 4, 3))
    with pytest.raises(ValueError, match="5 of 7 .*bad2.png.*; \\.\\.\\., listed in ") as error:
        data.load(f"folder:{tmp_path}")
    listed = Path(re.search(r"listed in (\S+\.txt)", str(error.value))[1])
    assert [line[:13] for line in listed.read_text().splitlines()] == [
        f"ant/bad{number}.png:" for number in range(5)
    ]
    source = data.load(f"folder:{tmp_path}", skip_unreadable=True)
    assert (len(source), source.num_classes, source.class_names) == (2, 2, ("ant", "bee"))
    assert source[1]["label"] == 1
    assert "skipped 5 unreadable images, listed in" in source.note
    assert "and 2 other files (.txt)" in source.note
    (tmp_path / "bee" / "good.png").write_bytes(b"")
    with rejects(ValueError, "no image of class 'bee'", "remove that sub-folder"):
        data.load(f"folder:{tmp_path}", skip_unreadable=True)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_many_formats_are_read(tmp_path):
    image = noise(8, 8, 3)
    for name in ("a.bmp", "b.tif", "c.TIFF", "d.webp"):
        write(tmp_path / name, image, **({"lossless": True} if name == "d.webp" else {}))
    few = Image.fromarray(image // 64 * 64).quantize(64)
    write(tmp_path / "e.gif", few, save_all=True, append_images=[few.rotate(90)])
    write(tmp_path / "f.png", Image.fromarray(np.uint16(257) * image[..., 0]))
    write(tmp_path / "g.png", Image.fromarray(np.full((8, 8), 65535, np.uint16)))
    source = data.load(f"folder:{tmp_path}")
    assert len(source) == 7 and not source.note
    for index in range(4):
        assert np.array_equal(source[index]["image"], image)
    assert np.array_equal(source[4]["image"], np.asarray(few.convert("RGB")))  # the first frame
    assert np.array_equal(source[5]["image"], np.repeat(image[..., :1], 3, -1))  # 16 bits
    assert (source[6]["image"] == 255).all()
    for name in ("a.bmp", "b.tif", "e.gif"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 3])  # within the first frame
    with rejects(ValueError, "3 of 7", "a.bmp", "b.tif", "e.gif"):
        data.load(f"folder:{tmp_path}")


def test_classes_that_are_numbers_are_in_the_order_of_the_numbers(tmp_path):
    for name in ("0", "1", "2", "10", "9"):
        write(tmp_path / "plain" / name / "a.png", noise(4, 4, 3))
        write(tmp_path / "mixed" / name / "a.png", noise(4, 4, 3))
    write(tmp_path / "mixed" / "dog" / "a.png", noise(4, 4, 3))
    assert data.load(f"folder:{tmp_path / 'plain'}").class_names == ("0", "1", "2", "9", "10")
    mixed = data.load(f"folder:{tmp_path / 'mixed'}")
    assert mixed.class_names == ("0", "1", "2", "9", "10", "dog")
    assert data.load("digits").class_names == ()  # their numbers say as much


def test_odd_names_and_links(tmp_path, capsys):
    """A name that is no text is no class; a link to nowhere is an image that cannot be read."""
    write(tmp_path / "ok" / "a.png", noise(4, 4, 3))
    write(tmp_path / "ok" / "öä 日本.png", noise(4, 4, 3))
    (tmp_path / "ok" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "ok" / "self.png").symlink_to(tmp_path / "ok" / "self.png")
    with rejects(ValueError, "2 of 4 image files", "gone.png", "self.png", "skip_unreadable"):
        data.load(f"folder:{tmp_path / 'ok'}")
    source = data.load(f"folder:{tmp_path / 'ok'}", skip_unreadable=True)
    assert len(source) == 2 and source.note.startswith("skipped 2 unreadable images, listed in")
    for name in (os.fsdecode(b"\xff\xfe"), "a\nb"):
        folder = tmp_path / "classes" / name
        write(folder / "a.png", noise(4, 4, 3))
        with rejects(ValueError, f"class sub-folder {ascii(name)}", "rename it"):
            data.load(f"folder:{tmp_path / 'classes'}")
        (folder / "a.png").unlink()
        folder.rmdir()
    (tmp_path / "classes").rmdir()
    odd = tmp_path / os.fsdecode(b"\xff")  # a folder of such a name is, its list is readable
    for number in range(4):
        write(odd / f"{number}\n.png", noise(4, 4, 3))
        (odd / f"{number}\n.png").write_bytes(b"no picture")
    with rejects(ValueError, "4 of 4", "listed in") as said:
        data.load(f"folder:{odd}")
    assert "\n" in str(said.value) and "\n" not in command_line.with_flags(str(said.value), ())
