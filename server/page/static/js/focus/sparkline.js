/** A number, and how it went lately. */

import { h, svg } from "../dom.js";

const KEPT = 60;
const WIDTH = 84;
const TALL = 20;

/** A gauge of a <dl>: a name, a value in words, and a line. most: what the line's top stands for; null: its own peak. */
export class Gauge {
  #values = [];
  #value = h("span.value", {}, "–");
  #line = svg("polyline", { points: "" });
  #most;
  #words;

  constructor(list, name, words, most = null) {
    this.#most = most;
    this.#words = words;
    const box = { viewBox: `0 0 ${WIDTH} ${TALL}`, preserveAspectRatio: "none" };
    const picture = svg("svg", { ...box, class: "spark", "aria-hidden": "true" });
    picture.append(svg("path", { d: `M0 ${TALL - 1.5}h${WIDTH}`, class: "base" }), this.#line);
    list.append(h("div", {}, h("dt", {}, name), h("dd", {}, this.#value, picture)));
  }

  clear() {
    this.#values = [];
    this.#value.textContent = "–";
    this.#line.setAttribute("points", "");
  }

  /** The newest value; null: nothing is known now. note: what else is said of it. */
  add(value, note = "") {
    if (value === null || value === undefined) return;
    this.#values = [...this.#values, value].slice(-KEPT);
    this.#value.textContent = this.#words(value) + note;
    const most = this.#most ?? Math.max(1e-9, ...this.#values);
    const step = WIDTH / (KEPT - 1);
    const y = (one) => TALL - 2 - (TALL - 4) * Math.min(1, one / most);
    const points = this.#values.map((one, at) => `${(at * step).toFixed(1)},${y(one).toFixed(1)}`);
    if (points.length === 1) points.push(`${step},${y(this.#values[0]).toFixed(1)}`);
    this.#line.setAttribute("points", points.join(" "));
  }
}
