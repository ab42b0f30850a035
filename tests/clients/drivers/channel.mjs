// What all drivers share: commands as JSON lines on stdin, answers and what else there is to tell on stdout.
//
//   in   {"call": 1, "do": "open", …}      the members but these two are handed to commands.open
//   out  {"call": 1, "result": …}          or {"call": 1, "error": "…"}
//        {"event": "warning", "text": "…"} whatever a package writes to the console
//        {"event": "asks", …}              a question, answered by the command "answer" with its "question"
import { createInterface } from "node:readline"
import { inspect } from "node:util"

const say = (message) => process.stdout.write(JSON.stringify(message, (_, value) => (typeof value === "bigint" ? String(value) : value)) + "\n")

for (const level of ["log", "info", "warn", "error"]) {
  console[level] = (...parts) => say({ event: "warning", text: parts.map(String).join(" ").slice(0, 2000) })
}
process.on("unhandledRejection", (reason) => say({ event: "warning", text: `unhandled rejection: ${inspect(reason)}` }))

const questions = new Map()

/** Lets the test do what a client's own backend would, and resolves to what it answers. */
export function ask(question) {
  const number = questions.size
  return new Promise((resolve) => {
    questions.set(number, resolve)
    say({ event: "asks", question: number, ...question })
  })
}

/** Serves commands until stdin ends. Several may be under way at once. */
export function serve(commands) {
  const all = { ...commands, requests: () => requests.splice(0), answer: ({ question, value }) => questions.get(question)(value) }
  createInterface({ input: process.stdin })
    .on("line", async (line) => {
      const { call, do: name, ...rest } = JSON.parse(line)
      try {
        say({ call, result: (await all[name](rest)) ?? null })
      } catch (error) {
        say({ call, error: String(error?.stack ?? error), status: error?.status, body: error?.json ?? error?.text })
      }
    })
    .on("close", () => process.exit(0))
}

const requests = []

/** `fetch` that notes each request with the status of its answer; the command "requests" takes the notes. */
export async function noted(input, init) {
  const note = { method: init?.method ?? "GET", url: String(input?.url ?? input), status: 0 }
  requests.push(note)
  const response = await fetch(input, init)
  note.status = response.status
  note.offset = response.headers.get("electric-offset")
  note.handle = response.headers.get("electric-handle")
  note.upToDate = response.headers.has("electric-up-to-date")
  return response
}

const text = (value) => (value === null || value === undefined ? null : String(value))

/** A row with each value as Postgres prints it, as far as the parsers below leave it so. */
export const textual = (row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, text(value)]))

/** Parsed JSON prints otherwise than Postgres does; all other types keep the client's own parsers. */
export const parser = { json: (value) => value, jsonb: (value) => value }

/** Named things of which each command means one. */
export class Subjects {
  #held = new Map()

  add(name, subject) {
    if (this.#held.has(name)) throw new Error(`there is a ${name} already`)
    this.#held.set(name, subject)
  }

  get(name) {
    const subject = this.#held.get(name)
    if (subject === undefined) throw new Error(`there is no ${name}`)
    return subject
  }

  take(name) {
    const subject = this.get(name)
    this.#held.delete(name)
    return subject
  }
}
