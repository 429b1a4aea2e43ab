// The loop around the graph of a row: a table of numbers, one network evaluation for each row.
// The same seed, place and table draw the picture that Python draws.

import { initialKey, normal, rowKey, sampleKey } from "./random.js";

/**
 * Draws samples.
 *
 * @param ort      onnxruntime-web
 * @param session  of the graph of a row
 * @param about    its manifest: sample_shape, and inputs by name
 * @param table    of a tables.json: start [2], rows [E][29]
 * @param seed     of the set, a BigInt
 * @param first    place of the first sample in the set
 * @param told     name -> typed array of all samples, such as label: Int32Array
 * @param progress called with (row, Float32Array of clean estimates) after each evaluation
 * @param signal   an AbortSignal, looked at between evaluations
 * @returns        {data: Float32Array, milliseconds: of the evaluations}
 */
export async function draw({ ort, session, about, table, seed, first = 0, count, told, progress, signal }) {
  const shape = [count, ...about.sample_shape];
  const size = about.sample_shape.reduce((a, b) => a * b);
  const keys = Array.from({ length: count }, (_, i) => sampleKey(seed, first + i));
  const tensor = (data, dims = shape) => new ort.Tensor("float32", data, dims);
  const noise = (keyOf) => {
    const z = new Float32Array(count * size);
    keys.forEach((key, i) => normal(keyOf(key), size, z, i * size));
    return z;
  };

  const [scale, fresh] = table.start;
  const x = noise(initialKey).map((v) => scale * v);
  if (fresh) noise((key) => rowKey(key, 0)).forEach((z, i) => (x[i] += fresh * z));
  const slots = about.inputs.history.shape[1];
  const feed = {
    point: tensor(x),
    base: tensor(x),
    history: tensor(new Float32Array(slots * x.length), [count, slots, ...about.sample_shape]),
  };
  for (const [name, data] of Object.entries(told)) {
    const { shape: dims, dtype } = about.inputs[name];
    feed[name] = new ort.Tensor(dtype, data, [count, ...dims.slice(1)]);
  }
  const none = tensor(new Float32Array(x.length));
  let milliseconds = 0;
  for (const [k, row] of table.rows.entries()) {
    signal?.throwIfAborted();
    const [a, b] = row.slice(-2);
    feed.noise = a || b ? tensor(noise((key) => rowKey(key, k + 1))) : none;
    feed.row = tensor(Float32Array.from({ length: count * row.length }, (_, i) => row[i % row.length]),
      [count, row.length]);
    const before = performance.now();
    const out = await session.run(Object.fromEntries(session.inputNames.map((n) => [n, feed[n]])));
    milliseconds += performance.now() - before;
    Object.assign(feed, { point: out.next_point, base: out.next_base, history: out.next_history });
    await progress?.(k, out.x0.data);
  }
  return { data: feed.point.data, milliseconds };
}
