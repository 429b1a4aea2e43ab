// Texts to numbers of tokens, as in networks/tokenizer.py: byte-level pair encoding (Sennrich et
// al. 2016) of lower-case words.

const SPACES = /[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/g;
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^ \p{L}\p{N}]+/gu;

/** The printable character that stands for each byte. */
function byteCharacters() {
  const own = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let other = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(own(byte) ? byte : other++));
}

/**
 * A function from a text to {ids, cut}: Int32Array of the tokenizer's length, and whether the text
 * was too long for it.
 *
 * @param options  numbers, merges, length, pad, start, end: the manifest's `tokenizer`
 */
export function tokenizer({ numbers, merges, length, pad, start, end }) {
  const special = ["<|startoftext|>", "<|endoftext|>", pad];
  const apart = new RegExp(`(${special.map((one) => one.replace(/\W/g, "\\$&")).join("|")})`);
  const ranks = new Map(merges.map((pair, rank) => [pair.join(" "), rank]));
  const characters = byteCharacters();
  const bytes = new TextEncoder();

  function merged(word) {
    const parts = Array.from(bytes.encode(word), (byte) => characters[byte]);
    parts[parts.length - 1] += "</w>";
    while (parts.length > 1) {
      let best = Infinity, at = 0;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (best === Infinity) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts.map((part) => numbers[part] ?? end);
  }

  function tokens(text) {
    return text.split(apart).flatMap((piece) => {
      if (special.includes(piece)) return [numbers[piece]];
      const lower = Array.from(piece.normalize("NFC").replace(SPACES, " "), (c) => c.toLowerCase());
      return (lower.join("").match(WORDS) ?? []).flatMap(merged);
    });
  }

  return (text) => {
    const all = tokens(text);
    const ids = new Int32Array(length).fill(numbers[pad]);
    ids.set([start, ...all.slice(0, length - 2), end]);
    return { ids, cut: all.length > length - 2 };
  };
}
