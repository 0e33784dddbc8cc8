/**
 * The client's end of `/v1/connect`: channels over one WebSocket, which is made anew when it breaks; and what is thrown.
 *
 * Knows frames and connections, not what is said over them. The frames are drawn in docs/PROTOCOL.md.
 */

import { decode, encode } from "./msgpack.js"

const CREDIT = 256 // records that a follower lets the hub be ahead
const RETRY_MS = 100 // before a connection is tried again: doubled each time, with full jitter
const RETRY_MS_MAX = 5000
const SILENCE_MS = 20_000 // then the hub is asked whether it is there; with no answer for as long, the connection is dead
export const NOTHING = new Uint8Array(0)
export const text = (bytes) => new TextDecoder().decode(bytes)

// -- errors

/** What the hub refused, or what became of a call: programs look at `code`. */
export class WaysideError extends Error {
  /** @param {Record<string, any>} problem A problem document (RFC 9457). */
  constructor({ type, title, status = 500, detail, code = "call-failed", retry = false, ...fields }) {
    super(detail ?? title ?? code)
    this.name = new.target.name
    /** Stable name of the case. @type {string} */
    this.code = code
    /** As in HTTP. @type {number} */
    this.status = status
    /** A sentence for people. @type {string} */
    this.detail = this.message
    /** What else is said of it. @type {Record<string, any>} */
    this.fields = fields
    /** Whether the same may succeed later. @type {boolean} */
    this.retry = retry
  }
}

/** The connection broke under something that has no key: it was done, or not. */
export class UnknownOutcome extends WaysideError {}

export const errorOf = (problem) => new (problem?.code === "unknown-outcome" ? UnknownOutcome : WaysideError)(problem ?? {})
const unreachable = (detail, code = "unreachable") =>
  errorOf({ code, status: 503, detail, retry: code !== "client-closed" })

/** An HTTP answer that is none. */
export function refused(status, body, what) {
  try {
    return errorOf(JSON.parse(text(body)))
  } catch {
    const code = status === 404 ? "stream-not-found" : "http" // the answer to a HEAD has no body
    return errorOf({ status, code, detail: `HTTP ${status} from ${what}`, retry: status === 503 })
  }
}

// -- waiting

export const sleep = (ms, signal) =>
  new Promise((resolve, reject) => {
    signal.throwIfAborted()
    const abort = () => (clearTimeout(timer), reject(signal.reason))
    const timer = setTimeout(() => (signal.removeEventListener("abort", abort), resolve()), ms)
    signal.addEventListener("abort", abort)
  })

/** How long to wait before another attempt, after so many that failed. */
export const backoff = (failures) => Math.random() * Math.min(RETRY_MS_MAX, RETRY_MS * 2 ** failures)

// -- the connection

/** The hub took nothing new any more: it is said again on the next connection, which will be made soon. */
const isStopping = ([kind, , problem]) => kind === "error" && problem.code === "stopping" && !problem.call

/**
 * Channels over one WebSocket. What has a channel is told of each connection that is made (`say`), of each frame for it
 * (`take`), and of each connection that is lost: `lost(error, again)` returns whether it goes on with the next one, which
 * there will be if `again`.
 */
export class Connection {
  #entries = new Map()
  #number = 0
  #out = []
  #socket = null // once it is open
  #watch
  #closed = new AbortController()
  #trying = false

  constructor(url, retryMs) {
    this.url = url
    this.retryMs = retryMs
  }

