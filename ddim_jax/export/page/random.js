// JAX's random numbers: the same key gives the same bits, and normals to 1e-6.
//
// Threefry-2x32 in 20 rounds (Salmon et al. 2011), and the inverse of erf in single precision
// (Giles 2012), each operation rounded to float32 as there.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];

/** Two 32-bit words of a key [2] and a counter of two words. */
export function threefry(key, x0, x1) {
  const words = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bda];
  x0 = (x0 + words[0]) | 0;
  x1 = (x1 + words[1]) | 0;
  for (let group = 0; group < 5; group++) {
    for (const turn of ROTATIONS[group % 2]) {
      x0 = (x0 + x1) | 0;
      x1 = ((x1 << turn) | (x1 >>> (32 - turn))) ^ x0;
    }
    x0 = (x0 + words[(group + 1) % 3]) | 0;
    x1 = (x1 + words[(group + 2) % 3] + group + 1) | 0;
  }
  return [x0 >>> 0, x1 >>> 0];
}

/** `jax.random.fold_in(key, number)`. */
export const foldIn = (key, number) => threefry(key, 0, number);

/** The key of sample `index` of the set of `seed`, a BigInt in 0..2^64 - 1. */
export function sampleKey(seed, index) {
  return foldIn([Number(seed >> 32n), Number(seed & 0xffffffffn)], index);
}

export const INITIAL_NOISE = 0;
const SOLVER_NOISE = 1;

/** The key of a sample's initial noise. */
export const initialKey = (key) => foldIn(key, INITIAL_NOISE);

/** The key of a sample's noise of a row; 0 is a table's start, 1 its first row. */
export const rowKey = (key, row) => foldIn(foldIn(key, SOLVER_NOISE), row);

const f = Math.fround;
const ROOT = f(Math.SQRT2);
const LOWEST = f(-0.99999994);
const NEAR = [
  2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
  -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
].map(f);
const FAR = [
  -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
  -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
].map(f);

function inverseErf(x) {
  const w = f(-Math.log1p(-f(x * x)));
  const near = w < 5;
  const at = near ? f(w - 2.5) : f(f(Math.sqrt(w)) - 3);
  let sum = 0;
  for (const coefficient of near ? NEAR : FAR) sum = f(sum * at + coefficient);
  return f(sum * x);
}

const bits = new Uint32Array(1);
const float = new Float32Array(bits.buffer);

/** Writes `jax.random.normal(key, [count])` into `out` from `from` on. */
export function normal(key, count, out = new Float32Array(count), from = 0) {
  for (let i = 0; i < count; i++) {
    const [a, b] = threefry(key, 0, i);
    bits[0] = ((a ^ b) >>> 9) | 0x3f800000;
    const uniform = Math.max(LOWEST, f((float[0] - 1) * 2 + LOWEST));
    out[from + i] = ROOT * inverseErf(uniform);
  }
  return out;
}
