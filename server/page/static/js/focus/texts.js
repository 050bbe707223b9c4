/** Texts of places, as the server reads them out of the history; those seen lately are kept. */

import { getJson } from "../http.js";

const KEPT = 200;
const MOST = 1024;

export class Texts {
  #known = new Map();

  clear() {
    this.#known.clear();
  }

  /** The text of tokens [start, end), or of the first of them where they are many. */
  async of(session, start, end, signal) {
    const stop = Math.min(end, start + MOST);
    const name = `${session} ${start} ${stop}`;
    if (!this.#known.has(name)) {
      const { text } = await getJson(`v1/sessions/${session}/text?start=${start}&end=${stop}`, { signal });
      if (this.#known.size >= KEPT) this.#known.delete(this.#known.keys().next().value);
      this.#known.set(name, stop < end ? `${text} …` : text);
    }
    return this.#known.get(name);
  }
}