  /** Rejects where there is no hub. */
  open() {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(`${this.url.replace(/^http/, "ws")}/v1/connect`, "wayside.connect.v1")
      let [heard, asked] = [false, false]
      socket.binaryType = "arraybuffer"
      socket.onopen = () => {
        if (this.#closed.signal.aborted) return socket.close()
        this.#socket = socket
        this.#watch = setInterval(watch, SILENCE_MS)
        for (const entry of this.#entries.values()) entry.say()
        resolve()
      }
      socket.onmessage = ({ data }) => {
        heard = true
        let frames
        try {
          frames = decode(new Uint8Array(data))
        } catch (error) {
          return lost(`the hub sent what is no frame: ${error}`)
        }
        for (const frame of frames) this.#entries.get(frame[1])?.take(frame)
      }
      socket.onclose = ({ code, reason }) => lost(reason || `it was closed, ${code}`)
      socket.onerror = () => lost("it broke") // before Node.js 22 no other event tells of a connection that failed
      const watch = () => {
        if (asked && !heard) return lost("there is no sign of life")
        asked = !heard && this.#entries.size > 0
        if (asked) this.put(["request", ++this.#number, "HEAD", "/healthz"])
        heard = false
      }
      const lost = (reason) => {
        socket.onclose = socket.onerror = socket.onmessage = null
        socket.close()
        reject(unreachable(`No answer from a hub at ${this.url}.`))
        if (this.#socket === socket) this.#lost(reason)
      }
    })
  }

  close() {
    const socket = this.#socket
    this.#flush()
    this.#socket = null
    clearInterval(this.#watch)
    this.#closed.abort()
    this.#end(unreachable("The client was closed.", "client-closed"))
    return new Promise((resolve) => {
      if (!socket) return resolve()
      socket.onclose = resolve
      socket.close(1000)
    })
  }

  /** Have a channel: its number. Without a connection the entry is told when there is one. */
  add(entry) {
    if (this.#closed.signal.aborted) throw unreachable("The client was closed.", "client-closed")
    this.#entries.set(++this.#number, entry)
    if (!this.#socket) this.#reconnect()
    return this.#number
  }

  remove(channel) {
    this.#entries.delete(channel)
  }

  /** Send a frame, with the others of this turn; whether there is a connection. */
  put(frame) {
    if (this.#socket && this.#out.push(frame) === 1) queueMicrotask(() => this.#flush())
    return this.#socket !== null
  }

  #flush() {
    const out = this.#out
    this.#out = []
    if (out.length) this.#socket?.send(encode(out))
  }

  #lost(reason) {
    this.#socket = null
    this.#out = []
    clearInterval(this.#watch)
    const error = unreachable(`The connection to the hub was lost: ${reason}.`, "connection-lost")
    for (const [channel, entry] of this.#entries) if (!entry.lost(error, true)) this.#entries.delete(channel)
    if (this.#entries.size) this.#reconnect()
  }

  /** Try again while somebody waits for it. */
  async #reconnect() {
    if (this.#trying) return
    this.#trying = true
    const began = Date.now()
    for (let failures = 0; !this.#socket && this.#entries.size; failures++) {
      await sleep(backoff(failures), this.#closed.signal).catch(() => {})
      if (this.#closed.signal.aborted) return
      await this.open().catch((error) => {
        if (Date.now() - began > this.retryMs) this.#end(error)
      })
    }
    this.#trying = false
  }

  #end(error) {
    const entries = [...this.#entries.values()]
    this.#entries.clear()
    for (const entry of entries) entry.lost(error, false)
  }

  /** Say something that is answered once. With `repeat` it may be said again on another connection. */
  ask(frame, { repeat = false, signal = undefined, timeout = undefined } = {}) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted()
      let sent = false
      let timer
      const settle = (how, value) => {
        clearTimeout(timer)
        signal?.removeEventListener("abort", abort)
        this.remove(channel)
        how(value)
      }
      const leave = (reason) => (this.put(["leave", channel]), settle(reject, reason))
      const abort = () => leave(signal.reason)
      const say = () => (sent = this.put(frame) || sent)
      const take = (answer) => {
        if (isStopping(answer)) sent = false
        else if (answer[0] === "error") settle(reject, errorOf(answer[2]))
        else settle(resolve, answer)
      }
      const lost = (error, again) => {
        if (again && (repeat || !sent)) return true
        const detail = `${error.detail} It may have been done, or not: look, or send it with a key.`
        settle(reject, repeat || !sent ? error : errorOf({ code: "unknown-outcome", status: 502, detail }))
        return false
      }
      const channel = (frame[1] = this.add({ say, take, lost }))
      signal?.addEventListener("abort", abort)
      if (timeout !== undefined) {
        const problem = { code: "call-timeout", status: 504, detail: "There was no answer in time.", retry: true }
        timer = setTimeout(() => leave(errorOf(problem)), timeout)
      }
      say()
    })
  }

  /** Follow a stream or a call: `[offset after it, record]`, across lost connections, until it is closed. */
  async *follow(stream, offset, call, signal) {
    signal.throwIfAborted()
    let [held, spent, ended, failure] = [[], 0, false, undefined]
    let wake = () => {}
    const stop = (error) => {
      ended = true
      failure = error
      this.remove(channel)
    }
    const say = () => {
      held = []
      spent = 0
      this.put(["follow", channel, stream, offset, CREDIT, call])
    }
    const take = (frame) => {
      const [kind, , first, second] = frame
      if (isStopping(frame)) return
      if (kind === "records") held.push(...first)
      else if (kind === "following") offset = offset === "-1" || offset === "now" ? second : offset
      else if (kind === "error") stop(errorOf(first))
      else if (first !== "drain") stop() // else there will be another connection
      wake()
    }
    const lost = (error, again) => again || (stop(error), wake(), false)
    const channel = this.add({ say, take, lost })
    const woken = () => wake()
    signal.addEventListener("abort", woken)
    try {
      say()
      for (;;) {
        signal.throwIfAborted()
        if (held.length) {
          const row = held.shift()
          offset = row[0]
          if (++spent === CREDIT / 2) {
            this.put(["credit", channel, spent])
            spent = 0
          }
          yield row
        } else if (failure) throw failure
        else if (ended) return
        else await new Promise((resolve) => (wake = resolve))
      }
    } finally {
      signal.removeEventListener("abort", woken)
      if (!ended) this.put(["leave", channel])
      this.remove(channel)
    }
  }

  /** Any request of the HTTP interface. @returns {Promise<Answer>} */
  async request(method, target, headers = {}, body = NOTHING, options = {}) {
    const repeat = ["GET", "HEAD", "PUT", "DELETE"].includes(method)
    const answer = await this.ask(["request", 0, method, target, headers, body], { repeat, ...options })
    const [, , status, fields = {}, bytes = NOTHING] = answer
    if (status >= 400) throw refused(status, bytes, `${method} ${target}`)
    return { status, headers: fields, body: bytes, json: () => JSON.parse(text(bytes)), text: () => text(bytes) }
  }
}
