/** A reply's Markdown as elements: the part of it that models write. Made of text nodes, so no reply can bring markup. */

import { h } from "../dom.js";

const FENCE = /^\s*(```|~~~)/;
const BULLET = /^\s*[-*+]\s+(.*)$/;
const NUMBER = /^\s*(\d{1,9})[.)]\s+(.*)$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const INLINE = /(`+)(.+?)\1|\*\*(\S(?:.*?\S)?)\*\*|\*(\S(?:.*?\S)?)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;

/** Elements of a text. */
export function markdown(text) {
  const lines = text.split("\n");
  const made = [];
  for (let at = 0; at < lines.length; ) {
    const [element, next] = block(lines, at);
    if (element) made.push(element);
    at = next;
  }
  return made;
}

function block(lines, at) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  if (FENCE.test(line)) return code(lines, at);
  const heading = HEADING.exec(line);
  // A reply's headings stand below those of the page.
  if (heading) return [h("p.heading", {}, ...inline(heading[2])), at + 1];
  if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) return [h("hr"), at + 1];
  if (/^\s*>/.test(line)) return quote(lines, at);
  if (BULLET.test(line)) return list(lines, at, "ul", BULLET);
  if (NUMBER.test(line)) return list(lines, at, "ol", NUMBER);
  return paragraph(lines, at);
}

function code(lines, at) {
  const mark = FENCE.exec(lines[at])[1];
  let end = at + 1;
  while (end < lines.length && !lines[end].trim().startsWith(mark)) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  return [h("pre", { tabIndex: 0 }, h("code", {}, text)), end + 1];
}

function quote(lines, at) {
  let end = at;
  while (end < lines.length && /^\s*>/.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(/^\s*>\s?/, ""));
  return [h("blockquote", {}, ...markdown(inner.join("\n"))), end];
}

function list(lines, at, tag, item) {
  const items = [];
  let end = at;
  const start = tag === "ol" ? Number(NUMBER.exec(lines[at])[1]) : undefined;
  for (; end < lines.length && lines[end].trim(); end += 1) {
    const found = item.exec(lines[end]);
    if (found) items.push(found.at(-1));
    else if (/^\s{2,}/.test(lines[end])) items[items.length - 1] += ` ${lines[end].trim()}`;
    else break;
  }
  return [h(tag, { start }, ...items.map((text) => h("li", {}, ...inline(text)))), end];
}

function paragraph(lines, at) {
  let end = at + 1;
  const starts = (line) => !line.trim() || FENCE.test(line) || BULLET.test(line) || HEADING.test(line);
  while (end < lines.length && !starts(lines[end])) end += 1;
  const parts = lines.slice(at, end).flatMap((line, index) => [...(index ? [h("br")] : []), ...inline(line)]);
  return [h("p", {}, ...parts), end];
}

function inline(text) {
  const found = INLINE.exec(text);
  if (!found) return text ? [text] : [];
  const [whole, tick, coded, bold, italic, label, address] = found;
  let made;
  if (tick) made = h("code", {}, coded);
  else if (bold) made = h("strong", {}, ...inline(bold));
  else if (italic) made = h("em", {}, ...inline(italic));
  else made = h("a", { href: address, rel: "noopener noreferrer", target: "_blank" }, label);
  const before = text.slice(0, found.index);
  return [...(before ? [before] : []), made, ...inline(text.slice(found.index + whole.length))];
}
