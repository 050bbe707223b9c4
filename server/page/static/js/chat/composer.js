/** Where one writes: it grows with its text; Enter sends, Esc stops. */

import { at, icon } from "../dom.js";

export class Composer {
  #field = at("question");
  #onStop;

  /** onSend: called with the text; onStop: called by button and key. */
  constructor(onSend, onStop) {
    this.#onStop = onStop;
    at("send").append(icon("send"));
    at("stop").append(icon("stop"));
    at("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = this.#field.value.trim();
      if (text && !at("send").disabled) onSend(text);
    });
    this.#field.addEventListener("input", () => this.#fit());
    this.#field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      at("composer").requestSubmit();
    });
    at("stop").addEventListener("click", () => this.#onStop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !at("stop").hidden && !document.querySelector("dialog[open]")) this.#onStop();
    });
  }

  get text() {
    return this.#field.value;
  }

  put(text) {
    this.#field.value = text;
    this.#fit();
  }

  focus() {
    this.#field.focus();
  }

  /** While a turn is written, there is a button to stop it in the place of the one that sends. */
  busy(running) {
    const had = document.activeElement === at("send") || document.activeElement === at("stop");
    at("send").hidden = running;
    at("stop").hidden = !running;
    if (had) at(running ? "stop" : "send").focus();
  }

  /** While a file is read in, no turn can begin. */
  hold(held) {
    at("send").disabled = held;
    at("attach").disabled = held;
  }

  #fit() {
    this.#field.style.height = "auto";
    this.#field.style.height = `${Math.min(this.#field.scrollHeight, 200)}px`;
  }
}
