/** The strip in words: for who does not see it, or wants to read it. */

import { h } from "../dom.js";
import { number, percent, tokens } from "../words.js";
import { shortReason } from "./strip_state.js";

const ROWS = 100;

/** One sentence on all of it. */
export function summary(strip) {
  const raw = strip.raw();
  const seen = raw.reduce((sum, [start, end]) => sum + end - start, 0);
  const moved = strip.opened.length || strip.closed.length;
  const change = moved ? ` The last refocus opened ${strip.opened.length} and closed ${strip.closed.length}.` : "";
  const pins = strip.pins.length ? ` ${strip.pins.length} pinned.` : "";
  return (
    `${tokens(strip.tokens)} of history; ${number(seen)} of them in view, in ${raw.length} ` +
    `${raw.length === 1 ? "place" : "places"}: ${percent(strip.cost / strip.budget)} of the budget.${change}${pins}`
  );
}

/** Summary and tables; go(position) shows a place. */
export function inWords(strip, go) {
  const raw = strip.raw();
  const parts = [];
  if (strip.opened.length) {
    const rows = strip.opened.map(([start, end, reason, score]) => [start, end, shortReason(reason), score.toFixed(2)]);
    parts.push(table("Opened in the last refocus", ["tokens", "why", "score"], rows, go));
  }
  if (strip.closed.length) parts.push(table("Closed in the last refocus", ["tokens"], strip.closed, go));
  const rows = raw.slice(-ROWS).map(([start, end, reason]) => [start, end, shortReason(reason)]);
  const left = raw.length > ROWS ? `, the last ${ROWS} of ${number(raw.length)} places` : "";
  parts.push(table(`In view${left}`, ["tokens", "why"], rows, go));
  return [h("p", {}, summary(strip)), h("div.tables", {}, ...parts)];
}

/** What the last refocus did, in two short rows: the best of what it opened and why, and what it closed. */
export function inShort(strip, go) {
  const opened = [...strip.opened].sort((one, other) => other[3] - one[3]).map(([start, end, reason, score]) => {
    return chip("opened", start, `${number(start)}–${number(end)}`, `${shortReason(reason)} ${score.toFixed(2)}`, go);
  });
  const closed = strip.closed.map(([start, end]) => chip("closed", start, `${number(start)}–${number(end)}`, "", go));
  return [row("Opened", opened), row("Closed", closed)];
}

function chip(kind, start, where, why, go) {
  const words = why ? [h("span", {}, where), h("span.soft", {}, why)] : [h("span", {}, where)];
  return h(`button.chip.${kind}`, { type: "button", onclick: () => go(start) }, ...words);
}

function row(name, chips) {
  const most = 24;
  const none = chips.length ? null : h("span.soft", {}, "nothing");
  return h("div.chips", { role: "group", "aria-label": `${name} in the last refocus` }, h("span.soft", {}, name), none, ...chips.slice(0, most));
}

function table(caption, names, rows, go) {
  const head = h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)));
  const body = rows.map(([start, end, ...more]) => {
    const place = `${number(start)} to ${number(end)}`;
    const button = h("button.link", { type: "button", onclick: () => go(start) }, place);
    return h("tr", {}, h("td", {}, button), ...more.map((cell) => h("td", {}, cell)));
  });
  return h("table", {}, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, ...body));
}
