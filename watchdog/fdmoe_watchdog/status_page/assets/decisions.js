// What the watchdog decided, and what the last flight record says.

import { byId, element, keyed, say, set } from "./elements.js";
import { facts } from "./devices.js";
import { clockTime, plural } from "./numbers.js";

const SHOWN = 12;
const MARKS = { bad: "✕", warn: "▲", good: "●", note: "·" };
const TONES = { bad: "fault", warn: "warning", good: "good news", note: "note" };

export function showEvents(events) {
  const numbered = new Map();
  // the same thing may happen twice in a millisecond
  const keys = events.map((event) => {
    const key = `${event.at} ${event.words}`;
    numbered.set(key, (numbered.get(key) ?? 0) + 1);
    return `${key} ${numbered.get(key)}`;
  });
  const rows = events.map((event, index) => ({ event, key: keys[index] }));
  keyed(byId("events"), rows.slice(0, SHOWN), (row) => row.key, newRow);
  keyed(byId("older-events"), rows.slice(SHOWN), (row) => row.key, newRow);
  byId("older").hidden = rows.length <= SHOWN;
  say(byId("older").firstElementChild, plural(Math.max(rows.length - SHOWN, 0), "older event"));
}

function newRow({ event }) {
  const mark = element("span", { class: "mark", "data-tone": event.tone, role: "img", "aria-label": TONES[event.tone] }, MARKS[event.tone]);
  const time = element("time", { datetime: event.at, title: event.at }, clockTime(event.at));
  return element("tr", { "data-event": event.name }, element("td", {}, time), element("td", {}, mark, ` ${event.words}`));
}

export function showFlight(flight) {
  const root = byId("flight");
  if (!flight) {
    root.replaceChildren(element("p", { class: "quiet" }, "None: nothing has failed in this tree."));
    return;
  }
  const list = element("dl");
  facts(list, [
    ["worker", flight.worker],
    ["cause", flight.cause],
    ["at", new Date(flight.at).toLocaleString()],
    ["file", flight.path.split("/").at(-1)],
  ]);
  set(list, "class", "wide");
  root.replaceChildren(
    element("p", { class: "verdict" }, `${flight.verdict}.`),
    list,
    element("p", { class: "quiet" }, "The whole record: ", element("code", {}, "fdmoe flight show latest")),
  );
}
