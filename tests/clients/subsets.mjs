// Asks for subsets with the official client and merges them with its stream. Like follow.mjs, with these additions:
//
// argv: url, params, options of the stream (JSON)
// commands: {"request": subset}  loads it into the shape, then says {"requested": number of rows, "metadata"}
//           {"fetch": subset}    only fetches it, then says {"fetched": rows}
// A subset that fails says {"refused": status, "body"}.
import { writeFileSync } from "node:fs"
import { createInterface } from "node:readline"
import { Shape, ShapeStream } from "@electric-sql/client"

const [url, params, options] = process.argv.slice(2)
const say = (event) => process.stdout.write(JSON.stringify(event) + "\n")

const stream = new ShapeStream({
  url,
  params: JSON.parse(params),
  ...JSON.parse(options),
  parser: { json: (text) => text, jsonb: (text) => text },
  onError: (error) => {
    say({ error: String(error) })
  },
})
const shape = new Shape(stream)

const operations = { insert: 0, update: 0, delete: 0 }
let refetches = 0
const requests = { streams: 0, polls: 0 } // not counted here
stream.subscribe((messages) => {
  for (const { headers } of messages) {
    if (headers.operation) operations[headers.operation] += 1
    if (headers.control === "must-refetch") refetches += 1
    if (headers.control === "up-to-date") {
      say({ lsn: headers.global_last_seen_lsn, rows: shape.currentValue.size, operations, refetches, requests })
    }
  }
})

const text = (value) => (value === null ? null : String(value))
const textual = (row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, text(value)]))

const commands = {
  dump(path) {
    const rows = [...shape.currentValue].map(([key, row]) => [key, textual(row)])
    writeFileSync(path, JSON.stringify(Object.fromEntries(rows)))
    say({ dumped: path })
  },
  async request(subset) {
    const { data, metadata } = await stream.requestSnapshot(subset)
    say({ requested: data.length, metadata })
  },
  async fetch(subset) {
    const { data } = await stream.fetchSnapshot(subset)
    say({ fetched: data.map(({ value }) => textual(value)) })
  },
}

createInterface({ input: process.stdin })
  .on("line", async (line) => {
    const [[command, argument]] = Object.entries(JSON.parse(line))
    try {
      await commands[command](argument)
    } catch (error) {
      say({ refused: error.status ?? 0, body: error.json ?? String(error) })
    }
  })
  .on("close", () => process.exit(0))
