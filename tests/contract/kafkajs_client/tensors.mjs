// Tensors as docs/protocol.md lays them out: little-endian elements, row by row.

const elements = {
  BOOL: {
    size: 1,
    read: (view, at) => view.getUint8(at) !== 0,
    write: (view, at, value) => view.setUint8(at, value ? 1 : 0),
  },
  UINT8: number(1, "Uint8"),
  INT8: number(1, "Int8"),
  UINT16: number(2, "Uint16"),
  INT16: number(2, "Int16"),
  UINT32: number(4, "Uint32"),
  INT32: number(4, "Int32"),
  FP32: number(4, "Float32"),
  FP64: number(8, "Float64"),
  // 64-bit integers do not fit JavaScript's numbers: they are written and printed as decimal strings.
  UINT64: wide("BigUint64"),
  INT64: wide("BigInt64"),
};

function number(size, kind) {
  return {
    size,
    read: (view, at) => view[`get${kind}`](at, true),
    write: (view, at, value) => view[`set${kind}`](at, value, true),
  };
}

function wide(kind) {
  return {
    size: 8,
    read: (view, at) => view[`get${kind}`](at, true).toString(),
    write: (view, at, value) => view[`set${kind}`](at, BigInt(value), true),
  };
}

/** {name, datatype, shape, values} with flat values → the tensor as it travels. */
export function encodeTensor({ name, datatype, shape, values }) {
  return { name, datatype, shape, data: datatype === "BYTES" ? encodeBytes(values) : encodeElements(datatype, values) };
}

/** A tensor as it travels → {name, datatype, shape, values}. */
export function decodeTensor({ name, datatype, shape, data }) {
  return { name, datatype, shape, values: datatype === "BYTES" ? decodeBytes(data) : decodeElements(datatype, data) };
}

function layoutOf(datatype) {
  const layout = elements[datatype];
  if (!layout) throw new Error(`datatype ${datatype} has no type in this language; pass its bytes as they are`);
  return layout;
}

function encodeElements(datatype, values) {
  const { size, write } = layoutOf(datatype);
  const data = new Uint8Array(values.length * size);
  const view = new DataView(data.buffer);
  values.forEach((value, index) => write(view, index * size, value));
  return data;
}

function decodeElements(datatype, data) {
  const { size, read } = layoutOf(datatype);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return Array.from({ length: data.byteLength / size }, (_, index) => read(view, index * size));
}

function encodeBytes(values) {
  const parts = values.flatMap((value) => {
    const bytes = Buffer.from(value, "utf8");
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length);
    return [length, bytes];
  });
  return new Uint8Array(Buffer.concat(parts));
}

function decodeBytes(data) {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const values = [];
  for (let at = 0; at < bytes.length; ) {
    const length = bytes.readUInt32LE(at);
    values.push(bytes.toString("utf8", at + 4, at + 4 + length));
    at += 4 + length;
  }
  return values;
}
