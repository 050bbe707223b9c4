/** Turns that were begun in this tab and are not over: a reload finds them again. */

const NAME = "megacontext.running";

const all = () => JSON.parse(sessionStorage.getItem(NAME) ?? "{}");
const keep = (turns) => sessionStorage.setItem(NAME, JSON.stringify(turns));

/** {id, question} of the turn that runs in a session, or null. */
export const runningIn = (session) => all()[session] ?? null;

export function note(session, id, question) {
  keep({ ...all(), [session]: { id, question } });
}

export function forget(session) {
  const { [session]: _, ...others } = all();
  keep(others);
}
