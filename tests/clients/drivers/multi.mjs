// Several shapes in step, by MultiShapeStream or, with {"transactional": true}, by TransactionalMultiShapeStream.
import { MultiShapeStream, TransactionalMultiShapeStream } from "@electric-sql/experimental"
import { Subjects, noted, parser, serve, textual } from "./channel.mjs"

const subjects = new Subjects()

/** The rows of each shape, kept by the messages that the multi-shape stream publishes. */
class Tables {
  rows = {}
  refetches = 0
  errors = []
  /** Sums of a column over all shapes after each batch, from "watch" on. */
  views = []
  lsns = {}
  column = null

  take(messages) {
    for (const { shape, key, value, headers } of messages) {
      const rows = (this.rows[shape] ??= new Map())
      if (headers.operation === "delete") rows.delete(key)
      else if (headers.operation) rows.set(key, { ...rows.get(key), ...value })
      if (headers.control === "must-refetch") {
        rows.clear()
        this.refetches += 1
      }
      if (headers.control === "up-to-date") this.lsns[shape] = headers.global_last_seen_lsn
    }
    if (this.column) this.views.push(this.#sum())
  }

  #sum() {
    return Object.values(this.rows).flatMap((rows) => [...rows.values()]).reduce((sum, row) => sum + (row[this.column] ?? 0), 0)
  }
}

serve({
  /** `shapes`: options of each shape's stream by its name. */
  open({ name, shapes, transactional = false }) {
    const Stream = transactional ? TransactionalMultiShapeStream : MultiShapeStream
    const options = Object.entries(shapes).map(([shape, given]) => [shape, { parser, fetchClient: noted, ...given }])
    const stream = new Stream({ start: false, shapes: Object.fromEntries(options) })
    const tables = new Tables()
    subjects.add(name, { stream, tables })
    stream.subscribe((messages) => tables.take(messages), (error) => tables.errors.push(String(error)))
  },
  rows({ name, shape }) {
    return [...(subjects.get(name).tables.rows[shape]?.values() ?? [])].map(textual)
  },
  holds({ name, shape, id }) {
    return [...(subjects.get(name).tables.rows[shape]?.values() ?? [])].some((row) => String(row.id) === String(id))
  },
  state({ name }) {
    const { stream, tables } = subjects.get(name)
    return { errors: tables.errors, refetches: tables.refetches, upToDate: stream.isUpToDate, lsns: tables.lsns }
  },
  watch({ name, column }) {
    subjects.get(name).tables.column = column
  },
  /** How many sums there are. */
  seen({ name }) {
    return subjects.get(name).tables.views.length
  },
  sums({ name }) {
    return subjects.get(name).tables.views
  },
})
