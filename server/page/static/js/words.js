/** Numbers and dates as people read them. */

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const number = (value) => whole.format(value);
export const compact = (value) => short.format(value);
export const tokens = (count) => `${number(count)} ${count === 1 ? "token" : "tokens"}`;
export const percent = (share) => `${Math.round(share * 100)} %`;

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  if (count < 1e6) return `${Math.round(count / 1000)} kB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

/** "today 14:05", or the day. */
export function when(seconds) {
  const date = new Date(seconds * 1000);
  const today = date.toDateString() === new Date().toDateString();
  const hour = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return today ? `today ${hour}` : date.toLocaleDateString([], { year: "numeric", month: "short", day: "numeric" });
}

/** The first line of a text, cut at a word. */
export function firstLine(text, limit = 60) {
  const line = text.trim().split("\n", 1)[0].replace(/\s+/g, " ");
  if (line.length <= limit) return line;
  return `${line.slice(0, limit).replace(/\s+\S*$/, "")} …`;
}
