// PGlite databases that shapes are synced into.
import { PGlite } from "@electric-sql/pglite"
import { electricSync } from "@electric-sql/pglite-sync"
import { Subjects, noted, serve } from "./channel.mjs"

const subjects = new Subjects()

const columns = async (database, table) => {
  const { rows } = await database.query(
    "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    [table],
  )
  return rows.map(({ attname }) => `"${attname}"::text`).join(", ")
}

serve({
  /** `schema`: SQL for a new database; `directory`: where it is kept, in memory unless given. */
  async create({ name, schema, directory }) {
    const database = await PGlite.create({ dataDir: directory, extensions: { electric: electricSync() } })
    await database.exec("SET TimeZone = 'UTC'")
    if (schema) await database.exec(schema)
    subjects.add(name, { database, sync: undefined, errors: [], synced: 0, views: [] })
  },
  /** `shapes`: the options of each table's shape. */
  async sync({ name, key = null, shapes, ...options }) {
    const subject = subjects.get(name)
    const entries = Object.entries(shapes).map(([table, shape]) => [
      table,
      { shape: { fetchClient: noted, ...shape }, table, primaryKey: ["id"] },
    ])
    subject.sync = await subject.database.electric.syncShapesToTables({
      key,
      shapes: Object.fromEntries(entries),
      onInitialSync: () => (subject.synced += 1),
      onError: (error) => subject.errors.push(String(error)),
      ...options,
    })
  },
  /** One table, by the older function. */
  async syncOne({ name, key = null, table, shape, ...options }) {
    const subject = subjects.get(name)
    subject.sync = await subject.database.electric.syncShapeToTable({
      shapeKey: key,
      shape: { fetchClient: noted, ...shape },
      table,
      primaryKey: ["id"],
      onInitialSync: () => (subject.synced += 1),
      onError: (error) => subject.errors.push(String(error)),
      ...options,
    })
  },
  unsync({ name }) {
    subjects.get(name).sync.unsubscribe()
  },
  async close({ name }) {
    const { database, sync } = subjects.take(name)
    sync?.unsubscribe()
    await database.close()
  },
  async rows({ name, table }) {
    const { database } = subjects.get(name)
    return (await database.query(`SELECT ${await columns(database, table)} FROM "${table}"`)).rows
  },
  async holds({ name, table, id }) {
    const { rows } = await subjects.get(name).database.query(`SELECT 1 FROM "${table}" WHERE id = $1`, [id])
    return rows.length === 1
  },
  /** The first value that a query gives. */
  async ask({ name, sql }) {
    return Object.values((await subjects.get(name).database.query(sql)).rows[0])[0]
  },
  /** Runs a query whenever something was committed, from now on, and keeps the first value each time. */
  async watch({ name, sql }) {
    const subject = subjects.get(name)
    const look = async () => {
      while (!subject.stopped) {
        subject.views.push(Object.values((await subject.database.query(sql)).rows[0])[0])
        await new Promise((resolve) => setTimeout(resolve, 5))
      }
    }
    subject.looking = look()
  },
  /** How many sums there are. */
  seen({ name }) {
    return subjects.get(name).views.length
  },
  async sums({ name }) {
    const subject = subjects.get(name)
    subject.stopped = true
    await subject.looking
    return subject.views
  },
  state({ name }) {
    const { sync, errors, synced } = subjects.get(name)
    return { upToDate: sync?.isUpToDate ?? false, errors, synced }
  },
})
