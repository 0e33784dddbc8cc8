// What the tests of wayside.js evaluate with, in a page and in Node.js: everything here is global, and so is `hub`.

export async function begin(module, url) {
  const wayside = await import(module)
  Object.assign(globalThis, wayside, { attempt, collect, hold, hub: await wayside.connect(url) })
  console.log("ready")
}

// What a promise becomes: its value, or what was thrown.
async function attempt(promise) {
  try {
    return { value: await promise }
  } catch ({ name, code, status, detail, fields, retry }) {
    return { name, code, status, detail, fields, retry }
  }
}

// What a sequence gives, so many at most, mapped.
async function collect(sequence, map = (each) => each, count = Infinity) {
  const values = []
  for await (const each of sequence) if (values.push(map(each)) >= count) break
  return values
}

// What happens later: `seen` grows, and "ended" is logged.
function hold(sequence, map = (each) => each) {
  const held = { seen: [], sequence }
  const all = (async () => {
    for await (const each of sequence) held.seen.push(map(each))
    return held.seen
  })()
  attempt(all).then((end) => (console.log("ended", end.code ?? ""), Object.assign(held, { end })))
  return held
}
