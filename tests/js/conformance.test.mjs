// The Durable Streams conformance suite, run against the server at WAYSIDE_TEST_URL.
// (Not BASE_URL: vitest overwrites a variable of that name.)

import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const baseUrl = process.env.WAYSIDE_TEST_URL
if (!baseUrl) throw new Error("Set WAYSIDE_TEST_URL to the server to test, such as http://127.0.0.1:4437")

const longPollMs = process.env.WAYSIDE_TEST_LONG_POLL_MS
runConformanceTests({
  baseUrl,
  subscriptions: true,
  ...(longPollMs ? { longPollTimeoutMs: Number(longPollMs) } : {}),
})
