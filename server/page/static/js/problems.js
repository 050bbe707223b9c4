/** What went wrong, in words, where it can be read. Nothing is left to the console. */

import { at, h, icon } from "./dom.js";

/** A failure that the server told: its message is for people. */
export class Problem extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.name = "Problem";
    this.status = status;
    this.code = code;
  }
}

export const isAbort = (error) => error?.name === "AbortError";

/** Show an error until it is closed; the same one is shown once. */
export function show(error) {
  if (isAbort(error)) return;
  const words = error?.message || String(error);
  const list = at("notices");
  if ([...list.children].some((notice) => notice.dataset.words === words)) return;
  const close = h("button.icon", { type: "button", "aria-label": "Close this message" }, icon("close"));
  const notice = h("div.notice", {}, h("p", {}, words), close);
  notice.dataset.words = words;
  close.addEventListener("click", () => notice.remove());
  list.append(notice);
}

export function clearProblems() {
  at("notices").replaceChildren();
}

/** An action whose failure is shown. */
export const guarded = (action) => async (...given) => {
  try {
    return await action(...given);
  } catch (error) {
    show(error);
    return undefined;
  }
};

export function watchForProblems() {
  window.addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    show(event.reason);
  });
  window.addEventListener("error", (event) => show(event.error ?? new Error(event.message)));
}
