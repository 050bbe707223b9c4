/** The API key of this tab: asked for when the server wants one, gone when the tab is closed. */

import { at } from "./dom.js";

const NAME = "megacontext.key";
let asking = null;

export const currentKey = () => sessionStorage.getItem(NAME) ?? "";

/** Ask until something is given; all who need it meanwhile wait for the same answer. */
export function askForKey(why) {
  asking ??= ask(why).finally(() => (asking = null));
  return asking;
}

function ask(why) {
  const dialog = at("key-dialog");
  const input = at("key");
  at("key-words").textContent = why ? `The key was refused: ${why}.` : "Ask whoever runs it.";
  at("key-words").classList.toggle("wrong", Boolean(why));
  input.value = "";
  input.setAttribute("aria-invalid", String(Boolean(why)));
  dialog.addEventListener("cancel", stay);
  dialog.showModal();
  return new Promise((resolve) => {
    const form = at("key-form");
    const done = () => {
      form.removeEventListener("submit", done);
      dialog.removeEventListener("cancel", stay);
      sessionStorage.setItem(NAME, input.value.trim());
      resolve();
    };
    form.addEventListener("submit", done);
  });
}

/** Without a key there is nothing to go back to. */
function stay(event) {
  event.preventDefault();
}
