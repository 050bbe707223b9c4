/** The focus of the session that is shown, as the server tells it after each refocus. */

import { eventsOf } from "../events.js";
import { send } from "../http.js";
import { isAbort, Problem, show } from "../problems.js";

const DELETED = "This session was deleted.";
const AGAIN = [500, 1000, 2000, 5000, 10000];

export class FocusFeed {
  #session = null;
  #stop = null;
  #onStrip;

  /** onStrip: called with (what the server tells, the session's id). */
  constructor(onStrip) {
    this.#onStrip = onStrip;
    document.addEventListener("visibilitychange", () => this.#follow());
  }

  /** Follow another session from now on; null: none. */
  of(session) {
    if (session === this.#session && this.#stop) return;
    this.#session = session;
    this.#follow();
  }

  /** A hidden tab lets its connection go: a browser has few for each server. */
  #follow() {
    this.#stop?.abort();
    this.#stop = null;
    if (!this.#session || document.hidden) return;
    this.#stop = new AbortController();
    this.#run(this.#session, this.#stop.signal);
  }

  /** What a refocus costs the page is told to its profiler, where benchmarks read it. */
  #take(data, session) {
    const start = performance.now();
    this.#onStrip(JSON.parse(data), session);
    performance.measure("refocus", { start, end: performance.now() });
    performance.clearMeasures("refocus");
  }

  async #run(session, signal) {
    for (let failures = 0; !signal.aborted; failures += 1) {
      try {
        const response = await send(`v1/sessions/${session}/focus/stream`, {
          signal,
          headers: { Accept: "text/event-stream" },
        });
        for await (const event of eventsOf(response)) {
          if (signal.aborted) return;
          failures = 0;
          if (event.event === "strip") this.#take(event.data, session);
          if (event.event === "end" && JSON.parse(event.data).reason === "deleted") throw new Problem(DELETED, { status: 404 });
        }
      } catch (error) {
        if (isAbort(error) || signal.aborted) return;
        // A session that is gone has no focus any more; all else may come back.
        if (error.status >= 400 && error.status < 500 && error.status !== 429) return show(error);
        if (failures === 2) show(error);
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN[Math.min(failures, AGAIN.length - 1)]));
    }
  }
}
