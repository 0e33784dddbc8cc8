/**
 * Wayside in a browser, or in Node.js 22 and later: calls, events and streams over one WebSocket, `/v1/connect`.
 *
 *     import { connect } from "/wayside.js"
 *     const hub = await connect()
 *     for await (const token of hub.stream("chat.complete", prompt)) show(token)
 *
 * A connection that is lost is made anew. Followers then read on from their offset; a call that may have run is never
 * repeated, unless it has a key. Durations are milliseconds, but where a name says otherwise. See docs/JAVASCRIPT.md.
 *
 * @typedef {{query?: Record<string, unknown>, key?: string, priority?: number, signal?: AbortSignal}} Options
 * @typedef {{via?: "push" | "sse" | "long-poll" | "poll", offset?: string, interval?: number, signal?: AbortSignal}} Reading
 * @typedef {{id: string, service: string, state: "queued" | "running" | "done" | "failed" | "cancelled",
 *   attempt: number, created_ms: number, started_ms?: number, ended_ms?: number, progress?: any, items?: number,
 *   error?: Record<string, any>, result?: any, ended: boolean}} CallStatus
 * @typedef {{kind: string, offset: string, time_ms: number, attempt: number, data: any, error: any, final: boolean}}
 *   CallEvent `kind`: queued, running, progress, item, retry, returned, done, failed, cancelled. `offset`: where to read
 *   on after it.
 * @typedef {{offset: string, stream: string, data: Uint8Array, json(): any, text(): string}} StreamRecord
 *   `stream`: whose it is, also where a glob was read.
 * @typedef {{status: number, headers: Record<string, string>, body: Uint8Array, json(): any, text(): string}} Answer
 */

import { Connection, NOTHING, WaysideError, backoff, errorOf, refused, sleep, text } from "./wayside/connection.js"
import { decode } from "./wayside/msgpack.js"

export { UnknownOutcome, WaysideError } from "./wayside/connection.js"
export * as msgpack from "./wayside/msgpack.js"

const utf8 = new TextEncoder()

// -- bodies, values, events

const bytesOf = (value) =>
  value instanceof ArrayBuffer
    ? new Uint8Array(value)
    : ArrayBuffer.isView(value)
      ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
      : null

/** A body and its content type. */
async function payloadOf(value) {
  if (value === undefined) return [NOTHING, ""]
  const bytes = bytesOf(value instanceof Blob ? await value.arrayBuffer() : value)
  return bytes ? [bytes, "application/octet-stream"] : [utf8.encode(JSON.stringify(value)), "application/json"]
}

function valueOf(body, contentType) {
  const type = contentType.split(";")[0].trim().toLowerCase()
  if (type === "application/json" || type.endsWith("+json")) return JSON.parse(text(body))
  if (type === "application/msgpack") return decode(body)
  return type.startsWith("text/") ? text(body) : body
}

const isFinal = (state) => ["done", "failed", "cancelled"].includes(state)
const statusOf = (document) => ({ ...document, ended: isFinal(document.state) })

function eventOf(offset, { event: kind, time_ms, attempt = 0, data = null, content_type = "", base64, error = null }) {
  if (base64) data = valueOf(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)), content_type)
  return { kind, offset, time_ms, attempt, data, error, final: isFinal(kind) }
}

/** What `events` have yielded. `at` is the sequence that is given them. */
async function* itemsOf(events, at) {
  for await (const event of events) {
    at.offset = event.offset
    if (event.kind === "item") yield event.data
    else if (event.kind === "failed" || event.kind === "cancelled") throw errorOf(event.error)
  }
}

/** The offset so many records before another: its last 16 digits count them. */
const before = (offset, by) => offset.slice(0, -16) + String(Number(offset.slice(-16)) - by).padStart(16, "0")

/**
 * Values that come, for `for await`. Leaving the loop, or `return()`, stops it at once, on the hub as well.
 * @template T
 */
export class Sequence {
  #stop = new AbortController()
  #values

