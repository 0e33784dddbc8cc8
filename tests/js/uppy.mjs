// Uppy with its tus plugin as one script for a page: node uppy.mjs FILE writes it. The page then has upload(endpoint, size),
// which uploads so many bytes (byte n is n modulo 251) and resolves with what Uppy says of it.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"

import { rolldown } from "rolldown"

const here = dirname(fileURLToPath(import.meta.url))
const page = `
import Uppy from "@uppy/core"
import Tus from "@uppy/tus"

window.upload = async (endpoint, size) => {
  const uppy = new Uppy().use(Tus, { endpoint, retryDelays: Array(50).fill(100) })
  const data = Uint8Array.from({ length: size }, (_, n) => n % 251)
  uppy.addFile({ name: "a.bin", type: "application/octet-stream", data: new Blob([data]) })
  let reported = 0
  uppy.on("upload-progress", (_, progress) => (reported = progress.bytesUploaded))
  const { successful, failed } = await uppy.upload()
  return { urls: successful.map((file) => file.uploadURL), errors: failed.map((file) => file.error), reported }
}
`
const directory = mkdtempSync(join(here, "node_modules", ".uppy-"))
try {
  const input = join(directory, "page.mjs")
  writeFileSync(input, page)
  const bundle = await rolldown({ input, platform: "browser", logLevel: "silent" })
  const { output } = await bundle.generate({ format: "iife" })
  writeFileSync(process.argv[2], output[0].code)
} finally {
  rmSync(directory, { recursive: true })
}
