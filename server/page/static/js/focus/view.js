/** Which part of the history the strip shows: all of it, or what was zoomed into. */

export class View {
  from = 0;
  to = 1;
  #all = true;
  #tokens = 0;
  #least;

  constructor(least) {
    this.#least = least;
  }

  get whole() {
    return this.#all;
  }

  /** The history has so many tokens now. */
  grow(tokens) {
    this.#tokens = tokens;
    if (this.#all || this.from >= tokens) this.all();
    else this.to = Math.min(this.to, tokens);
  }

  all() {
    this.#all = true;
    this.from = 0;
    this.to = Math.max(1, this.#tokens);
  }

  /** Zoom so that ``around`` stays where it is; factor below 1 goes closer. */
  zoom(factor, around) {
    const span = this.to - this.from;
    const wanted = Math.max(this.#least, span * factor);
    if (wanted >= this.#tokens) return this.all();
    const share = (around - this.from) / span;
    return this.#at(around - share * wanted, wanted);
  }

  /** Move so that a place can be seen. */
  show(start, end) {
    if (start >= this.from && end <= this.to) return;
    const span = Math.max(this.to - this.from, (end - start) * 2);
    this.#at((start + end - span) / 2, span);
  }

  #at(from, span) {
    this.from = Math.max(0, Math.min(from, this.#tokens - span));
    this.to = Math.min(this.#tokens, this.from + span);
    this.#all = this.from <= 0 && this.to >= this.#tokens;
  }
}