  /** @param {(at: any, signal: AbortSignal) => AsyncGenerator<T>} values */
  constructor(values, offset = "-1", /** @type {AbortSignal | undefined} */ signal = undefined) {
    /** Where to go on after the value that was given last: what a page keeps for its next life. */
    this.offset = offset
    /** Of `hub.stream`: the call. @type {Promise<CallHandle> | undefined} */
    this.call = undefined
    this.#values = values(this, signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal)
  }
  [Symbol.asyncIterator]() {
    return this
  }
  /** @returns {Promise<IteratorResult<T, undefined>>} */
  async next() {
    try {
      return await this.#values.next()
    } catch (error) {
      if (this.#stop.signal.aborted) return { done: true, value: undefined }
      throw error
    }
  }
  /** @returns {Promise<IteratorResult<T, undefined>>} */
  async return() {
    this.#stop.abort()
    await this.#values.return(undefined).catch(() => {})
    return { done: true, value: undefined }
  }
}

// -- what a page uses

const streamUrl = (path) => `/v1/stream/${path.split("/").map(encodeURIComponent).join("/")}`

/** What few calls say. */
function callOptions(given, query = {}) {
  const options = Object.entries(given).filter(([, value]) => value)
  const lists = Object.entries(query).map(([name, value]) => [name, [value].flat().map(String)])
  if (lists.length) options.push(["query", Object.fromEntries(lists)])
  return options.length ? Object.fromEntries(options) : null
}

/** A hub. Made by {@link connect}. */
export class Hub {
  #connection

  constructor(connection) {
    this.#connection = connection
    /** Where it is, without a slash at the end. @type {string} */
    this.url = connection.url
  }

  /** Let go of the connection. Calls that were submitted go on, others are cancelled. @returns {Promise<void>} */
  close() {
    return this.#connection.close()
  }

  /**
   * Call a service and wait for its result. Bytes and blobs are sent as they are, anything else as JSON.
   * After `timeout`, or when `signal` is aborted, the call is cancelled, unless it has a key.
   * @param {string} service  @param {unknown} [body]  @param {Options & {timeout?: number}} [options]
   * @returns {Promise<any>} Throws {@link WaysideError}, {@link UnknownOutcome}, or the reason of `signal`.
   */
  async call(service, body, { query, key = "", priority = 0, timeout, signal } = {}) {
    const options = callOptions({ key, priority }, query)
    const frame = ["call", 0, service, ...(await payloadOf(body)), "", false, options]
    const [, , result, type] = await this.#connection.ask(frame, { repeat: key !== "", timeout, signal })
    return valueOf(result ?? NOTHING, type ?? "")
  }

  /**
   * Have a service called: the call is on disk when this resolves. With a `key` the same request is the same call, however
   * often it is submitted. `delay` is the time before it may start; `callback` a URL that is told of its end.
   * @param {string} service  @param {unknown} [body]
   * @param {Options & {delay?: number, callback?: string}} [options]
   */
  async submit(service, body, { query, key = "", priority = 0, delay = 0, callback = "", signal } = {}) {
    const options = callOptions({ key, priority, delay_s: delay / 1000, callback }, query)
    const frame = ["call", 0, service, ...(await payloadOf(body)), "", true, options]
    const [, channel, id] = await this.#connection.ask(frame, { repeat: key !== "", signal })
    this.#connection.put(["leave", channel]) // who wants the result asks for it
    return this.get(id)
  }

