/** Server-sent events of a response that needs a key, which EventSource cannot send. */

/** Each event as {event, data, id}; ends when the server ends the stream. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event) yield event;
      }
    }
  } finally {
    // Whoever stops reading lets the server know; a stream that broke needs no such word.
    await reader.cancel().catch(() => undefined);
  }
}

function parsed(block) {
  const event = { event: "message", data: "", id: null };
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    if (colon === 0) continue;
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") data.push(value);
    else if (name in event) event[name] = value;
  }
  if (!data.length) return null;
  event.data = data.join("\n");
  return event;
}
