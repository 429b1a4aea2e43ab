"""The tokenizer: the numbers of CLIPTokenizer, what is cut off, files that are not there."""

import json
import warnings

import numpy as np
import pytest

from ddim_jax.networks.tokenizer import END, START, Tokenizer
from tests.tokenizer_texts import FIXTURE, LENGTH, layout, write

RECORDED = json.loads(FIXTURE.read_text())
MERGES = RECORDED["merges"]


@pytest.fixture
def tokenizer(tmp_path):
    write(tmp_path, MERGES)
    return Tokenizer.read(tmp_path)


@pytest.mark.parametrize("row", RECORDED["texts"], ids=lambda row: repr(row["text"][:20]))
@pytest.mark.filterwarnings("ignore:a text holds")
def test_numbers_are_those_of_transformers(tokenizer, row):
    """As CLIPTokenizer of transformers 5.24 gave them."""
    ids = tokenizer([row["text"]])
    assert ids.dtype == np.int32 and ids.shape == (1, LENGTH)
    np.testing.assert_array_equal(ids[0], row["ids"])


@pytest.mark.parametrize("row", RECORDED["marks"], ids=lambda row: repr(row["text"]))
@pytest.mark.parametrize("special", ["!", {"content": "!", "lstrip": False}])
def test_a_map_of_special_tokens_says_what_pads(tmp_path, row, special):
    """As of Stable Diffusion 2, whose other file says the end; then each "!" is one, too."""
    write(tmp_path, MERGES)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": special}))
    tokenizer = Tokenizer.read(tmp_path)
    assert tokenizer.pad == layout(MERGES)["!"]
    np.testing.assert_array_equal(tokenizer([row["text"]])[0], row["ids"])
    tokenizer.write(tmp_path / "new")
    again = Tokenizer.read(tmp_path / "new")
    np.testing.assert_array_equal(again([row["text"]])[0], row["ids"])


def test_a_map_is_not_read_beside_a_list_of_tokens(tmp_path):
    """As transformers does; a text of marks is told as it was."""
    listed = {str(layout(MERGES)[END]): {"content": END, "special": True}}
    write(tmp_path, MERGES, added_tokens_decoder=listed)
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    assert Tokenizer.read(tmp_path).pad == layout(MERGES)[END]
    tokenizer = Tokenizer(layout(MERGES), MERGES, LENGTH, "!")
    assert tokenizer.text(tokenizer.tokens("a cat!!x")) == "a cat ! ! x"


def test_what_is_cut_off_is_said(tokenizer):
    whole = "the cat " * 19
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = tokenizer([whole, ""])
    assert ids[0, -1] == tokenizer.end and ids[1, 1] == tokenizer.end
    assert tokenizer.cut(whole) == "" == tokenizer.cut("")
    with pytest.warns(UserWarning, match="at most 38 tokens; cut off: 'on the naïve mat !'"):
        cut = tokenizer([whole + "on the naïve  MAT!"])
    np.testing.assert_array_equal(cut, ids[:1])
    with pytest.warns(UserWarning, match="'on', and of 1 more texts") as warned:
        tokenizer([whole + "on", "", whole + "at"])
    assert len(warned) == 1


def test_numbers_back_to_a_text(tokenizer):
    text = f"a cat{END}it's 🙂 naïve{START} "
    assert tokenizer.text(tokenizer.tokens(text)) == f"a cat {END} it 's 🙂 naïve {START}"
    assert tokenizer.text([]) == ""


def test_padding_and_length_are_the_folders(tmp_path):
    """OpenCLIP pads with "!"; some files say that there is no length."""
    write(tmp_path, MERGES, pad_token={"content": "!"}, model_max_length=10**30)
    tokenizer = Tokenizer.read(tmp_path)
    ids = tokenizer(["a cat"])
    assert ids.shape == (1, 77) and ids[0, -1] == tokenizer.pad == layout(MERGES)["!"]


def test_folders_of_newer_programs_hold_one_file(tmp_path, tokenizer):
    numbers = layout(MERGES)
    added = [{"content": token, "id": numbers.pop(token)} for token in (START, END)]
    whole = {"model": {"vocab": numbers, "merges": MERGES}, "added_tokens": added}
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    text = "a photograph of the cat, naïve"
    assert Tokenizer.read(folder).tokens(text) == tokenizer.tokens(text)
    whole["model"]["merges"] = [" ".join(pair) for pair in MERGES]  # as they were before
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert Tokenizer.read(folder).tokens(text) == tokenizer.tokens(text)


def test_folders_and_vocabularies_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="it needs vocab.json and merges.txt, or tokenizer"):
        Tokenizer.read(tmp_path)
    with pytest.raises(ValueError, match=r"the vocabulary of 1 tokens has no '<\|startoftext\|>'"):
        Tokenizer({"a": 0}, [])
    with pytest.raises(ValueError, match="has no '<pad>'"):
        Tokenizer(layout(MERGES), MERGES, pad="<pad>")
    with pytest.raises(ValueError, match="room for start, end and a token, got length 2"):
        Tokenizer(layout(MERGES), MERGES, length=2)
