/** Texts come in by a button, or by being dropped anywhere on the page. */

import { at, icon } from "./dom.js";

/** onFiles: called with what was chosen or dropped. */
export function takeFiles(onFiles) {
  const input = at("file");
  const choose = () => input.click();
  at("attach").append(icon("attach"));
  at("attach").addEventListener("click", choose);
  at("choose-first").addEventListener("click", choose);
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = "";
    if (files.length) onFiles(files);
  });
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const count = (step) => (event) => {
    if (!holdsFiles(event)) return;
    depth = Math.max(0, depth + step);
    at("drop").hidden = depth === 0;
  };
  document.addEventListener("dragenter", count(1));
  document.addEventListener("dragleave", count(-1));
  document.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    depth = 0;
    at("drop").hidden = true;
    onFiles([...event.dataTransfer.files]);
  });
}
