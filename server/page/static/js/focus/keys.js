/** The strip by keyboard: from place to place, and closer or further. */

/** What a key asks for: the token to go to, or null. */
export function goal(key, strip, position, view) {
  const stride = Math.max(1, Math.round((view.to - view.from) / 20));
  const last = strip.tokens - 1;
  switch (key) {
    case "ArrowRight":
    case "ArrowUp":
      return next(strip, position);
    case "ArrowLeft":
    case "ArrowDown":
      return before(strip, position);
    case "PageUp":
      return Math.min(last, position + stride);
    case "PageDown":
      return Math.max(0, position - stride);
    case "Home":
      return 0;
    case "End":
      return last;
    default:
      return null;
  }
}

function next(strip, position) {
  const run = strip.runs[strip.runAt(position) + 1];
  return run ? run[0] : strip.tokens - 1;
}

function before(strip, position) {
  const at = strip.runAt(position);
  const here = strip.runs[at];
  if (here && here[0] < position && here[2] === 0) return here[0];
  return at > 0 ? strip.runs[at - 1][0] : 0;
}
