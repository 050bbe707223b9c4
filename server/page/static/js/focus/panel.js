/** The focus of the session that is shown: strip, gauges, the place one looks at, and all of it in words. */

import { at, h, settle } from "../dom.js";
import { getJson, sendJson } from "../http.js";
import { guarded, isAbort } from "../problems.js";
import { number, percent, tokens } from "../words.js";
import { FocusFeed } from "./feed.js";
import { goal } from "./keys.js";
import { Picture } from "./picture.js";
import { Gauge } from "./sparkline.js";
import { about, StripState } from "./strip_state.js";
import { Texts } from "./texts.js";
import { View } from "./view.js";
import { inShort, inWords, summary } from "./words.js";

export class FocusPanel {
  #canvas = at("strip");
  #picture = new Picture(this.#canvas);
  #texts = new Texts();
  #view;
  #blockSize;
  #session = null;
  #strip = null;
  #marks = [];
  #place = null;
  #asked = null;
  #feed;
  #onTokens;

  /** onTokens: told of the history's length when a strip comes. */
  constructor(blockSize, onTokens) {
    this.#blockSize = blockSize;
    this.#view = new View(8 * blockSize);
    this.#onTokens = onTokens;
    this.#feed = new FocusFeed((told, session) => session === this.#session && this.#take(told));
    const list = at("gauges");
    this.fill = new Gauge(list, "Budget", percent, 1);
    this.swaps = new Gauge(list, "Swapped", percent, 1);
    this.speed = new Gauge(list, "Speed", (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} tokens/s`);
    this.#listen();
  }

  /** Show the focus of another session; null: none. */
  of(session) {
    if (session === this.#session) return;
    this.#session = session;
    this.#strip = this.#place = null;
    this.#texts.clear();
    for (const gauge of [this.fill, this.swaps, this.speed]) gauge.clear();
    this.#view.grow(0);
    at("focus").hidden = true;
    this.#feed.of(session);
  }

  /** Where messages and documents begin. */
  mark(positions) {
    this.#marks = positions;
    this.#draw();
  }

  /** What was cut off has no text any more. */
  forget() {
    this.#texts.clear();
    this.#leave();
  }

  /** Go to a token and read it. */
  go(position, end = position + 1) {
    if (!this.#strip) return;
    this.#view.show(position, end);
    this.#look(position);
  }

  #take(told) {
    const before = this.#strip;
    this.#show(new StripState(told, before));
    this.fill.add(told.cost / told.budget, ` of ${number(told.budget)}`);
    this.swaps.add(told.swap_rate);
    this.speed.add(told.tokens_per_second);
    // Strips do not tell what was pinned by hand, but whether something was.
    if (told.pin_room !== before?.pin_room) this.#askForPins();
  }

  #askForPins = guarded(async () => {
    const session = this.#session;
    const { pins } = await getJson(`v1/sessions/${session}/focus`);
    if (session === this.#session) this.#pinned(pins);
  });

  #pinned(pins) {
    this.#strip.pins = pins;
    if (this.#strip.tokens) this.#show(this.#strip);
  }

  #show(strip) {
    this.#strip = strip;
    at("focus").hidden = strip.tokens === 0;
    if (strip.tokens === 0) return;
    this.#view.grow(strip.tokens);
    if (this.#place) this.#place = strip.placeAt(Math.min(this.#place.position, strip.tokens - 1), this.#blockSize);
    this.#draw();
    this.#tell();
    this.#onTokens(strip.tokens);
  }

  #draw() {
    if (!this.#strip?.tokens) return;
    this.#picture.draw(this.#strip, this.#view, this.#marks, this.#place);
    at("axis-start").textContent = number(Math.round(this.#view.from));
    at("axis-end").textContent = tokens(Math.round(this.#view.to));
    at("zoom-all").disabled = at("zoom-out").disabled = this.#view.whole;
  }

  #tell() {
    if (!at("places").hidden) at("places").replaceChildren(...inWords(this.#strip, (position) => this.go(position)));
    this.#canvas.setAttribute("aria-valuemax", this.#strip.tokens - 1);
    const said = this.#place ? `Token ${number(this.#place.start)}: ${about(this.#place)}` : summary(this.#strip);
    this.#canvas.setAttribute("aria-valuenow", this.#place?.position ?? 0);
    this.#canvas.setAttribute("aria-valuetext", said);
    this.#head();
  }

  // -- one place ---------------------------------------------------------------------------------------------------

  #look(position) {
    this.#place = this.#strip.placeAt(position, this.#blockSize);
    this.#draw();
    this.#tell();
    this.#read();
  }

  #leave() {
    this.#place = null;
    this.#asked?.abort();
    if (!this.#strip?.tokens) return;
    this.#draw();
    this.#tell();
  }

  /** What is said above the text, and the button that pins. */
  #head() {
    if (!this.#place) {
      const hint = h("p.hint", {}, "Point at the strip to read what stands there; a click pins it, so that it stays in view.");
      at("place").replaceChildren(...inShort(this.#strip, (position) => this.go(position)), hint);
      return;
    }
    const { start, end, pin } = this.#place;
    let head = at("place").querySelector(".head");
    if (!head) {
      const button = h("button.quiet", { type: "button", id: "pin" }, "");
      button.addEventListener("click", () => this.#pin());
      head = h("div.head", {}, h("p", { "aria-live": "polite" }), button);
      at("place").replaceChildren(head, h("blockquote", {}));
    }
    const words = `Tokens ${number(start)} to ${number(end)}, ${about(this.#place)}`;
    if (head.firstChild.textContent !== words) head.firstChild.textContent = words;
    head.lastChild.textContent = pin ? "Unpin" : "Pin";
  }

  #read = settle(
    guarded(async () => {
      if (!this.#place) return;
      this.#asked?.abort();
      this.#asked = new AbortController();
      const { start, end } = this.#place;
      try {
        const text = await this.#texts.of(this.#session, start, end, this.#asked.signal);
        if (this.#place?.start === start) at("place").querySelector("blockquote").textContent = text;
      } catch (error) {
        if (!isAbort(error)) throw error;
      }
    }),
    90,
  );

  #pin = guarded(async () => {
    if (!this.#place) return;
    const { start, end, pin } = this.#place;
    const wish = pin ? { unpin: [pin] } : { pin: [[start, end]] };
    const focus = await (await sendJson("POST", `v1/sessions/${this.#session}/focus`, wish)).json();
    this.#pinned(focus.pins);
  });

  // -- hands -------------------------------------------------------------------------------------------------------

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    const share = Math.min(0.9999, Math.max(0, (event.clientX - box.left) / box.width));
    const position = this.#view.from + share * (this.#view.to - this.#view.from);
    return this.#snapped(position, ((this.#view.to - this.#view.from) / box.width) * 4);
  }

  /** A place in view may be narrower than the hand is exact: the nearest one within reach is meant. */
  #snapped(position, reach) {
    let best = Math.floor(position);
    let distance = reach;
    const first = Math.max(0, this.#strip.runAt(position - reach));
    for (const [start, end, level] of this.#strip.runs.slice(first, this.#strip.runAt(position + reach) + 1)) {
      const off = Math.max(start - position, position - end, 0);
      if (level === 0 && off < distance) [best, distance] = [Math.floor(Math.min(Math.max(position, start), end - 1)), off];
    }
    return Math.min(best, this.#strip.tokens - 1);
  }

  #listen() {
    const canvas = this.#canvas;
    canvas.addEventListener("pointermove", (event) => {
      if (this.#strip?.tokens) this.#look(this.#at(event));
    });
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.#strip?.tokens || event.button !== 0) return;
        this.#look(this.#at(event));
      // A finger looks first: it has no way to hover.
      if (event.pointerType === "mouse") this.#pin();
    });
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    at("focus").addEventListener("keydown", (event) => event.key === "Escape" && this.#leave());
    at("zoom-in").addEventListener("click", () => this.#zoom(0.5));
    at("zoom-out").addEventListener("click", () => this.#zoom(2));
    at("zoom-all").addEventListener("click", () => (this.#view.all(), this.#draw()));
    at("words").addEventListener("click", () => this.#unfold());
    new ResizeObserver(() => this.#draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#picture.readColours();
      this.#draw();
    });
  }

  #unfold() {
    at("places").hidden = !at("places").hidden;
    at("words").setAttribute("aria-expanded", String(!at("places").hidden));
    this.#tell();
  }

  #zoom(factor, around = this.#place?.position ?? (this.#view.from + this.#view.to) / 2) {
    this.#view.zoom(factor, around);
    this.#draw();
  }

  #wheel(event) {
    if (!this.#strip?.tokens || event.deltaY === 0) return;
    event.preventDefault();
    this.#zoom(event.deltaY < 0 ? 0.8 : 1.25, this.#at(event));
  }

  #key(event) {
    if (!this.#strip?.tokens || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "+" || event.key === "=") this.#zoom(0.5);
    else if (event.key === "-") this.#zoom(2);
    else if (event.key === "Enter" || event.key === " ") this.#pin();
    else {
      const here = this.#place?.position ?? this.#strip.tokens - 1;
      const wanted = goal(event.key, this.#strip, here, this.#view);
      if (wanted === null) return;
      this.go(wanted);
    }
    event.preventDefault();
  }
}
