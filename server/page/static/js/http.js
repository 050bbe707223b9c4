/** Requests to the server that this page came from, with the key that it asks for. */

import { askForKey, currentKey } from "./key.js";
import { Problem } from "./problems.js";

/** This file is ROOT/page/VERSION/js/http.js, wherever a proxy has put ROOT. */
export const ROOT = new URL("../../../", import.meta.url);

/** The response if it went well, else a Problem in the server's words; asks for a key as often as the server does. */
export async function send(path, options = {}) {
  for (;;) {
    const key = currentKey();
    const headers = { Accept: "application/json", ...options.headers };
    if (key) headers.Authorization = `Bearer ${key}`;
    const response = await attempt(new URL(path, ROOT), { ...options, headers });
    if (response.ok) return response;
    const problem = await told(response);
    if (response.status !== 401) throw problem;
    if (currentKey() === key) await askForKey(key ? problem.message : "");
  }
}

export async function getJson(path, options = {}) {
  return (await send(path, options)).json();
}

export async function sendJson(method, path, body, options = {}) {
  const headers = { "Content-Type": "application/json", ...options.headers };
  return send(path, { ...options, method, headers, body: JSON.stringify(body) });
}

async function attempt(url, options) {
  try {
    return await fetch(url, { cache: "no-store", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem("The server can't be reached. Is it running?", { code: "unreachable" });
  }
}

async function told(response) {
  let message = `The server answered ${response.status} ${response.statusText}`.trim();
  let code = null;
  try {
    const { error } = await response.json();
    message = error.message;
    code = error.code;
  } catch {
    // A proxy in between answers in its own words: the status must do.
  }
  const wait = response.headers.get("Retry-After");
  if (wait) message += ` (try again in ${wait} s)`;
  return new Problem(message, { status: response.status, code });
}
