/** One question to the person, with a way back. */

import { at, h } from "./dom.js";

/**
 * null if it was left; else the answer's value, or what was typed where there was something to type.
 * answers: {value: what its button says}; the first one is what Enter gives. text: to begin with, null for no field.
 */
export function ask({ title, words = "", answers, text = null, danger = false }) {
  const dialog = at("ask-dialog");
  const input = at("ask-input");
  at("ask-title").textContent = title;
  at("ask-words").textContent = words;
  at("ask-words").hidden = !words;
  const style = danger ? "button.primary.danger" : "button.primary";
  at("ask-answers").replaceChildren(
    ...Object.entries(answers).map(([value, label]) => h(style, { type: "submit", value }, label)),
  );
  input.hidden = text === null;
  input.value = text ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  if (text !== null) input.select();
  return new Promise((resolve) => {
    let answer = null;
    at("ask-form").onsubmit = (event) => {
      answer = text === null ? event.submitter.value : input.value.trim();
    };
    at("ask-no").onclick = () => dialog.close();
    dialog.addEventListener("close", () => resolve(answer), { once: true });
  });
}
