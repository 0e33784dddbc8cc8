// Node.js as browser.mjs is a browser: node --experimental-websocket node.mjs MODULE HUB. Each line of standard input is
// evaluated, with what inside.mjs has, and its value printed as JSON.

import { createInterface } from "node:readline"

import { begin } from "./inside.mjs"

await begin(...process.argv.slice(2))
for await (const line of createInterface({ input: process.stdin })) {
  const value = await (async () => globalThis.eval(line))().catch((error) => ({ threw: `${error}` }))
  console.log(`value: ${JSON.stringify(value)}`)
}
await hub.close()
