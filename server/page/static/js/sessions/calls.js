/** What can be done with sessions. */

import { getJson, send, sendJson } from "../http.js";

const path = (id) => `v1/sessions/${encodeURIComponent(id)}`;
const answer = async (sent) => (await sent).json();

export const list = (after, others) =>
  getJson(`v1/sessions?limit=30${after ? `&after=${after}` : ""}${others ? "" : "&implicit=false"}`);
export const get = (id) => getJson(path(id));
export const create = (metadata) => answer(sendJson("POST", "v1/sessions", { metadata }));
export const rename = (session, title) =>
  answer(sendJson("PATCH", path(session.id), { metadata: { ...session.metadata, title } }));
export const remove = (id) => answer(send(path(id), { method: "DELETE" }));
export const fork = (id, messageId, metadata) =>
  answer(sendJson("POST", `${path(id)}/fork`, { ...(messageId ? { message_id: messageId } : {}), metadata }));
export const rewind = (id, messageId) => answer(sendJson("POST", `${path(id)}/rewind`, { message_id: messageId }));
export const stopTurn = (id) => answer(sendJson("POST", `${path(id)}/cancel`, {}));

/** The newest messages first; ``after``: the ``next`` of the page before. */
export const messages = (id, limit, after = null) =>
  getJson(`${path(id)}/messages?order=desc&limit=${limit}${after ? `&after=${after}` : ""}`);

/** What a session is called. */
export const titleOf = (session) => session.metadata?.title || "Untitled";
