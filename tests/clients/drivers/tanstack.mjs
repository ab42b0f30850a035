// TanStack DB collections that Electric fills, and live queries over them.
import { BTreeIndex, createCollection, createLiveQueryCollection, eq, gt, inArray } from "@tanstack/db"
import { electricCollectionOptions } from "@tanstack/electric-db-collection"
import { Subjects, ask, noted, parser, serve, textual } from "./channel.mjs"

const subjects = new Subjects()
const conditions = { gt, eq, in: inArray }
const rows = (collection) => collection.toArray.map(({ $synced, $origin, $key, $collectionId, ...row }) => textual(row))

serve({
  /** `syncMode`: eager, on-demand or progressive. Changes are handed to the test, which writes them and tells the txid. */
  open({ name, syncMode, options }) {
    const errors = []
    const write = async ({ transaction }) => {
      const changes = transaction.mutations.map(({ type, modified, original, changes }) => ({ type, modified, original, changes }))
      return { txid: await ask({ changes }), timeout: 60_000 }
    }
    const collection = createCollection(
      electricCollectionOptions({
        id: name,
        syncMode,
        // Ordered queries with a limit then ask for rows piece by piece.
        autoIndex: "eager",
        defaultIndexType: BTreeIndex,
        getKey: (row) => String(row.id),
        shapeOptions: {
          parser,
          fetchClient: noted,
          onError: (error) => {
            errors.push({ status: error.status, body: error.json, message: String(error) })
          },
          ...options,
        },
        onInsert: write,
        onUpdate: write,
        onDelete: write,
      }),
    )
    if (syncMode === "eager") collection.preload().catch((error) => errors.push({ message: String(error) }))
    subjects.add(name, { collection, errors })
  },
  /** A live query `name` over a collection: {"where": [["gt", column, value], …], "orderBy": column, "limit": n}. */
  async query({ name, over, where = [], orderBy, limit }) {
    const { collection } = subjects.get(over)
    const live = createLiveQueryCollection((q) => {
      let query = q.from({ row: collection })
      for (const [operator, column, value] of where) query = query.where(({ row }) => conditions[operator](row[column], value))
      if (orderBy) query = query.orderBy(({ row }) => row[orderBy], "asc")
      return limit ? query.limit(limit) : query
    })
    // What nobody looks at is cleaned up after five seconds.
    live.subscribeChanges(() => {})
    await live.preload()
    subjects.add(name, { collection: live, errors: [] })
  },
  async close({ name }) {
    await subjects.take(name).collection.cleanup()
  },
  rows({ name }) {
    return rows(subjects.get(name).collection)
  },
  holds({ name, id }) {
    return subjects.get(name).collection.has(String(id))
  },
  state({ name }) {
    const { collection, errors } = subjects.get(name)
    return { status: collection.status, size: collection.size, errors }
  },
  async awaitTxId({ name, txid, timeout = 60_000 }) {
    return subjects.get(name).collection.utils.awaitTxId(txid, timeout)
  },
  /** Each of these resolves when the change has come back by the stream, until then it is shown optimistically. */
  async insert({ name, row }) {
    const { collection } = subjects.get(name)
    const transaction = collection.insert(row)
    const shown = collection.has(String(row.id))
    await transaction.isPersisted.promise
    return { shown, row: textual(collection.get(String(row.id))) }
  },
  async update({ name, id, changes }) {
    const { collection } = subjects.get(name)
    await collection.update(String(id), (draft) => Object.assign(draft, changes)).isPersisted.promise
    return { row: textual(collection.get(String(id))) }
  },
  async remove({ name, id }) {
    const { collection } = subjects.get(name)
    await collection.delete(String(id)).isPersisted.promise
    return { held: collection.has(String(id)) }
  },
})
