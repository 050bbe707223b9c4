/** The sessions at the side, newest first. */

import { at, h, icon, iconButton } from "../dom.js";
import { guarded } from "../problems.js";
import { compact, when } from "../words.js";
import { list, titleOf } from "./calls.js";

export class SessionList {
  #shown = at("sessions");
  #next = null;
  #current = null;
  #onOpen;

  /** onOpen: called with a session's id, or null for a new one. */
  constructor(onOpen) {
    this.#onOpen = onOpen;
    at("new-session").append(icon("plus"), "New chat");
    at("new-session").addEventListener("click", () => this.#open(null));
    at("more-sessions").addEventListener("click", guarded(() => this.#page(this.#next)));
    at("others").addEventListener("change", guarded(() => this.refresh()));
    at("open-side").append(icon("menu"));
    at("close-side").append(icon("close"));
    at("open-side").addEventListener("click", () => this.#drawer(true));
    at("close-side").addEventListener("click", () => this.#drawer(false));
    at("side").addEventListener("keydown", (event) => event.key === "Escape" && this.#drawer(false));
  }

  /** Ask anew for the first page. */
  async refresh() {
    await this.#page(null);
  }

  current(id) {
    this.#current = id;
    for (const button of this.#shown.querySelectorAll("button")) {
      if (button.dataset.id === id) button.setAttribute("aria-current", "page");
      else button.removeAttribute("aria-current");
    }
  }

  async #page(after) {
    const page = await list(after, at("others").checked);
    this.#next = page.next;
    const rows = page.data.map((session) => this.#row(session));
    if (after) this.#shown.append(...rows);
    else this.#shown.replaceChildren(...rows);
    at("more-sessions").hidden = !page.has_more;
    this.current(this.#current);
  }

  #row(session) {
    const about = `${compact(session.tokens)} tokens, ${when(session.updated)}`;
    const name = h("span.name", {}, titleOf(session));
    const button = h("button", { type: "button", onclick: () => this.#open(session.id) }, name, h("span.soft", {}, about));
    button.dataset.id = session.id;
    return h("li", {}, button);
  }

  #open(id) {
    this.#drawer(false);
    this.#onOpen(id);
  }

  /** On a narrow screen the list comes over the conversation. */
  #drawer(open) {
    const was = at("side").classList.contains("open");
    at("side").classList.toggle("open", open);
    at("open-side").setAttribute("aria-expanded", String(open));
    if (open) at("close-side").focus();
    else if (was) at("open-side").focus();
  }
}

/** The buttons above a conversation. */
export function sessionActions({ rename, fork, exportAs, remove }) {
  at("session-actions").replaceChildren(
    iconButton("pencil", "Rename", rename),
    iconButton("fork", "Fork", fork),
    iconButton("save", "Export", exportAs),
    iconButton("bin", "Delete", remove),
  );
}
