// One use of the npm package @durable-streams/client: node client.mjs USE URL. Ends with status 0 where all is as it
// should be; what the caller is to compare is printed as one line of JSON.

import assert from "node:assert/strict"
import { setTimeout as sleep } from "node:timers/promises"

import { DurableStream, IdempotentProducer } from "@durable-streams/client"

const JSON_TYPE = "application/json"
const BYTES_TYPE = "application/octet-stream"
const range = (from, to) => Array.from({ length: to - from }, (_, index) => ({ n: from + index }))

async function create(url, contentType) {
  const handle = await DurableStream.create({ url, contentType, warnOnHttp: false })
  assert.equal(handle.contentType, contentType)
  return handle
}

async function appendAll(handle, values) {
  for (const value of values) await handle.append(JSON.stringify(value))
}

const uses = {
  async json(url) {
    const handle = await create(url, JSON_TYPE)
    await appendAll(handle, range(0, 10))
    await Promise.all(range(10, 60).map((value) => handle.append(JSON.stringify(value)))) // batched by the client
    const first = await (await handle.stream({ live: false })).json()
    assert.deepEqual(first, range(0, 60))

    const head = await DurableStream.head({ url, warnOnHttp: false })
    assert.equal(head.contentType, JSON_TYPE)
    await appendAll(handle, range(60, 63))
    const rest = await handle.stream({ offset: head.offset, live: false })
    assert.deepEqual(await rest.json(), range(60, 63))
    assert.equal(rest.upToDate, true)
    return first.length
  },

  async bytes(url) {
    const handle = await create(url, BYTES_TYPE)
    const sent = Uint8Array.from({ length: 70_000 }, (_, index) => index % 251)
    await handle.append(sent.subarray(0, 3))
    await handle.append(sent.subarray(3, 1000))
    async function* rest() {
      for (let at = 1000; at < sent.length; at += 23_000) yield sent.slice(at, at + 23_000)
    }
    await handle.appendStream(rest())
    const body = await (await handle.stream({ live: false })).body()
    assert.deepEqual(Buffer.from(body), Buffer.from(sent))
    return body.length
  },

  async text(url) {
    const handle = await create(url, "text/plain")
    await handle.append("grüße\n")
    await handle.append("second line\n")
    const text = await (await handle.stream({ live: false })).text()
    assert.equal(text, "grüße\nsecond line\n")
    return text
  },

  // Follows while somebody appends, then closes: everything once, in order, and then the end.
  async follow(url, live) {
    const handle = await create(url, JSON_TYPE)
    await appendAll(handle, range(0, 3))
    const response = await handle.stream({ live })
    const seen = []
    const writing = (async () => {
      await sleep(100) // so that the first read is over, and the rest comes live
      await appendAll(handle, range(3, 40))
      await handle.close({ body: JSON.stringify({ n: 40 }) })
    })()
    for await (const value of response.jsonStream()) seen.push(value)
    await writing
    assert.deepEqual(seen, range(0, 41))
    assert.equal(response.streamClosed, true)
    return seen.length
  },

  async followBytes(url, live) {
    const handle = await create(url, BYTES_TYPE)
    await handle.append(Uint8Array.of(0, 1, 2))
    const response = await handle.stream({ live })
    const writing = (async () => {
      await sleep(100)
      await handle.append(Uint8Array.of(255, 254))
      await handle.close({ body: Uint8Array.of(10, 13) })
    })()
    const parts = []
    for await (const part of response.bodyStream()) parts.push(Buffer.from(part))
    await writing
    assert.deepEqual([...Buffer.concat(parts)], [0, 1, 2, 255, 254, 10, 13])
    return parts.length
  },

  async close(url) {
    const handle = await create(url, JSON_TYPE)
    await appendAll(handle, range(0, 2))
    const closed = await handle.close()
    const head = await handle.head()
    assert.equal(head.streamClosed, true)
    assert.equal(head.offset, closed.finalOffset)
    await assert.rejects(handle.append("1"), (error) => error.status === 409 && error.headers["stream-closed"] === "true")
    const response = await handle.stream({ live: true }) // ends, although it is live
    assert.deepEqual(await response.json(), range(0, 2))
    assert.equal((await handle.close()).finalOffset, closed.finalOffset)
    return closed.finalOffset
  },

  async producer(url) {
    const handle = await create(url, JSON_TYPE)
    const errors = []
    const options = { lingerMs: 1, maxInFlight: 4, maxBatchBytes: 400, onError: (error) => errors.push(error) }
    const producer = new IdempotentProducer(handle, "npm", options)
    for (const value of range(0, 500)) producer.append(JSON.stringify(value))
    await producer.flush()
    assert.equal(producer.pendingCount, 0)
    const batches = producer.nextSeq
    await producer.restart() // the next epoch fences whoever else uses the id
    const late = new IdempotentProducer(handle, "npm", { ...options, epoch: 0 })
    producer.append(JSON.stringify({ n: 500 }))
    await producer.flush()
    assert.deepEqual(errors, [])
    late.append(JSON.stringify({ late: true }))
    await late.flush().catch(() => {})
    assert.equal(errors.length > 0, true, "the late producer was not refused")
    await producer.close(JSON.stringify({ n: 501 }))
    assert.deepEqual(await (await handle.stream({ live: false })).json(), range(0, 502))
    return batches
  },

  // By status: which class of error the client throws depends on the path through its own code.
  async errors(url) {
    const status = (wanted) => (error) => error.status === wanted
    assert.deepEqual(await DurableStream.head({ url, warnOnHttp: false }), { exists: false })
    const handle = new DurableStream({ url, contentType: JSON_TYPE, warnOnHttp: false })
    await assert.rejects(handle.append("1"), status(404))
    await assert.rejects(handle.stream({ live: false }), status(404))
    await handle.create()
    await assert.rejects(DurableStream.create({ url, contentType: "text/plain", warnOnHttp: false }), status(409))
    await assert.rejects(handle.append("1", { contentType: "text/plain" }), status(409))
    await assert.rejects(handle.append("{not JSON"), status(400))
    await handle.append("1", { seq: "b" })
    await assert.rejects(handle.append("2", { seq: "a" }), status(409))
    await assert.rejects(handle.stream({ offset: "nonsense", live: false }), status(400))
    assert.deepEqual(await (await handle.stream({ live: false })).json(), [1])
    await handle.delete()
    await assert.rejects(handle.delete(), status(404))
    assert.deepEqual(await handle.head(), { exists: false })
    return true
  },
}

const [use, url, ...rest] = process.argv.slice(2)
console.log(JSON.stringify(await uses[use](url, ...rest)))
