// Numbers as people read them.

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  return whole(seconds);
}

/** Whole units: an age that is read while it grows. */
export function whole(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(Math.round(seconds), 0)} s`;
}

/** A latency, to two or three digits. */
export function latency(seconds) {
  const milliseconds = seconds * 1000;
  if (milliseconds < 1) return `${Math.round(milliseconds * 1000)} µs`;
  if (milliseconds < 10) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${seconds.toFixed(1)} s`;
}

export function count(number) {
  const few = number < 10 && !Number.isInteger(number);
  return few ? number.toFixed(1) : Math.round(number).toLocaleString("en");
}

export const percent = (ratio) => `${Math.round(ratio * 100)} %`;

export const gibibytes = (bytes) => (bytes / 2 ** 30).toFixed(bytes < 2 ** 30 ? 2 : 1);

export const plural = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;

export function clockTime(iso) {
  const at = new Date(iso);
  const two = (number) => String(number).padStart(2, "0");
  const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":");
  return `${time}.${String(at.getMilliseconds()).padStart(3, "0")}`;
}
