// Read the file of a model for browsers; askd_ray/serve/browser_model.py describes and writes it.

// Returns the header with `part(name)`, which gives the bytes of a part.
export function readModelFile(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const part = (name) => {
    const [first, end] = header.parts[name];
    return new Uint8Array(buffer, 8 + length + first, end - first);
  };
  return { ...header, part };
}

// Returns a function ids -> text. A character may need the bytes of several tokens.
export function createTokenReader(bytes, ends) {
  return (ids) => {
    const parts = ids.map((id) => bytes.subarray(id === 0 ? 0 : ends[id - 1], ends[id]));
    const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      joined.set(part, at);
      at += part.length;
    }
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(joined).trim();
  };
}
