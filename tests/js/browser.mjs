// A headless browser with one page: node browser.mjs CHROMIUM PROFILE_DIRECTORY. Prints what the page logs, one line
// for each console.log. Of standard input, "goto URL" opens a page; any other line is evaluated in it, and its value
// printed as JSON. The end of standard input ends it.

import { createInterface } from "node:readline"

import { chromium } from "playwright-core"

const [executablePath, profile] = process.argv.slice(2)
const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
})
const page = context.pages()[0] ?? (await context.newPage())
page.on("console", (message) => console.log(message.type() === "log" ? message.text() : `${message.type()}: ${message.text()}`))
page.on("pageerror", (error) => console.log(`pageerror: ${error}`))
for await (const line of createInterface({ input: process.stdin })) {
  const [, url] = line.match(/^goto (.*)/) ?? []
  const value = await (url ? page.goto(url).then(() => {}) : page.evaluate(line)).catch((error) => ({ threw: `${error}` }))
  console.log(`value: ${JSON.stringify(value)}`)
}
await context.close()
