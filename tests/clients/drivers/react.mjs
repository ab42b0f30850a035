// Components that show shapes by `useShape`, rendered without a browser.
import { createElement } from "react"
import { act, create } from "react-test-renderer"
import { preloadShape, useShape } from "@electric-sql/react"
import { Subjects, noted, parser, serve, textual } from "./channel.mjs"

const subjects = new Subjects()
globalThis.IS_REACT_ACT_ENVIRONMENT = false

/** Tells what it was rendered with; shows nothing. */
function Probe({ options, selector, seen }) {
  seen(useShape({ ...options, ...(selector && { selector }) }))
  return null
}

const complete = (options) => ({ parser, fetchClient: noted, ...options })
const count = ({ data }) => data.length

serve({
  async preload({ options }) {
    const shape = await preloadShape(complete(options))
    return shape.currentRows.map(textual)
  },
  /** `counts`: the component selects the number of rows only. */
  async open({ name, options, counts = false }) {
    const subject = { last: undefined, renders: 0, states: [] }
    const seen = (result) => {
      subject.last = result
      subject.renders += 1
      const state = counts ? result : [result.isLoading, result.isError]
      if (JSON.stringify(subject.states.at(-1)) !== JSON.stringify(state)) subject.states.push(state)
    }
    const shown = createElement(Probe, { options: complete(options), selector: counts ? count : undefined, seen })
    subjects.add(name, subject)
    subject.root = create(shown)
  },
  close({ name }) {
    subjects.take(name).root.unmount()
  },
  rows({ name }) {
    return (subjects.get(name).last?.data ?? []).map(textual)
  },
  holds({ name, id }) {
    return (subjects.get(name).last?.data ?? []).some((row) => String(row.id) === String(id))
  },
  state({ name }) {
    const { last, renders, states } = subjects.get(name)
    const failure = last?.error ? [{ status: last.error.status, body: last.error.json }] : []
    return { renders, states, errors: failure, upToDate: last?.isLoading === false }
  },
})
