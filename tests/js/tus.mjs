// Uses of tus-js-client, each for one test: node tus.mjs USE ENDPOINT FILE [ARGUMENT...]. Prints one line for each request
// of the client ("PATCH 0": the method and where its body begins), then "url URL" of the upload.

import { createReadStream, readFileSync, statSync } from "node:fs"
import { Readable } from "node:stream"

import { FileUrlStorage, Upload } from "tus-js-client"

const OFFSET = "Upload-Offset"

// Resolves with the finished upload.
function upload(endpoint, source, options = {}) {
  return new Promise((resolve, reject) => {
    const tus = new Upload(source, {
      endpoint,
      retryDelays: Array(100).fill(100),
      metadata: { filename: "größe.bin", empty: "" },
      onBeforeRequest: (request) => console.log(request.getMethod(), request.getHeader(OFFSET) ?? ""),
      onSuccess: () => resolve(tus),
      onError: reject,
      ...options,
    })
    const { resuming } = options
    if (resuming) resuming(tus).then(() => tus.start(), reject)
    else tus.start()
  })
}

async function whole(endpoint, file, options = {}) {
  const tus = await upload(endpoint, createReadStream(file), { uploadSize: statSync(file).size, ...options })
  return tus.url
}

const uses = {
  whole,

  chunks: (endpoint, file, size) => whole(endpoint, file, { chunkSize: Number(size) }),

  // The length is known when the source has ended.
  deferred: async (endpoint, file) => {
    const source = Readable.from([readFileSync(file)], { objectMode: false })
    return (await upload(endpoint, source, { uploadLengthDeferred: true, chunkSize: 700_000 })).url
  },

  // The first bytes come with the creation; PATCH is said by a header.
  creation: (endpoint, file) =>
    whole(endpoint, file, { uploadDataDuringCreation: true, overridePatchMethod: true, chunkSize: 1_000_000 }),

  // What another run of this program has begun is gone on with, if it left anything in the storage.
  stored: (endpoint, file, storage, size) =>
    whole(endpoint, file, {
      urlStorage: new FileUrlStorage(storage),
      chunkSize: Number(size),
      resuming: async (tus) => {
        const [previous] = await tus.findPreviousUploads()
        console.log("previous", previous?.uploadUrl ?? "none")
        if (previous) tus.resumeFromPreviousUpload(previous)
      },
    }),

  terminated: async (endpoint, file) => {
    const tus = await upload(endpoint, createReadStream(file), { uploadSize: statSync(file).size })
    await Upload.terminate(tus.url)
    return tus.url
  },
}

const [use, endpoint, file, ...rest] = process.argv.slice(2)
console.log("url", await uses[use](endpoint, file, ...rest))
