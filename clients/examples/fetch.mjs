// A session and a streamed reply with fetch alone: Node 18 or newer, or a browser.
// MEGACONTEXT_URL and MEGACONTEXT_API_KEY name the server and its key, if it has any.

const url = process.env.MEGACONTEXT_URL ?? "http://127.0.0.1:8000";
const key = process.env.MEGACONTEXT_API_KEY;

async function call(method, path, body, type = "application/json") {
  const headers = { "Content-Type": type, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(url + path, { method, headers, body });
  if (!response.ok) {
    throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
  }
  return response;
}

// Yields the data of server-sent events. The server ends lines with \n; comments keep the connection alive.
async function* events(response) {
  let rest = "";
  const decoder = new TextDecoder();
  for await (const bytes of response.body) {
    const parts = (rest + decoder.decode(bytes, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (lines.includes("event: error")) throw new Error(data.join("\n"));
      if (data.length > 0) yield data.join("\n");
    }
  }
}

async function* reply(body) {
  const response = await call("POST", "/v1/chat/completions", JSON.stringify({ ...body, stream: true }));
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
  throw new Error("the stream ended before the reply was complete");
}

const model = (await (await call("GET", "/v1/models")).json()).data[0].id;
const session = (await (await call("POST", "/v1/sessions", "{}")).json()).id;
const text = "Day 1: the keeper wrote that the lamp needs oil every 4711 turns.";
const added = await (await call("POST", `/v1/sessions/${session}/ingest`, text, "text/plain; charset=utf-8")).json();
console.log(`model ${model}, session ${session}, ${added.tokens_added} tokens read`);

const messages = [{ role: "user", content: "When does the lamp need oil?" }];
let seen = {};
for await (const chunk of reply({ model, session_id: session, messages, max_tokens: 32 })) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
  seen = chunk.x_megacontext ?? seen;
}
console.log(`\n${seen.raw} of ${seen.tokens} tokens in view`);
await call("DELETE", `/v1/sessions/${session}`);
