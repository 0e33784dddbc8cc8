import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["*.test.mjs"],
    testTimeout: 30_000, // some tests wait for a long poll to run out
    hookTimeout: 30_000,
  },
})
