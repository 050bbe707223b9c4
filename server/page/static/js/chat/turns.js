/** The messages of a session, as they stand, and the turn that is being written. */

import { at, h, icon, iconButton } from "../dom.js";
import { number, percent, tokens } from "../words.js";
import { markdown } from "./markdown.js";

const NAMES = { user: "You", assistant: "Model", system: "System", document: "Text", tool: "Tool" };

export class Turns {
  #list = at("turns");
  #shown = "";
  #actions;
  #live = null;

  /** actions: {rewind, fork, open, copy}, each called with a message. */
  constructor(actions) {
    this.#actions = actions;
  }

  /** Show these messages, and none else but the turn under way. What stands already stays untouched. */
  show(messages) {
    const shown = messages.map((message) => `${message.id} ${message.end}`).join(",");
    if (shown === this.#shown) return false;
    this.#shown = shown;
    this.#list.replaceChildren(...messages.map((message) => this.#turn(message)));
    if (this.#live) this.#list.append(...this.#live.parts);
    return true;
  }

  clear() {
    this.#shown = "";
    this.#live = null;
    this.#list.replaceChildren();
  }

  /** A turn begins -> the object that takes its text. */
  begin(question) {
    const asked = turn("user", [h("div.body", {}, question)]);
    const body = h("div.body");
    const reply = turn("assistant", [body]);
    reply.classList.add("writing");
    reply.setAttribute("aria-busy", "true");
    this.#live = new LiveTurn([asked, reply], body);
    this.#list.append(asked, reply);
    return this.#live;
  }

  /** The turn under way is over; what the session holds of it comes with its messages. note: why nothing of it does. */
  end(note = "") {
    const live = this.#live;
    this.#live = null;
    if (!live) return;
    const [asked, reply] = live.parts;
    reply.classList.remove("writing");
    reply.removeAttribute("aria-busy");
    if (!note) return;
    asked.classList.add("lost");
    reply.classList.add("lost");
    reply.append(h("p.note", {}, note));
  }

  /** What is known of a reply that was seen to its end: that it was cut, and what it stood on. */
  endedSo(id, { cut, context }) {
    const made = this.#list.querySelector(`[data-id="${id}"]`);
    if (!made) return;
    const notes = [];
    if (cut) notes.push(h("p.note", {}, "Cut: it is as long as a reply may be."));
    if (context?.sources?.length) notes.push(stoodOn(context.sources, this.#actions.open));
    made.querySelector(".row").before(...notes);
  }

  #turn(message) {
    if (message.role === "document") return this.#document(message);
    const text = message.content ?? "";
    const body = h("div.body", {}, ...(message.role === "assistant" ? markdown(text) : [text]));
    const calls = (message.tool_calls ?? []).map((call) =>
      h("pre.call", { tabIndex: 0 }, `${call.function?.name ?? call.name}(${call.function?.arguments ?? call.arguments})`),
    );
    const made = turn(message.role, [body, ...calls, this.#row(message)]);
    made.dataset.id = message.id;
    return made;
  }

  #document(message) {
    const { start, end } = message;
    const open = h("button.card", { type: "button", onclick: () => this.#actions.open(message) });
    open.append(icon("text"), h("span.name", {}, message.title || "A text"), h("span.soft", {}, tokens(end - start)));
    const made = turn("document", [open, this.#row(message)]);
    made.dataset.id = message.id;
    return made;
  }

  #row(message) {
    const where = `tokens ${number(message.start)} to ${number(message.end)}`;
    const { rewind, fork, copy, open } = this.#actions;
    return h(
      "div.row",
      { role: "group", "aria-label": `This message, ${where}` },
      iconButton("undo", "Rewind to here", () => rewind(message)),
      iconButton("fork", "Fork from here", () => fork(message)),
      message.content ? iconButton("copy", "Copy the text", () => copy(message)) : null,
      h("button.link", { type: "button", title: "Show it in the strip", onclick: () => open(message) }, where),
    );
  }
}

function turn(role, children) {
  const kind = role in NAMES ? role : "tool";
  return h(`li.turn.${kind}`, {}, h("span.unseen", {}, `${NAMES[role] ?? role}: `), ...children);
}

/** The places that a reply paid attention to, the best paid first. */
function stoodOn(sources, open) {
  const rows = sources.map((source) => {
    const whose = source.title ?? NAMES[source.role] ?? "";
    const about = h("span.soft", {}, `${percent(source.share)} ${whose}`);
    return h("li", {}, h("button", { type: "button", onclick: () => open(source) }, about, h("q", {}, source.text_start ?? "")));
  });
  return h("details.sources", {}, h("summary", {}, `Stood on ${sources.length} ${sources.length === 1 ? "place" : "places"}`), h("ol", {}, ...rows));
}

/** A reply while it is written: drawn once a frame, read out sentence by sentence. */
class LiveTurn {
  text = "";
  #body;
  #due = false;
  #said = 0;

  constructor(parts, body) {
    this.parts = parts;
    this.#body = body;
    this.#body.append(h("span.waiting", {}, "reading"));
  }

  add(text) {
    this.text += text;
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#due = false;
    const scroller = at("scroller");
    const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
    this.#body.replaceChildren(...markdown(this.text));
    if (atEnd) scroller.scrollTop = scroller.scrollHeight;
    this.#speak();
  }

  /** Whole sentences alone: a screen reader that gets each token says nothing that can be followed. */
  #speak(all = false) {
    const rest = this.text.slice(this.#said);
    const end = all ? rest.length : rest.search(/[.!?:\n](?=\s)[^]*$/) + 1;
    if (end <= 0) return;
    at("speech").append(h("p", {}, rest.slice(0, end)));
    this.#said += end;
  }

  /** All of it was said. */
  finish() {
    this.#draw();
    this.#speak(true);
  }

  /** Where what was heard before is out of the way. */
  static hush() {
    at("speech").replaceChildren();
  }
}

export const hush = LiveTurn.hush;
