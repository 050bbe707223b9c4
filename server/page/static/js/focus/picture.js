/** The strip as a picture: the whole history from left to right, coarser gists lower, what is in view tall and warm. */

const PAD_TOP = 14;
const PAD_BOTTOM = 8;
const LEAST = 2;

/** Height of a level, as a share of a place in view. */
const height = (level) => (level === 0 ? 1 : Math.max(0.12, 0.5 - 0.12 * (level - 1)));

export class Picture {
  #canvas;
  #pen;
  #colours = {};

  constructor(canvas) {
    this.#canvas = canvas;
    this.#pen = canvas.getContext("2d");
    this.readColours();
  }

  /** Colours are the style sheet's, and change with light and dark. */
  readColours() {
    const style = getComputedStyle(this.#canvas);
    for (const name of ["raw", "gist-1", "gist-2", "gist-3", "opened", "closed", "pin", "ink", "line"]) {
      this.#colours[name] = style.getPropertyValue(`--${name}`).trim();
    }
  }

  /** Draw a StripState. view: {from, to} in tokens; marks: beginnings of messages; cursor: a place or null. */
  draw(strip, view, marks, cursor) {
    const { width, height: tall } = this.#fit();
    const pen = this.#pen;
    const floor = tall - PAD_BOTTOM;
    const full = floor - PAD_TOP;
    const scale = width / Math.max(1, view.to - view.from);
    const x = (token) => (token - view.from) * scale;
    const bar = (start, end, share) => {
      const left = x(start);
      const wide = Math.max(LEAST, x(end) - left - (end - start > 4 / scale ? 0.75 : 0));
      pen.fillRect(Math.min(left, width - LEAST), floor - full * share, wide, full * share);
    };
    pen.clearRect(0, 0, width, tall);
    const seen = this.#visible(strip, view);
    for (const [start, end, level] of seen) {
      if (level === 0) continue;
      pen.fillStyle = this.#colours[`gist-${Math.min(level, 3)}`];
      bar(start, end, height(level));
    }
    pen.fillStyle = this.#colours.raw;
    for (const [start, end, level] of seen) if (level === 0) bar(start, end, 1);
    this.#line(0, floor + 0.5, width);
    this.#marks(marks, x, view, floor);
    this.#moves(strip, x, view, floor, full);
    this.#pins(strip, x, view);
    if (cursor) this.#cursor(x(cursor.start), x(cursor.end), floor);
  }

  #fit() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: tall } = this.#canvas;
    if (this.#canvas.width !== Math.round(width * ratio) || this.#canvas.height !== Math.round(tall * ratio)) {
      this.#canvas.width = Math.round(width * ratio);
      this.#canvas.height = Math.round(tall * ratio);
    }
    this.#pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    return { width, height: tall };
  }

  #visible(strip, view) {
    const first = Math.max(0, strip.runAt(view.from));
    const last = strip.runAt(Math.max(view.from, view.to - 1)) + 1;
    return strip.runs.slice(first, last);
  }

  #line(left, y, right) {
    const pen = this.#pen;
    pen.strokeStyle = this.#colours.line;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(left, y);
    pen.lineTo(right, y);
    pen.stroke();
  }

  #marks(marks, x, view, floor) {
    this.#pen.fillStyle = this.#colours.ink;
    for (const position of marks) {
      if (position >= view.from && position < view.to) this.#pen.fillRect(Math.round(x(position)), floor + 2, 1, 5);
    }
  }

  #moves(strip, x, view, floor, full) {
    const pen = this.#pen;
    const within = ([start, end]) => end > view.from && start < view.to;
    pen.fillStyle = this.#colours.opened;
    for (const range of strip.opened.filter(within)) {
      const wide = Math.max(LEAST, x(range[1]) - x(range[0]));
      pen.fillRect(x(range[0]), PAD_TOP, wide, full);
      pen.fillRect(x(range[0]) - 1, PAD_TOP - 4, wide + 2, 3);
    }
    pen.fillStyle = this.#colours.closed;
    for (const range of strip.closed.filter(within)) {
      const wide = Math.max(LEAST, x(range[1]) - x(range[0]));
      pen.fillRect(x(range[0]), floor - full * 0.5 - 5, wide, 3);
    }
  }

  #pins(strip, x, view) {
    const pen = this.#pen;
    pen.fillStyle = this.#colours.pin;
    for (const [start, end] of strip.pins) {
      if (end <= view.from || start >= view.to) continue;
      const middle = (x(start) + x(end)) / 2;
      pen.beginPath();
      pen.arc(middle, 5, 3.5, 0, 2 * Math.PI);
      pen.fill();
      pen.fillRect(middle - 0.75, 6, 1.5, PAD_TOP - 5);
    }
  }

  #cursor(left, right, floor) {
    const pen = this.#pen;
    const wide = Math.max(6, right - left + 4);
    pen.strokeStyle = this.#colours.ink;
    pen.lineWidth = 1.5;
    pen.strokeRect((left + right - wide) / 2, PAD_TOP - 3, wide, floor - PAD_TOP + 5);
  }
}
