/** The few things that every part of the page needs of the document. */

/** The element of an id; the page is broken without it. */
export function at(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** h("button.quiet", {type: "button", onclick: go}, "Go"): text is always text, never markup. */
export function h(what, properties = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = document.createElement(tag);
  made.classList.add(...classes);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && !name.includes("-")) made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with its attributes. */
export function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const PATHS = {
  plus: "M8 3v10M3 8h10",
  send: "M8 13V3M3.5 7.5 8 3l4.5 4.5",
  stop: "M4.5 4.5h7v7h-7z",
  attach: "M13 7.5 8 12.5a3.2 3.2 0 0 1-4.5-4.5L8.7 2.8a2.1 2.1 0 0 1 3 3L6.6 11a1 1 0 0 1-1.5-1.5l4.6-4.6",
  menu: "M2.5 4.5h11M2.5 8h11M2.5 11.5h11",
  close: "M4 4l8 8M12 4l-8 8",
  pencil: "M3 13l.6-2.8L10.8 3l2.2 2.2-7.2 7.2z",
  fork: "M4.5 3v10M4.5 9c0-3 7-1.5 7-5V3",
  undo: "M3 6.5h6.5a3.3 3.3 0 0 1 0 6.5H6M5.8 3.5 2.8 6.5l3 3",
  save: "M8 3v7M5 7.5 8 10.5l3-3M3 13h10",
  bin: "M3 4.5h10M6.5 4.5V3h3v1.5M4.5 4.5l.6 8.5h5.8l.6-8.5",
  copy: "M5.5 5.5h7v7h-7zM3.5 10.5v-7h7",
  text: "M3.5 2.5h6l3 3v8h-9zM9.5 2.5v3h3",
};

/** A small picture that says nothing by itself: its button has the words. */
export function icon(name) {
  const path = svg("path", { d: PATHS[name] });
  return svg("svg", { viewBox: "0 0 16 16", class: "icon-lines", "aria-hidden": "true" }, path);
}

/** A button with a picture; ``label`` is what it is called and what its hint says. */
export function iconButton(name, label, onclick) {
  return h("button.icon", { type: "button", title: label, "aria-label": label, onclick }, icon(name));
}

/** Calls ``action`` once after calls have ceased for ``delay`` ms. */
export function settle(action, delay) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), delay);
  };
}
