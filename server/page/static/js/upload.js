/** A file on its way into a session's history, in parts that count at once, so that a line that breaks loses nothing. */

import { getJson, send } from "./http.js";
import { isAbort } from "./problems.js";

const ASK = 400;
const TRIES = 4;

/** Read a file in. onProgress: (bytes taken in, tokens so far); -> what the server says at the end. */
export async function readIn(session, file, { signal, onProgress }) {
  const path = `v1/sessions/${session}/ingest`;
  const title = file.name.replace(/\s+/g, " ").trim().slice(0, 200);
  const watching = watch(path, signal, onProgress);
  let offset = 0;
  try {
    for (let left = TRIES; ; left -= 1) {
      try {
        return await part(path, file, offset, title, signal);
      } catch (error) {
        // An answer in words is one; where there was none, the server is asked where to go on.
        if (isAbort(error) || error.code !== "unreachable" || left <= 1) throw error;
        await new Promise((resolve) => setTimeout(resolve, 1000));
        offset = (await getJson(path, { signal })).offset ?? 0;
      }
    }
  } finally {
    watching.stop();
  }
}

async function part(path, file, offset, title, signal) {
  const query = new URLSearchParams({ partial: "true", offset });
  if (title) query.set("title", title);
  const headers = { "Content-Type": "text/plain; charset=utf-8" };
  const response = await send(`${path}?${query}`, { method: "POST", body: file.slice(offset), headers, signal });
  return response.json();
}

/** Asks how far it is, until it is stopped. */
function watch(path, signal, onProgress) {
  let timer = 0;
  let over = false;
  const stop = () => {
    over = true;
    clearTimeout(timer);
  };
  const ask = async () => {
    try {
      const { active, bytes, tokens } = await getJson(path, { signal });
      if (active && !over) onProgress(bytes, tokens);
    } catch {
      // The request that carries the file tells what is wrong.
    }
    if (!over) timer = setTimeout(ask, ASK);
  };
  timer = setTimeout(ask, ASK);
  return { stop };
}
