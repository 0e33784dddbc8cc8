/**
 * MessagePack, as much as there is of it in frames and in results. Knows nothing of either.
 */

const utf8 = new TextEncoder()
const text = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes)

/** @param {any} value  @returns {Uint8Array} */
export function encode(value) {
  let bytes = new Uint8Array(256)
  let view = new DataView(bytes.buffer)
  let at = 0
  const room = (size) => {
    if (at + size > bytes.length) {
      const larger = new Uint8Array(Math.max(at + size, bytes.length * 2))
      larger.set(bytes)
      bytes = larger
      view = new DataView(bytes.buffer)
    }
    return (at += size) - size
  }
  const put = (tag, method = "", size = 0, value = undefined) => {
    const start = room(1 + size)
    view.setUint8(start, tag)
    if (method) view[method](start + 1, value)
  }
  const length = (size, fix, few, tag8, tag16) => {
    if (size < few) put(fix | size)
    else if (tag8 && size < 0x100) put(tag8, "setUint8", 1, size)
    else if (size < 0x10000) put(tag16, "setUint16", 2, size)
    else put(tag16 + 1, "setUint32", 4, size)
  }
  const raw = (data) => {
    const start = room(data.length) // first: it may replace `bytes`
    bytes.set(data, start)
  }
  const write = (value) => {
    if (value === null || value === undefined) put(0xc0)
    else if (typeof value === "boolean") put(value ? 0xc3 : 0xc2)
    else if (typeof value === "bigint" || Number.isSafeInteger(value)) {
      if (value >= -32 && value < 0x80) put(Number(value) & 0xff)
      else if (value >= 0 && value <= 0xffffffff) put(0xce, "setUint32", 4, Number(value))
      else if (value < 0 && value >= -0x80000000) put(0xd2, "setInt32", 4, Number(value))
      else put(value > 0 ? 0xcf : 0xd3, value > 0 ? "setBigUint64" : "setBigInt64", 8, BigInt(value))
    } else if (typeof value === "number") put(0xcb, "setFloat64", 8, value)
    else if (typeof value === "string") {
      const data = utf8.encode(value)
      length(data.length, 0xa0, 32, 0xd9, 0xda)
      raw(data)
    } else if (value instanceof Uint8Array) {
      length(value.length, 0, 0, 0xc4, 0xc5)
      raw(value)
    } else if (Array.isArray(value)) {
      length(value.length, 0x90, 16, 0, 0xdc)
      value.forEach(write)
    } else {
      const pairs = Object.entries(value)
      length(pairs.length, 0x80, 16, 0, 0xde)
      pairs.flat().forEach(write)
    }
  }
  write(value)
  return bytes.subarray(0, at)
}

/** @param {Uint8Array} bytes  @returns {any} Integers that a number does not hold are BigInt, timestamps Date. */
export function decode(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let at = 0
  const get = (method, size) => view[method]((at += size) - size)
  const length = (power) => get(["getUint8", "getUint16", "getUint32"][power], 1 << power)
  const times = (size, read) => Array.from({ length: size }, read)
  const map = (size) => Object.fromEntries(times(size, () => [read(), read()]))
  const safe = (n) => (Number.isSafeInteger(Number(n)) ? Number(n) : n)
  const raw = (size) => {
    if (at + size > bytes.length) throw new RangeError("MessagePack ends too early")
    return bytes.slice(at, (at += size))
  }
  const extension = (size) => {
    const type = get("getInt8", 1)
    if (type !== -1) return raw(size)
    if (size === 4) return new Date(get("getUint32", 4) * 1000)
    const [ns, s] = size === 12 ? [get("getUint32", 4), get("getBigInt64", 8)] : split(get("getBigUint64", 8))
    return new Date(Number(s) * 1000 + Number(ns) / 1e6)
  }
  const split = (both) => [both >> 34n, both & 0x3ffffffffn]
  const read = () => {
    const tag = get("getUint8", 1)
    if (tag < 0x80) return tag
    if (tag < 0x90) return map(tag & 15)
    if (tag < 0xa0) return times(tag & 15, read)
    if (tag < 0xc0) return text(raw(tag & 31))
    if (tag >= 0xe0) return tag - 0x100
    if (tag < 0xc4) return [null, undefined, false, true][tag - 0xc0]
    if (tag < 0xc7) return raw(length(tag - 0xc4))
    if (tag < 0xca) return extension(length(tag - 0xc7))
    if (tag < 0xcc) return tag === 0xca ? get("getFloat32", 4) : get("getFloat64", 8)
    if (tag < 0xcf) return length(tag - 0xcc)
    if (tag === 0xcf) return safe(get("getBigUint64", 8))
    if (tag < 0xd3) return get(["getInt8", "getInt16", "getInt32"][tag - 0xd0], 1 << (tag - 0xd0))
    if (tag === 0xd3) return safe(get("getBigInt64", 8))
    if (tag < 0xd9) return extension(1 << (tag - 0xd4))
    if (tag < 0xdc) return text(raw(length(tag - 0xd9)))
    return tag < 0xde ? times(length(tag - 0xdb), read) : map(length(tag - 0xdd))
  }
  return read()
}
