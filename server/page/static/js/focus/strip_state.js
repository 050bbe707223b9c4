/** What is known of a session's focus: the runs of its strip, and what to say of each place. */

const WHY = {
  pinned: "pinned: it stays in view",
  tail: "in view: the newest tokens always are",
  turn: "in view: it is of the current turn",
  asked: "in view: the question asks for it",
  neighbour: "in view: it stands beside what was asked for",
  lead: "in view: an opened place names it",
  newest: "in view since it was new",
  unknown: "in view",
};
const SHORT = { tail: "newest tokens", turn: "this turn", asked: "asked for", neighbour: "beside it", newest: "since new" };

/** A reason as one or two words. */
export const shortReason = (reason) => SHORT[reason] ?? reason;

/** Moments at which nothing moved say nothing of the refocus before. */
const STILL = new Set(["interval", "commit"]);

export class StripState {
  pins = [];

  /** told: an event of the server; states are places in its list of names. before: what was told last, or null. */
  constructor(told, before = null) {
    Object.assign(this, told);
    if (before && STILL.has(this.moment) && !this.opened.length && !this.closed.length) {
      const stands = ([, end]) => end <= this.tokens;
      this.opened = before.opened.filter(stands);
      this.closed = before.closed.filter(stands);
    }
    if (before) this.pins = before.pins;
    this.starts = Float64Array.from(this.runs, (run) => run[0]);
  }

  /** Place in ``runs`` of the run that holds a token; -1 in an empty history. */
  runAt(position) {
    let low = 0;
    let high = this.runs.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] <= position) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  pinAt(position) {
    return this.pins.find(([start, end]) => start <= position && position < end) ?? null;
  }

  /** What stands at a token: a pin, a place in view, or of what is folded the block alone. */
  placeAt(position, blockSize) {
    const [start, end, level, state] = this.runs[this.runAt(position)] ?? [0, this.tokens, 0, -1];
    const pin = this.pinAt(position);
    const place = { position, level, pin, reason: level ? null : this.states[state] };
    if (pin) [place.start, place.end] = pin;
    else if (level === 0 && end - start <= 8 * blockSize) Object.assign(place, { start, end });
    else place.start = Math.max(start, Math.floor(position / blockSize) * blockSize);
    place.end ??= Math.min(place.start + blockSize, end);
    const opened = this.opened.find(([from, to]) => from <= position && position < to);
    place.score = opened && !pin ? opened[3] : null;
    place.closed = this.closed.some(([from, to]) => from <= position && position < to);
    return place;
  }

  /** Runs in view, as [start, end, reason]. */
  raw() {
    return this.runs.filter((run) => run[2] === 0).map(([start, end, , state]) => [start, end, this.states[state]]);
  }
}

/** Of a place, in words. */
export function about(place) {
  const words = [];
  if (place.pin) words.push("pinned by you: it stays in view");
  else if (place.level > 0) words.push(place.closed ? "folded away in this refocus" : "folded away");
  else words.push(WHY[place.reason] ?? WHY.unknown);
  if (place.score !== null) words.push(`opened in this refocus, score ${place.score.toFixed(2)}`);
  return words.join("; ");
}
