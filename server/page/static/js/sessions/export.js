/** A session as a file, made in the browser from its messages. */

import { h } from "../dom.js";
import { messages, titleOf } from "./calls.js";

const PAGE = 100;

/** Save as "json" or "markdown". */
export async function exportSession(session, format) {
  const all = await everyMessage(session.id);
  const name = titleOf(session).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "session";
  if (format === "json") save(`${name}.json`, "application/json", JSON.stringify({ session, messages: all }, null, 2));
  else save(`${name}.md`, "text/markdown", asMarkdown(session, all));
}

async function everyMessage(id) {
  const found = [];
  let after = null;
  do {
    const page = await messages(id, PAGE, after);
    found.push(...page.data);
    after = page.next;
  } while (after);
  return found.reverse();
}

function asMarkdown(session, all) {
  const parts = all.map((message) => {
    if (message.role === "document") return `> Text: ${message.title || "untitled"} (${message.end - message.start} tokens)`;
    return `**${message.role}**\n\n${message.content ?? ""}`;
  });
  return `# ${titleOf(session)}\n\n${parts.join("\n\n---\n\n")}\n`;
}

function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
