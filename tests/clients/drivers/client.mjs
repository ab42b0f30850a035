// Any number of shapes, each followed by `@electric-sql/client` or, with {"package": "old"}, by its version 1.0.
import * as current from "@electric-sql/client"
import * as old from "electric-client-1.0"
import { Subjects, noted, parser, serve, textual } from "./channel.mjs"

// Version 1.0 reads events by a package that knows browsers only.
globalThis.window = globalThis
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} }

const packages = { current, old }
const subjects = new Subjects()

/** What subscribers of a stream see, held to what a log may say: no insert of a held key, no change of a missing one. */
class Watch {
  operations = { insert: 0, update: 0, delete: 0 }
  controls = {}
  refetches = 0
  lsn = "-1"
  complaints = []
  errors = []
  oldValues = []
  #keys = new Set()

  constructor(strict) {
    this.strict = strict
  }

  take(messages) {
    for (const { key, headers, old_value } of messages) {
      if (headers.operation) this.#change(key, headers)
      if (old_value) this.oldValues.push(textual(old_value))
      if (!headers.control) continue
      this.controls[headers.control] = (this.controls[headers.control] ?? 0) + 1
      if (headers.control === "must-refetch") {
        this.refetches += 1
        this.#keys.clear()
      }
      if (headers.control === "up-to-date") {
        if (BigInt(headers.global_last_seen_lsn) < BigInt(this.lsn)) this.#complain(`${headers.global_last_seen_lsn} after ${this.lsn}`)
        this.lsn = headers.global_last_seen_lsn
      }
    }
  }

  #change(key, { operation }) {
    this.operations[operation] += 1
    if (this.strict && this.#keys.has(key) !== (operation !== "insert")) this.#complain(`${operation} of ${key}`)
    if (operation === "delete") this.#keys.delete(key)
    else this.#keys.add(key)
  }

  #complain(about) {
    if (this.complaints.length < 10) this.complaints.push(about)
  }
}

serve({
  /** `options` go to ShapeStream as they are. `strict`: complain about changes that do not fit. `retry`: what onError gives. */
  open({ name, package: version = "current", options, strict = true, retry }) {
    const { Shape, ShapeStream } = packages[version]
    const watch = new Watch(strict)
    const ending = new AbortController()
    const stream = new ShapeStream({
      parser,
      fetchClient: noted,
      warnOnHttp: false,
      signal: ending.signal,
      ...options,
      onError: (error) => {
        watch.errors.push({ status: error.status, body: error.json ?? error.text, message: String(error) })
        return retry ?? undefined
      },
    })
    // Before anybody else, so that the shape holds a batch when others are told of it.
    const shape = new Shape(stream)
    stream.subscribe((messages) => watch.take(messages), () => {})
    subjects.add(name, { stream, shape, watch, ending, views: [] })
  },
  close({ name }) {
    const { stream, ending } = subjects.take(name)
    stream.unsubscribeAll()
    ending.abort()
  },
  rows({ name }) {
    return [...subjects.get(name).shape.currentValue.values()].map(textual)
  },
  keys({ name }) {
    return [...subjects.get(name).shape.currentValue.keys()]
  },
  /** The values themselves, with the type that the client's parsers gave them. */
  typed({ name }) {
    const tell = (value) => {
      if (value === null) return null
      if (Array.isArray(value)) return value.map(tell)
      return typeof value === "number" || typeof value === "bigint" ? [typeof value, String(value)] : [typeof value, value]
    }
    const rows = subjects.get(name).shape.currentRows
    return rows.map((row) => Object.fromEntries(Object.entries(row).map(([column, value]) => [column, tell(value)])))
  },
  holds({ name, id }) {
    return [...subjects.get(name).shape.currentValue.values()].some((row) => String(row.id) === String(id))
  },
  state({ name }) {
    const { stream, watch } = subjects.get(name)
    return {
      ...watch,
      upToDate: stream.isUpToDate,
      offset: stream.lastOffset,
      handle: stream.shapeHandle,
      connected: stream.isConnected(),
    }
  },
  /** Adds up a column each time the shape tells its subscribers of a change, from now on; see "sums". */
  watch({ name, column }) {
    const { shape, views } = subjects.get(name)
    shape.subscribe(({ rows }) => views.push(rows.reduce((sum, row) => sum + row[column], 0)))
  },
  sums({ name }) {
    return subjects.get(name).views
  },
  async refresh({ name }) {
    await subjects.get(name).stream.forceDisconnectAndRefresh()
  },
  /** Adds the rows of a subset to the stream; with `again`, also after each refetch. */
  async request({ name, subset, again = false }) {
    const { shape, stream } = subjects.get(name)
    const answer = await (again ? shape : stream).requestSnapshot(subset)
    return answer ? { rows: answer.data.map(({ value }) => textual(value)), metadata: answer.metadata } : null
  },
  /** The rows of a subset, which the stream does not learn of. */
  async fetch({ name, subset }) {
    const { data, metadata } = await subjects.get(name).stream.fetchSnapshot(subset)
    return { rows: data.map(({ value }) => textual(value)), metadata, headers: data.map(({ headers }) => headers) }
  },
})
