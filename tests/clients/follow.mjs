// Follows one shape with the official client. Commands come as JSON lines on stdin, events go as JSON lines to stdout.
//
// argv: url, params (JSON), further options of the stream (JSON)
// commands: {"dump": path}  writes what the shape holds as {key: {column: text}} to the file, then says {"dumped": path}
// events:   {"lsn", "rows", "operations", "refetches", "requests"} at each up-to-date, {"error"} when the stream has ended
import { writeFileSync } from "node:fs"
import { createInterface } from "node:readline"
import { Shape, ShapeStream } from "@electric-sql/client"

const [url, params, options] = process.argv.slice(2)
const say = (event) => process.stdout.write(JSON.stringify(event) + "\n")

// Live ones, by how they wait.
const requests = { streams: 0, polls: 0 }
const fetchClient = (...request) => {
  const query = new URL(request[0]).searchParams
  if (query.has("live")) requests[query.has("live_sse") ? "streams" : "polls"] += 1
  return fetch(...request)
}

const stream = new ShapeStream({
  ...JSON.parse(options),
  url,
  fetchClient,
  params: JSON.parse(params),
  // Parsed JSON prints otherwise than Postgres does; all other types keep the client's own parsers.
  parser: { json: (text) => text, jsonb: (text) => text },
  onError: (error) => {
    say({ error: String(error) })
  },
})
// The first subscriber, so that it holds a batch before the other one tells of it.
const shape = new Shape(stream)

const operations = { insert: 0, update: 0, delete: 0 }
let refetches = 0
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

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const { dump } = JSON.parse(line)
    const rows = [...shape.currentValue].map(([key, row]) => [key, textual(row)])
    writeFileSync(dump, JSON.stringify(Object.fromEntries(rows)))
    say({ dumped: dump })
  })
  .on("close", () => process.exit(0))
