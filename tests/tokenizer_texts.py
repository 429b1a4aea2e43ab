"""Hard texts and a tiny vocabulary; `python -m tests.tokenizer_texts` records what they become.

The vocabulary is laid out as CLIP's: bytes, bytes at the end of a word, merges, start and end. Its
merges are learned from a few sentences. Where transformers is installed, its CLIPTokenizer gives
the numbers of every text.
"""

import collections
import json
import tempfile
from pathlib import Path

from ddim_jax.networks.tokenizer import END, START, byte_characters

FIXTURE = Path(__file__).parent / "fixtures" / "tokenizer.json"
LENGTH = 40
SENTENCES = """a photograph of a cat sitting on the chair, a photograph of an astronaut riding a
horse, an oil painting of the sea at night, highly detailed, by the light of the moon; the cat is
on the mat and the dog is in the house, a bold seven, a thin three, the drawing of a naïve café,
don't we've it's I'm they're you'll he'd, the best quality, 4k, 8k, trending, the green forest"""
TEXTS = [
    "",
    " \t\n ",
    "a photograph of an astronaut riding a horse",
    "A  Photograph\n\nOF\u00a0the\u3000CAT\u2009!",
    "don't they're I'LL we've it's 's 't O'D '",
    "naïve café, a\u0301 vs á, ſ ﬁ ǅ",
    "ΟΔΟΣ ΣΑΣ İstanbul STRASSE ß",
    "a'b ''s x's!'s 9's o''",
    "&lt;b&gt;bold&amp;</b> <i>text</i> &#39;",
    "🙂 👩\u200d👩\u200d👧\u200d👦🇩🇪❤️ ✨✨",
    "日本語のテスト 한국어 عربي हिन्दी",
    "12345 3.14 ½ ² Ⅷ 4k",
    "<|endoftext|> x<|startoftext|>y <|ENDOFTEXT|> <|end",
    "(masterpiece:1.2), [best_quality], {a|b} --no text\\n /imagine #1 @me",
    "\x00\x1f\u200b\ufeff\x7f",
    "x" * 60,
    "the cat " * 40,
    "a photograph of the cat, " * 6 + "highly detailed café",
]
MARKS = ["a cat!", "wow!!! Ok", "!", "A!B", "a!'s x", "cat ! ! dog", "x !@ y", "it!'s!?", "a¡ǃ！"]
"""Texts of a tokenizer that pads with "!"."""


def layout(merges: list[list[str]]) -> dict[str, int]:
    """Token -> number."""
    singles = byte_characters()
    ends = [f"{one}</w>" for one in singles]
    tokens = [*singles, *ends, *("".join(pair) for pair in merges), START, END]
    return {token: number for number, token in enumerate(tokens)}


def write(folder: Path, merges: list[list[str]], **options) -> None:
    """vocab.json, merges.txt and tokenizer_config.json."""
    (folder / "vocab.json").write_text(json.dumps(layout(merges)))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    options = {"model_max_length": LENGTH, "pad_token": END} | options
    (folder / "tokenizer_config.json").write_text(json.dumps(options))


def learn(count: int) -> list[list[str]]:
    """The most frequent neighbours of the sentences, one after another."""
    characters, merges = byte_characters(), []
    words = collections.Counter(SENTENCES.lower().replace(",", " ,").replace("'", " '").split())
    parts = {}
    for word in words:
        *first, last = (characters[byte] for byte in word.encode())
        parts[word] = [*first, f"{last}</w>"]
    for _ in range(count):
        pairs = collections.Counter()
        for word, now in parts.items():
            for pair in zip(now, now[1:], strict=False):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(list(best))
        for now in parts.values():
            i = 0
            while i < len(now) - 1:
                if (now[i], now[i + 1]) == best:
                    now[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def record() -> None:
    """Writes the fixture."""
    from transformers import CLIPTokenizer

    merges = learn(120)
    recorded = {"merges": merges}
    for key, texts, special in (("texts", TEXTS, {}), ("marks", MARKS, {"pad_token": "!"})):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), merges)
            (Path(folder) / "special_tokens_map.json").write_text(json.dumps(special))
            theirs = CLIPTokenizer.from_pretrained(folder)
        recorded[key] = []
        for text in texts:
            found = theirs(text, padding="max_length", truncation=True, max_length=LENGTH)
            recorded[key].append({"text": text, "ids": found.input_ids})
    FIXTURE.write_text(json.dumps(recorded))


if __name__ == "__main__":
    record()
