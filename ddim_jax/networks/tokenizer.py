"""CLIP's tokenizer: texts to token numbers, from the files of a folder.

Between start and end tokens that are written out, a text is normalised (NFC, white space collapsed,
lower case) and cut into words; the bytes of each word are written as printable characters, and
neighbours are merged in the order of merges.txt.

    folder/vocab.json, merges.txt     or tokenizer.json, which holds both
    folder/tokenizer_config.json      the most tokens of a text, and the one that pads
    folder/special_tokens_map.json    the one that pads, in older folders

The token that pads is one of its own wherever it stands in a text, as in transformers: of
OpenCLIP's, each "!".

Source: Radford et al. 2021 (arXiv:2103.00020), section 2.4; Sennrich et al. 2016
(arXiv:1508.07909).
"""

import functools
import json
import re
import textwrap
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddim_jax.files import interpreting, read_json, read_text
from ddim_jax.names import check_range

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIXES = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
LENGTH = 77
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space as Unicode has it; Python counts four more characters."""
SPACES = re.compile(f"[{SPACE}]+")


def byte_characters() -> list[str]:
    """The printable character that stands for each byte."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]


class Tokenizer:
    """ids = Tokenizer.read(folder)(["a photograph of a cat"]).

    Attributes:
        length: of every text, 77: longer ones are cut, shorter ones padded.
        start: the token before a text.
        end: the token after it.
        pad: the token that pads: the end token for CLIP-L, 0 ("!") for OpenCLIP's.
    """

    def __init__(
        self,
        numbers: dict[str, int],
        merges: Sequence[tuple[str, str]],
        length: int = LENGTH,
        pad: str = END,
    ):
        """Makes a tokenizer.

        Args:
            numbers: token -> its number.
            merges: pairs of neighbours, from the first to be merged on.
            length: most tokens of a text, its start and end included.
            pad: the token that pads, and is one of its own in texts too.

        Raises:
            ValueError: start, end or pad is no token; a number is none; no room for a text.
        """
        for token in (START, END, pad):
            if token not in numbers:
                raise ValueError(f"the vocabulary of {len(numbers)} tokens has no {token!r}")
        if odd := [token for token, n in numbers.items() if type(n) is not int or n < 0][:1]:
            raise ValueError(f"tokens have whole numbers, {odd[0]!r} has {numbers[odd[0]]!r}")
        if length < 3:
            raise ValueError(f"a text needs room for start, end and a token, got length {length}")
        self.length, self.pad = length, numbers[pad]
        self.start, self.end = numbers[START], numbers[END]
        self._numbers, self._special = numbers, (START, END, pad)
        self._pieces = re.compile(f"({'|'.join(map(re.escape, self._special))})").split
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        self._characters = byte_characters()
        self._merged = functools.lru_cache(2**16)(self._merge)

    @classmethod
    def read(cls, folder: str | Path) -> "Tokenizer":
        """Reads the tokenizer of a folder.

        Raises:
            FileNotFoundError: it has neither vocab.json and merges.txt nor tokenizer.json.
        """
        folder = Path(folder)
        options = _read_json(folder / "tokenizer_config.json") or {}
        with interpreting(f"the tokenizer in {folder}"):
            numbers, merges = _vocabulary(folder)
            pad = _padding(folder, options) or END
            length = options.get("model_max_length") or LENGTH
            length = length if length < 10**6 else LENGTH  # files without one say 10 ** 30
            pad = pad if isinstance(pad, str) else pad["content"]
            return cls(numbers, merges, int(length), pad)

    @classmethod
    def of_texts(
        cls, texts: Sequence[str], length: int = LENGTH, vocabulary: int | None = None
    ) -> "Tokenizer":
        """Makes a tokenizer of some texts, with the tokens of all bytes first.

        Args:
            texts: in whose order the words get their tokens.
            length: most tokens of a text.
            vocabulary: most tokens, start and end included: the most frequent pairs of
                neighbours are merged, as in byte-pair encoding, and rare words stay in pieces, if
                the texts have as many; None: as many as give each word a token.

        Raises:
            ValueError: fewer tokens than all bytes need.
        """
        characters = byte_characters()
        tokens = characters + [f"{character}</w>" for character in characters]
        words = [word for text in texts for word in _words(_normal(text))]
        least = len(tokens) + 2
        if vocabulary is None:
            ranks = _merges_of_whole_words(words, characters)
        else:
            check_range("vocabulary", vocabulary, f"[{least}, inf)", "2048 is usual", whole=True)
            ranks = _frequent_merges(words, characters, vocabulary - least)
        tokens += ["".join(pair) for pair in ranks]
        numbers = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
        return cls(numbers, list(ranks), length)

    def options(self) -> dict[str, Any]:
        """The arguments that make this tokenizer, as JSON has them."""
        names = {number: token for token, number in self._numbers.items()}
        merges = sorted(self._ranks, key=self._ranks.get)
        numbers = dict(self._numbers)
        return dict(numbers=numbers, merges=merges, length=self.length, pad=names[self.pad])

    def write(self, folder: str | Path) -> None:
        """Writes the files that `read` and transformers' CLIPTokenizer read.

        Args:
            folder: must not exist.
        """
        folder, options = Path(folder), self.options()
        folder.mkdir(parents=True)
        special = dict(bos_token=START, eos_token=END, unk_token=END, pad_token=options["pad"])
        merges = ["#version: 0.2", *(" ".join(pair) for pair in options["merges"]), ""]
        more = dict(model_max_length=self.length, tokenizer_class="CLIPTokenizer", **special)
        (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
        for name, content in (
            ("vocab.json", options["numbers"]),
            ("tokenizer_config.json", more),
            ("special_tokens_map.json", special),
        ):
            text = json.dumps(content, ensure_ascii=False)
            (folder / name).write_text(text, encoding="utf-8")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns int32 [B, length]: start, a text's tokens, end, padding.

        Warns once of those that are too long, and says what was cut off the first.
        """
        rows = np.full((len(texts), self.length), self.pad, np.int32)
        cut = []
        for row, text in zip(rows, texts, strict=True):
            if rest := self.cut(text):
                cut.append(rest)
            ids = [self.start, *self.tokens(text)[: self.length - 2], self.end]
            row[: len(ids)] = ids
        if cut:
            more = f", and of {len(cut) - 1} more texts" if len(cut) > 1 else ""
            warnings.warn(
                f"a text holds at most {self.length - 2} tokens; cut off: "
                f"{textwrap.shorten(cut[0], 80, placeholder=' ...')!r}{more}",
                stacklevel=2,
            )
        return rows

    def tokens(self, text: str) -> list[int]:
        """The numbers of a text's tokens, as many as there are."""
        numbers = []
        for piece in self._pieces(text):
            if piece in self._special:
                numbers.append(self._numbers[piece])
                continue
            words = _words(_normal(piece))
            numbers += [number for word in words for number in self._merged(word)]
        return numbers

    def cut(self, text: str) -> str:
        """What of a text is cut off because it has too many tokens, as it is read; "" for none."""
        return self.text(self.tokens(text)[self.length - 2 :])

    def text(self, ids: Sequence[int]) -> str:
        """The text that tokens stand for, lower case, its words apart by spaces."""
        names = {number: token for token, number in self._numbers.items()} if ids else {}
        special = {token: f"{token}</w>" for token in self._special}
        tokens = [names.get(number, "") for number in ids]
        joined = "".join(special.get(token, token) for token in tokens)
        bytes_of = {character: byte for byte, character in enumerate(self._characters)}
        words = (bytes(bytes_of[c] for c in word) for word in joined.split("</w>"))
        return " ".join(word.decode(errors="replace") for word in words).strip()

    def _merge(self, word: str) -> tuple[int, ...]:
        parts = _merged(_split(word, self._characters), self._ranks)
        return tuple(self._numbers.get(part, self.end) for part in parts)


def _normal(text: str) -> str:
    """NFC, white space collapsed, lower case."""
    text = SPACES.sub(" ", unicodedata.normalize("NFC", text))
    return "".join(character.lower() for character in text)  # a last sigma as others


def _split(word: str, characters: Sequence[str]) -> list[str]:
    """The characters of a word's bytes; the last ends it."""
    parts = [characters[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    return parts


def _merged(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merges neighbours by their ranks until none are left that have one."""
    while len(parts) > 1:
        pairs = enumerate(zip(parts, parts[1:], strict=False))
        rank, i = min((ranks.get(pair, len(ranks)), i) for i, pair in pairs)
        if rank == len(ranks):
            break
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return parts


def _merges_of_whole_words(
    words: Sequence[str], characters: Sequence[str]
) -> dict[tuple[str, str], int]:
    """Merges, with their ranks, after which each word is one token."""
    ranks: dict[tuple[str, str], int] = {}
    for word in dict.fromkeys(words):
        parts = _merged(_split(word, characters), ranks)
        while len(parts) > 1:  # later merges rank below: words before stay whole
            ranks[parts[0], parts[1]] = len(ranks)
            parts[:2] = ["".join(parts[:2])]
    return ranks


def _frequent_merges(
    words: Sequence[str], characters: Sequence[str], count: int
) -> dict[tuple[str, str], int]:
    """Up to `count` merges, each of the pair of neighbours that is the most frequent by then."""
    times = Counter(words)
    parts = {word: _split(word, characters) for word in times}
    ranks: dict[tuple[str, str], int] = {}
    while len(ranks) < count:
        pairs: Counter = Counter()
        for word, split in parts.items():
            for pair in zip(split, split[1:], strict=False):
                pairs[pair] += times[word]
        if not pairs:
            break
        # of equally frequent pairs the first by name: the same tokens in any order of the texts
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks[best] = len(ranks)
        for word, split in parts.items():
            parts[word] = _merged(split, ranks) if best[0] in split else split
    return ranks


def _words(text: str) -> Iterator[str]:
    """Cuts a normalised text: 's and the like, letters, single digits, the rest."""
    place = 0
    while place < len(text):
        end, kind = place + 1, _kind(text[place])
        if suffix := next((s for s in SUFFIXES if text.startswith(s, place)), None):
            end, kind = place + len(suffix), "suffix"
        while kind in ("L", "other") and end < len(text) and _kind(text[end]) == kind:
            end += 1
        if kind != " ":
            yield text[place:end]
        place = end


def _kind(character: str) -> str:
    kind = unicodedata.category(character)[0]
    return " " if character == " " else kind if kind in "LN" else "other"


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> number, and the merges, of the files of a folder."""
    numbers, merges = _read_json(folder / "vocab.json"), folder / "merges.txt"
    if numbers is not None and merges.exists():
        lines = read_text(merges).split("\n")
        rows = [line for line in lines if line.strip() and not line.startswith("#version")]
    else:
        whole = _read_json(folder / "tokenizer.json")
        if whole is None:
            raise FileNotFoundError(
                f"{folder} has no tokenizer; it needs vocab.json and merges.txt, or tokenizer.json"
            )
        numbers, rows = whole["model"]["vocab"], whole["model"]["merges"]
        numbers = numbers | {token["content"]: token["id"] for token in whole["added_tokens"]}
    pairs = [tuple(row.split() if isinstance(row, str) else row) for row in rows]
    if odd := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"the merges in {folder} must be pairs of tokens, got {odd[0]}")
    return numbers, pairs


def _padding(folder: Path, options: dict[str, Any]) -> Any:
    """The token that pads: of files that list no tokens, special_tokens_map.json goes first."""
    listed = "added_tokens_decoder" in options
    others = {} if listed else _read_json(folder / "special_tokens_map.json") or {}
    return (options | others).get("pad_token")


def _read_json(file: Path):
    return read_json(file) if file.exists() else None