  /** The handle of a call by its name: from anywhere, also after the page was loaded again. @param {string} id */
  get(id) {
    return new CallHandle(id, this.#connection)
  }

  /**
   * Call a service that yields, and give what it yields as it comes. The call is submitted: page, connection and hub may
   * break meanwhile. With the `key` and the `offset` that another life of the page kept, it goes on where that was.
   * Leaving the loop does not end the call; `(await tokens.call).cancel()` does.
   * @param {string} service  @param {unknown} [body]  @param {Options & Reading} [options]
   * @returns {Sequence<any>}
   */
  stream(service, body, { via, interval, offset, ...options } = {}) {
    const call = this.submit(service, body, options)
    call.catch(() => {}) // who iterates is told
    const values = async function* (at, signal) {
      yield* itemsOf((await call).events({ via, interval, offset, signal }), at)
    }
    return Object.assign(new Sequence(values, offset, options.signal), { call })
  }

  /** Calls that have not ended, and those that have lately. @returns {Promise<CallStatus[]>} */
  async calls({ service = "", state = "", limit = 100 } = {}) {
    const query = new URLSearchParams({ service, state, limit: String(limit) })
    return (await this.request("GET", `/v1/call/?${query}`)).json().calls.map(statusOf)
  }

  /**
   * Create a stream, or find it as it is asked for.
   * @param {string} stream
   * @param {{content_type?: string, durability?: "fsync" | "async" | "memory", ttl_s?: number, retention_bytes?: number,
   *   retention_age_s?: number}} [options]
   */
  async create(stream, options = {}) {
    const headers = { "Content-Type": options.content_type ?? "application/json" }
    for (const name of ["durability", "ttl_s", "retention_bytes", "retention_age_s"])
      if (options[name] !== undefined) headers[`stream-${name.replace(/_s$/, "").replace("_", "-")}`] = `${options[name]}`
    await this.request("PUT", streamUrl(stream), headers)
  }

  /**
   * Append records: bytes as they are, anything else as JSON. A stream that does not exist is made, as JSON.
   * @param {string} stream  @param {...unknown} records
   * @returns {Promise<string>} The offset after them, once they are as durable as the stream promises.
   */
  async publish(stream, ...records) {
    const encoded = records.map((record) => bytesOf(record) ?? utf8.encode(JSON.stringify(record)))
    const append = async () => (await this.#connection.ask(["publish", 0, stream, encoded]))[2]
    return append().catch(async (error) => {
      if (error.code !== "stream-not-found") throw error
      await this.create(stream)
      return append()
    })
  }

  /**
   * Records of a stream from an offset (`-1`: the start, `now`: the tail) until it is closed; or with a glob such as
   * `orders/**` of all streams that it matches, also those made later.
   * @param {string} stream  @param {{offset?: string, signal?: AbortSignal}} [options]
   * @returns {Sequence<StreamRecord>}
   */
  read(stream, { offset = "-1", signal } = {}) {
    const connection = this.#connection
    const globbed = stream.split("/").some((segment) => segment === "*" || segment === "**")
    const values = async function* (at, signal) {
      for await (const [after, data] of connection.follow(stream, offset, false, signal)) {
        at.offset = after
        const [path, bytes] = globbed ? unwrapped(data) : [stream, data]
        yield { offset: after, stream: path, data: bytes, json: () => JSON.parse(text(bytes)), text: () => text(bytes) }
      }
    }
    return new Sequence(values, offset, signal)
  }

  /**
   * Any request of the HTTP interface, over the same connection.
   * @param {string} method  @param {string} target  @param {Record<string, string>} [headers]
   * @param {Uint8Array | string} [body]  @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<Answer>} Throws {@link WaysideError} from status 400 on.
   */
  request(method, target, headers, body = NOTHING, options) {
    return this.#connection.request(method, target, headers, bytesOf(body) ?? utf8.encode(String(body)), options)
  }
}

/** The stream of a record in an envelope, and the record. */
function unwrapped(envelope) {
  const { stream, data, encoding } = JSON.parse(text(envelope))
  if (encoding === "base64") return [stream, Uint8Array.from(atob(data), (character) => character.charCodeAt(0))]
  return [stream, utf8.encode(encoding === "text" ? data : JSON.stringify(data))]
}

/** A call that was submitted. `id` is its name: `hub.get(id)` is the same handle, from anywhere. */
export class CallHandle {
  #connection

  constructor(/** @type {string} */ id, connection) {
    this.#connection = connection
    this.id = id
    /** Where the call can be read, in any of the four ways. @type {string} */
    this.url = `${connection.url}/v1/call/${id}`
  }

  #request(method, rest = "", headers = undefined, options = undefined) {
    return this.#connection.request(method, `/v1/call/${this.id}${rest}`, headers, NOTHING, options)
  }

  /** What the call is now. @returns {Promise<CallStatus>} */
  async status() {
    return statusOf((await this.#request("GET")).json())
  }

  /** Wait for its end, for so long at most. @returns {Promise<CallStatus>} What it is then: look at `ended`. */
  async wait(ms = 20_000) {
    const deadline = Date.now() + ms
    for (let left = ms; left > 0; left = deadline - Date.now()) {
      const prefer = { Prefer: `wait=${Math.min(60, Math.ceil(left / 1000))}` }
      try {
        const status = statusOf((await this.#request("GET", "", prefer, { timeout: left })).json())
        if (status.ended) return status
      } catch (error) {
        if (error.code !== "call-timeout") throw error
      }
    }
    return this.status()
  }

  /**
   * Its result, once it has ended. Throws what it failed with; after `timeout` the code `call-timeout`: the call goes on.
   * @param {{timeout?: number, signal?: AbortSignal}} [options]  @returns {Promise<any>}
   */
  async result({ timeout, signal } = {}) {
    const deadline = Date.now() + (timeout ?? 0)
    for (;;) {
      const left = timeout === undefined ? undefined : Math.max(0, deadline - Date.now())
      const answer = await this.#request("GET", "/result", { Prefer: "wait=30" }, { timeout: left, signal })
      if (answer.status !== 202) return valueOf(answer.body, answer.headers["content-type"] ?? "")
    }
  }

  /** End it. Throws where it has ended already. @returns {Promise<CallStatus>} */
  async cancel() {
    return statusOf((await this.#request("DELETE")).json())
  }

  /**
   * What happens to it, from an offset on, until it has ended; across lost connections. `via` chooses how to hear of it:
   * push over the hub's own connection, server-sent events, long polling, or a poll each `interval`.
   * @param {Reading} [options]  @returns {Sequence<CallEvent>}
   */
  events({ via = "push", offset = "-1", interval = 1000, signal } = {}) {
    const records = { push: this.#push, sse: this.#sse, "long-poll": this.#poll, poll: this.#poll }[via]
    if (!records) throw new TypeError(`via is push, sse, long-poll or poll, not ${via}`)
    const values = async function* (call, at, signal) {
      for await (const [after, record] of records.call(call, offset, signal, via === "poll" ? interval : undefined)) {
        const event = eventOf((at.offset = after), record)
        yield event
        if (event.final) return
      }
    }
    return new Sequence((at, signal) => values(this, at, signal), offset, signal)
  }

  /**
   * What a service that yields has yielded and yields. Throws what it failed with.
   * @param {Reading} [options]  @returns {Sequence<any>}
   */
  items(options = {}) {
    const values = (at, signal) => itemsOf(this.events({ ...options, signal }), at)
    return new Sequence(values, options.offset, options.signal)
  }

  async *#push(offset, signal) {
    for await (const [after, record] of this.#connection.follow(this.id, offset, true, signal))
      yield [after, JSON.parse(text(record))]
  }

  async *#poll(offset, signal, interval) {
    const prefer = interval === undefined ? { Prefer: "wait=20" } : {}
    for (;;) {
      const answer = await this.#request("GET", `?offset=${offset}`, prefer, { signal })
      const rows = answer.status === 204 ? [] : answer.json()
      offset = answer.headers["stream-next-offset"]
      for (const [place, row] of rows.entries()) yield [before(offset, rows.length - 1 - place), row]
      if (answer.headers["stream-closed"] === "true") return
      if (interval !== undefined) await sleep(interval, signal)
    }
  }

  /** Through `fetch`, which, other than EventSource, tells why there are no events. */
  async *#sse(offset, signal) {
    let heard = Date.now()
    for (let failures = 0; ; failures++) {
      try {
        const headers = { Accept: "text/event-stream" }
        const response = await fetch(`${this.url}?offset=${offset}`, { headers, signal, cache: "no-store" })
        if (!response.ok) throw refused(response.status, new Uint8Array(await response.arrayBuffer()), this.url)
        for await (const block of blocksOf(response.body)) {
          const { id, event, data } = Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s)))
          failures = 0
          heard = Date.now()
          offset = id ?? offset
          if (event) return // closed, or deleted
          if (data) yield [offset, JSON.parse(data)]
        }
      } catch (error) {
        const again = error instanceof WaysideError ? error.retry : error instanceof TypeError // of the network
        if (!again || signal.aborted || Date.now() - heard > this.#connection.retryMs) throw error
      }
      await sleep(backoff(failures), signal)
    }
  }
}

/** A body of server-sent events, event by event. */
async function* blocksOf(body) {
  const reader = body.getReader()
  const decoder = new TextDecoder()
  let held = ""
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const blocks = (held + decoder.decode(part.value, { stream: true })).split("\n\n")
      held = blocks.pop()
      yield* blocks
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

/**
 * Connect to a hub: the one that this module was loaded from, or that at `url`. A connection that is lost is tried again
 * for `retry` milliseconds, for ever by default.
 * @param {string | URL} [url]  @param {{retry?: number}} [options]
 */
export async function connect(url, { retry = Infinity } = {}) {
  const base = import.meta.url.startsWith("http") ? import.meta.url : globalThis.location?.href
  const { origin, pathname } = new URL(url ?? ".", base)
  const connection = new Connection(origin + pathname.replace(/\/+$/, ""), retry)
  await connection.open()
  return new Hub(connection)
}
