/** The conversation that is shown: its messages, the turn that runs, the text that is read in. */

import { hush, Turns } from "./chat/turns.js";
import { begin, cancel, follow } from "./chat/reply.js";
import { forget, note, runningIn } from "./chat/running.js";
import { at, settle } from "./dom.js";
import { clearProblems, guarded, isAbort, show } from "./problems.js";
import { readIn } from "./upload.js";
import { bytes, firstLine, tokens } from "./words.js";
import * as sessions from "./sessions/calls.js";

const PAGE = 40;
const LOOKS = 12;

export class Conversation {
  session = null;
  #page;
  #turns;
  #messages = [];
  #next = null;
  #turn = null;
  #reading = null;

  /** page: {model, composer, focus, onSession}: what is around it; actions: what can be done with a message. */
  constructor(page, actions) {
    this.#page = page;
    this.#turns = new Turns(actions);
    at("earlier").addEventListener("click", guarded(() => this.#earlier()));
    at("work-stop").addEventListener("click", () => this.#reading?.abort());
    // What another tab did shows when one comes back to this one.
    const back = settle(() => !document.hidden && this.refresh(), 100);
    document.addEventListener("visibilitychange", back);
    window.addEventListener("focus", back);
  }

  get busy() {
    return Boolean(this.#turn || this.#reading);
  }

  /** Show a session; null: a new one, which the server hears of when something is said. */
  async open(id) {
    this.#turn?.stop.abort();
    this.#turn = null;
    this.#reading?.abort();
    this.#page.composer.busy(false);
    this.#page.composer.hold(true);
    this.session = null;
    this.#messages = [];
    this.#next = null;
    this.#turns.clear();
    hush();
    clearProblems();
    at("earlier").hidden = true;
    this.#page.focus.of(null);
    this.#welcome(!id);
    at("scroller").scrollTop = 0;
    if (id) this.session = await sessions.get(id);
    this.#page.onSession(this.session);
    this.#page.focus.of(id);
    this.#page.composer.hold(false);
    if (!id) return;
    await this.refresh(true);
    const running = this.busy ? null : runningIn(id);
    if (running) this.#goOn(running);
  }

  /** Ask for the newest messages, and show them if they are others than before. */
  refresh = guarded(async (toEnd = false) => {
    const { session } = this;
    if (!session || this.busy) return;
    const page = await sessions.messages(session.id, Math.max(PAGE, this.#messages.length));
    if (this.session?.id !== session.id || this.busy) return;
    const before = this.#messages.at(-1)?.id;
    this.#messages = page.data.reverse();
    this.#next = page.next;
    const changed = this.#shown();
    if (toEnd || (changed && this.#messages.at(-1)?.id !== before)) this.#toEnd();
  });

  /** The server's history is so long: what another tab or program adds is looked for until it can be read. */
  grew(length) {
    if (this.busy || length === this.#length) return;
    this.#length = length;
    this.#looks = LOOKS;
    this.#look();
  }

  #length = 0;
  #looks = 0;
  #look = settle(async () => {
    this.#looks -= 1;
    await this.refresh();
    const end = this.#messages.at(-1)?.end ?? 0;
    if (end < this.#length && this.#looks > 0 && !document.hidden) this.#look();
  }, 700);

  // -- a turn ------------------------------------------------------------------------------------------------------

  async say(question) {
    if (this.busy) return;
    clearProblems();
    this.#page.composer.put("");
    await this.#turnOf(question, async (signal, onText) => {
      const { id: session } = await this.#known(firstLine(question));
      const onId = (id) => note(session, id, question);
      this.#live(question);
      const exact = at("exact").checked;
      return begin({ model: this.#page.model, session, question, exact, signal, onId, onText });
    });
  }

  /** A turn that was begun before the page was loaded anew, or before another session was looked at. */
  async #goOn({ id, question }) {
    await this.#turnOf(question, (signal, onText) => {
      this.#live(question);
      return follow({ id, signal, onText });
    });
  }

  /** Show a turn from its question to its end; run: begins or follows it. */
  async #turnOf(question, run) {
    const turn = { stop: new AbortController(), stopped: false, live: null };
    this.#turn = turn;
    this.#page.composer.busy(true);
    let ended = null;
    let why = "";
    try {
      ended = await run(turn.stop.signal, (text) => turn.live.add(text));
      turn.live.finish();
    } catch (error) {
      why = isAbort(error) ? "Stopped: nothing of this turn is kept." : "This turn failed: nothing of it is kept.";
      // Another session is looked at now; the turn goes on without.
      if (this.#turn !== turn) return;
      show(error);
      if (!this.#page.composer.text) this.#page.composer.put(question);
    }
    if (this.session) forget(this.session.id);
    this.#turn = null;
    this.#page.composer.busy(false);
    this.#turns.end(why);
    if (!why) await this.#caughtUp(ended);
  }

  #live(question) {
    hush();
    this.#turn.live = this.#turns.begin(question);
    this.#toEnd();
  }

  /** Stop the turn that runs, here and on the server. */
  stop = guarded(async () => {
    const running = this.session && runningIn(this.session.id);
    this.#turn?.stop.abort();
    if (running) await cancel(running.id);
  });

  // -- a text ------------------------------------------------------------------------------------------------------

  async read(files) {
    for (const file of files) await this.#readOne(file);
  }

  async #readOne(file) {
    if (this.busy) return show(new Error("One thing at a time: wait for the reply or the file, or stop it."));
    if (file.size === 0) return show(new Error(`${file.name} is empty`));
    clearProblems();
    const stop = new AbortController();
    this.#reading = stop;
    this.#work(file, 0, 0);
    let read = null;
    try {
      const session = await this.#known(file.name);
      const onProgress = (done, count) => this.#work(file, done, count);
      read = await readIn(session.id, file, { signal: stop.signal, onProgress });
    } catch (error) {
      show(isAbort(error) ? new Error(`Stopped: of ${file.name}, what was read until then is kept.`) : error);
    }
    if (this.#reading !== stop) return;
    this.#reading = null;
    this.#work(null);
    await this.#caughtUp();
    if (read) at("speech").textContent = `${file.name} is read: ${tokens(read.tokens_added)}.`;
    this.#page.composer.focus();
  }

  #work(file, done, count) {
    at("work").hidden = !file;
    this.#page.composer.hold(Boolean(file));
    if (!file) return;
    // Bytes are told batch by batch, tokens all the time: until there is more to go by, a token is two bytes.
    at("work-progress").value = Math.max(done / file.size, Math.min(0.9, (2 * count) / file.size));
    const how = count ? `${tokens(count)} of ${bytes(file.size)}` : bytes(file.size);
    at("work-words").textContent = `Reading ${file.name}: ${how}`;
  }

  // -- what is shown -----------------------------------------------------------------------------------------------

  /** The session, made now if there is none yet. */
  async #known(title) {
    if (this.session) return this.session;
    this.session = await sessions.create({ title });
    this.#welcome(false);
    this.#page.onSession(this.session);
    this.#page.focus.of(this.session.id);
    return this.session;
  }

  async #caughtUp(ended = null) {
    await this.refresh(true);
    if (!this.session) return;
    const newest = this.#messages.at(-1);
    if (ended && newest) this.#turns.endedSo(newest.id, ended);
    this.session = await sessions.get(this.session.id);
    this.#page.onSession(this.session);
  }

  async #earlier() {
    const page = await sessions.messages(this.session.id, PAGE, this.#next);
    const scroller = at("scroller");
    const below = scroller.scrollHeight - scroller.scrollTop;
    this.#messages = [...page.data.reverse(), ...this.#messages];
    this.#next = page.next;
    this.#shown();
    scroller.scrollTop = scroller.scrollHeight - below;
  }

  #shown() {
    at("earlier").hidden = !this.#next;
    this.#page.focus.mark(this.#messages.map((message) => message.start));
    return this.#turns.show(this.#messages);
  }

  /** Messages behind this one, as far as they are shown. */
  behind(message) {
    return this.#messages.filter((other) => other.start >= message.end).length;
  }

  #welcome(shown) {
    at("welcome").hidden = !shown;
  }

  #toEnd() {
    at("scroller").scrollTop = at("scroller").scrollHeight;
  }
}
