/** One turn, as a response that goes on without this page: whoever comes back follows it from where it is. */

import { eventsOf } from "../events.js";
import { send, sendJson } from "../http.js";
import { isAbort, Problem } from "../problems.js";

const PATH = "v1/responses";
const TRIES = 5;
const SSE = { Accept: "text/event-stream" };

/** Ask a question in a session -> its response's id, once the server has one, told to onId; see follow for the rest. */
export async function begin({ model, session, question, exact, signal, onId, onText }) {
  const wishes = { background: true, stream: true, x_megacontext: { sources: true } };
  const body = { model, session_id: session, input: question, ...wishes };
  // Else it draws as the model is meant to.
  if (exact) body.temperature = 0;
  const response = await sendJson("POST", PATH, body, { signal, headers: SSE });
  const progress = { id: null, last: -1, onId, onText };
  return (await read(response, progress)) ?? followed(progress, signal);
}

/** The reply of a response that was begun before, from its first word -> {reason, context} at its end. */
export function follow({ id, signal, onText }) {
  return followed({ id, last: -1, onId: () => undefined, onText }, signal);
}

export const cancel = (id) => sendJson("POST", `${PATH}/${id}/cancel`, {});

/** Ask for the rest as often as the line breaks. */
async function followed(progress, signal) {
  for (let tries = 1; ; tries += 1) {
    if (!progress.id) throw new Problem("The connection broke before the server took the question.");
    try {
      const after = progress.last < 0 ? "" : `&starting_after=${progress.last}`;
      const response = await send(`${PATH}/${progress.id}?stream=true${after}`, { signal, headers: SSE });
      const ended = await read(response, progress);
      if (ended) return ended;
    } catch (error) {
      if (isAbort(error) || error.code !== "unreachable" || tries >= TRIES) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 300 * tries));
  }
}

/** Read events until the reply's end; null where the stream broke before it. */
async function read(response, progress) {
  try {
    for await (const event of eventsOf(response)) {
      const told = JSON.parse(event.data);
      progress.last = told.sequence_number ?? progress.last;
      const ended = take(told, progress);
      if (ended) return ended;
    }
  } catch (error) {
    // A line that breaks is a TypeError to fetch; all else is somebody's word or wish.
    if (!(error instanceof TypeError)) throw error;
  }
  return null;
}

function take(told, progress) {
  switch (told.type) {
    case "response.created":
      progress.id = told.response.id;
      progress.onId(progress.id);
      return null;
    case "response.output_text.delta":
      progress.onText(told.delta);
      return null;
    case "response.completed":
    case "response.incomplete":
      if (told.response.status === "cancelled") throw new DOMException("cancelled", "AbortError");
      return { cut: told.response.status === "incomplete", context: told.response.x_megacontext };
    case "response.failed":
      throw new Problem(told.response.error?.message ?? "The reply failed.");
    case "error":
      throw new Problem(told.message ?? told.error?.message ?? "The reply failed.");
    default:
      return null;
  }
}
