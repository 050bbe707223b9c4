/** Puts the page together. The address behind # names the session that is shown. */

import { Composer } from "./chat/composer.js";
import { Conversation } from "./conversation.js";
import { ask } from "./dialog.js";
import { at, h } from "./dom.js";
import { takeFiles } from "./files.js";
import { FocusPanel } from "./focus/panel.js";
import { getJson } from "./http.js";
import { guarded, show, watchForProblems } from "./problems.js";
import { exportSession } from "./sessions/export.js";
import { sessionActions, SessionList } from "./sessions/list.js";
import * as sessions from "./sessions/calls.js";
import { number, tokens } from "./words.js";

watchForProblems();
// Until all is there, what is typed stays where it is.
at("composer").addEventListener("submit", (event) => event.preventDefault());
await guarded(start)();

async function start() {
  const [{ data }, about] = await Promise.all([getJson("v1/models"), getJson("")]);
  const model = data[0];
  tellServer(model, about);
  const focus = new FocusPanel(model.x_megacontext.block_size, (length) => conversation.grew(length));
  const composer = new Composer(guarded((text) => conversation.say(text)), () => conversation.stop());
  const list = new SessionList((id) => go(id));
  const page = { model: model.id, composer, focus, onSession };
  const conversation = new Conversation(page, {
    rewind: guarded(rewind),
    fork: guarded((message) => fork(message)),
    copy: guarded((message) => navigator.clipboard.writeText(message.content)),
    open: (message) => focus.go(message.start, message.end),
  });
  takeFiles(guarded((files) => conversation.read(files)));
  sessionActions({
    rename: guarded(rename),
    fork: guarded(() => fork(null)),
    exportAs: guarded(exportAs),
    remove: guarded(remove),
  });
  window.addEventListener("hashchange", open);
  await Promise.all([open(), list.refresh()]);

  function onSession(session) {
    const title = session ? sessions.titleOf(session) : "New chat";
    at("title").textContent = title;
    document.title = session ? `${title} · MegaContext` : "MegaContext";
    at("session-actions").hidden = !session;
    list.current(session?.id ?? null);
    if (session && location.hash !== `#${session.id}`) history.pushState(null, "", `#${session.id}`);
    if (session) guarded(() => list.refresh())();
  }

  async function open() {
    const id = decodeURIComponent(location.hash.slice(1));
    if (id && id === conversation.session?.id) return;
    try {
      await conversation.open(id || null);
    } catch (error) {
      history.replaceState(null, "", location.pathname + location.search);
      await conversation.open(null);
      show(error);
    }
    if (matchMedia("(hover: hover)").matches) composer.focus();
  }

  function go(id) {
    if (id) location.hash = id;
    else {
      history.pushState(null, "", location.pathname + location.search);
      guarded(open)();
    }
  }

  async function rename() {
    const { session } = conversation;
    const title = await ask({ title: "Rename this session", answers: { yes: "Rename" }, text: sessions.titleOf(session) });
    if (!title) return;
    conversation.session = await sessions.rename(session, title);
    onSession(conversation.session);
  }

  async function fork(message) {
    const { session } = conversation;
    const title = `${sessions.titleOf(session)}, fork`;
    const made = await sessions.fork(session.id, message?.id, { ...session.metadata, title });
    go(made.id);
  }

  async function rewind(message) {
    const { session } = conversation;
    const behind = conversation.behind(message);
    const words = behind
      ? `${number(behind)} ${behind === 1 ? "message" : "messages"} behind this one will be gone for good. Fork instead to keep both.`
      : "Whatever stands behind this message will be gone for good.";
    const yes = await ask({ title: "Rewind to here?", words, answers: { yes: "Rewind" }, danger: true });
    if (yes === null) return;
    await sessions.rewind(session.id, message.id);
    focus.forget();
    await conversation.refresh(true);
    await list.refresh();
  }

  async function remove() {
    const { session } = conversation;
    const words = `“${sessions.titleOf(session)}” and all of its history, ${tokens(session.tokens)}, will be gone for good.`;
    const yes = await ask({ title: "Delete this session?", words, answers: { yes: "Delete" }, danger: true });
    if (yes === null) return;
    await sessions.remove(session.id);
    go(null);
    await list.refresh();
  }

  async function exportAs() {
    const answers = { markdown: "Markdown", json: "JSON" };
    const format = await ask({ title: "Export this session", words: "All messages, as a file.", answers });
    if (format) await exportSession(conversation.session, format);
  }
}

function tellServer(model, about) {
  const { budget, lens } = model.x_megacontext;
  at("server").replaceChildren(
    h("p", {}, h("strong", {}, model.id)),
    h("p", {}, `reads ${number(budget)} tokens at a time; lens ${lens}`),
    about.notice ? h("p.warn", {}, about.notice) : "",
    h("p", {}, `server ${about.version}`),
  );
}
